"""ALPS (Meng et al. 2024): one-shot pruning as one optimisation problem."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/alps",
        "With 30 % of the weights kept, ALPS has a lower perplexity than SparseGPT (Table 2: the more is removed, the further apart).",
        ours="weights/alps 30%",
        baseline="weights/sparse_gpt 30%",
    ),
    Better(
        "weights/alps",
        "At 2:4, ALPS has a lower perplexity than SparseGPT.",
        ours="weights/alps 2:4",
        baseline="weights/sparse_gpt 2:4",
    ),
]
