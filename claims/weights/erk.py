"""The Unreasonable Effectiveness of Random Pruning (Liu et al. 2022): densities by shape."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/erk",
        "At high sparsity, ERK densities are better than uniform ones; here 30 % of the weights of a pretrained model.",
        ours="weights/wanda 30% by erk",
        baseline="weights/wanda 30%",
        why="the papers train with the mask; in a pretrained model ERK starves the MLP maps, the largest, which matter most here",
    ),
]
