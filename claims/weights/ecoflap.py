"""ECoFLaP (Sung et al. 2023): shares of blocks by a forward-only estimate of the gradient."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/ecoflap",
        "With 30 % of the weights kept, dividing the budget by zeroth-order gradients lowers Wanda's perplexity.",
        ours="weights/wanda 30% by ecoflap",
        baseline="weights/wanda 30%",
    ),
]
