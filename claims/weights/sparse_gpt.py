"""SparseGPT (Frantar and Alistarh 2023): survivors make up for what is pruned."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/sparse_gpt",
        "At 50 % unstructured, SparseGPT's perplexity is far below magnitude pruning's, which collapses on large models (Table 1).",
        ours="weights/sparse_gpt 50%",
        baseline="weights/magnitude 50% per tensor",
        factor=0.8,
    ),
    Better(
        "weights/sparse_gpt",
        "At 2:4, updating the survivors leaves a lower perplexity than Wanda's choice alone (LLaMA-7B: 11.00 against 11.53, Table 3 of Wanda).",
        ours="weights/sparse_gpt 2:4",
        baseline="weights/wanda 2:4",
    ),
]
