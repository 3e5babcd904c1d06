"""Wanda (Sun et al. 2023): weights times inputs, and no update."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/wanda",
        "At 50 % unstructured, Wanda's perplexity is far below magnitude pruning's (LLaMA-7B: 7.26 against 17.29, Table 3).",
        ours="weights/wanda 50%",
        baseline="weights/magnitude 50% per tensor",
        factor=0.8,
    ),
    Better(
        "weights/wanda",
        "At 2:4, Wanda's perplexity is below magnitude pruning's (LLaMA-7B: 11.53 against 42.13, Table 3).",
        ours="weights/wanda 2:4",
        baseline="weights/magnitude 2:4",
        factor=0.8,
    ),
]
