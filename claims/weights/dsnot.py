"""DSnoT (Zhang et al. 2023): the mask moves, the weights do not."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/dsnot",
        "Moving the mask without training lowers Wanda's perplexity, most of all when few weights stay; here 30 %.",
        ours="weights/wanda 30% + dsnot",
        baseline="weights/wanda 30%",
    ),
]
