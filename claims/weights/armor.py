"""ARMOR (Liu et al. 2025): a 2:4 core between two block-diagonal matrices."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/armor",
        "Two block-diagonal matrices around a 2:4 core lower the perplexity much below that of the 2:4 map it starts from (NoWag-P).",
        ours="weights/nowag 2:4 + armor",
        baseline="weights/nowag 2:4",
        factor=0.9,
    ),
]
