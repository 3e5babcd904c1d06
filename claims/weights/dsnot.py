"""DSnoT (Zhang et al. 2023): the mask moves, the weights do not."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/dsnot",
        "Moving the mask without training lowers Wanda's perplexity, most of all when few weights stay; here 30 %.",
        ours="weights/wanda 30% + dsnot",
        baseline="weights/wanda 30%",
        why="with all maps pruned; on the MLP maps alone (--where mlp) it lowers Wanda's 101 to 87, on attention alone 22.1 to "
        "22.0, and at 50 % it gains 1.6 %: at 30 % this small model is too damaged for a mean error of each map to tell",
    ),
]
