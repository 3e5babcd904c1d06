"""EoRA (Liu et al. 2024): a low-rank part in the eigenspace of the inputs."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/eora",
        "A low-rank correction without training lowers the perplexity of a SparseGPT model at 2:4.",
        ours="weights/sparse_gpt 2:4 + eora",
        baseline="weights/sparse_gpt 2:4",
    ),
]
