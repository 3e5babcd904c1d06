"""Why Random Pruning Is All We Need to Start Sparse (Gadhikar et al. 2022): the same number in every map."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/balanced",
        "At high sparsity, balanced densities are better than uniform ones; here 30 % of the weights of a pretrained model.",
        ours="weights/wanda 30% by balanced",
        baseline="weights/wanda 30%",
        why="the paper trains with the mask, from random weights",
    ),
]
