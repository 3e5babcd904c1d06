"""ALPS (Meng et al. 2024): one-shot pruning as one optimisation problem."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/alps",
        "With 30 % of the weights kept, ALPS has a much lower perplexity than existing methods (abstract: 13 to 29 % on large models); here SparseGPT.",
        ours="weights/alps 30%",
        baseline="weights/sparse_gpt 30%",
        factor=0.95,
    ),
    Better(
        "weights/alps",
        "At 2:4, ALPS has a lower perplexity than SparseGPT.",
        ours="weights/alps 2:4",
        baseline="weights/sparse_gpt 2:4",
    ),
]
