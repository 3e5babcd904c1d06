"""SpQR (Dettmers et al. 2023): near-lossless below five bits, and better than grids alone at equal bits."""

from fewer.recipe.claims import Better, Within

CLAIMS = [
    Within(
        "weights/spqr",
        "Below five bits a weight, perplexity rises by less than 1 %.",
        ours="weights/magnitude 100% + spqr(bits=4, outliers=0.001)",
        margin=0.01,
    ),
    Better(
        "weights/spqr",
        "At equal bits (here 4.05 against 4.0) its perplexity is below that of GPTQ in groups.",
        ours="weights/magnitude 100% + spqr",
        baseline="weights/magnitude 100% + gptq(bits=3, group=32)",
    ),
    Better(
        "weights/spqr",
        "At equal bits (here 4.05 against 4.0) its perplexity is below that of rounding to nearest in groups.",
        ours="weights/magnitude 100% + spqr",
        baseline="weights/magnitude 100% + quantise(bits=3, group=16)",
    ),
]
