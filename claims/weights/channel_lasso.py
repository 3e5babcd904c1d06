"""Channel pruning (He et al. 2017): LASSO picks, least squares refits."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/channel_lasso",
        "Refitting the kept weights by least squares lowers the error of the channels that were picked (Section 3.2, Figure 3).",
        ours="weights/channel_lasso 75% @ mlp",
        baseline="weights/channel_lasso(refit=False) 75% @ mlp",
    ),
    Better(
        "weights/channel_lasso",
        "Channels picked by LASSO and refitted lose less than those of the largest norm (Figure 3: against max response).",
        ours="weights/channel_lasso 75% @ mlp",
        baseline="weights/channel_norm 75% @ mlp",
    ),
]
