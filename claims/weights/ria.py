"""RIA (Zhang et al. 2023): importance relative to the row and the column."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/ria",
        "At 50 % unstructured, relative importance alone surpasses existing post-training pruning; here Wanda's.",
        ours="weights/ria 50%",
        baseline="weights/wanda 50%",
    ),
    Better(
        "weights/ria",
        "At 2:4, before channels are permuted, relative importance leaves a lower perplexity than Wanda.",
        ours="weights/ria 2:4",
        baseline="weights/wanda 2:4",
    ),
]
