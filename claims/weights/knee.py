"""Essential sparsity (Jaiswal et al. 2023): much can go at once, then the loss turns up sharply."""

from fewer.recipe.studies.knee import KneeAt

CLAIMS = [
    KneeAt(
        "weights/magnitude",
        "One-shot magnitude pruning without retraining removes 30 % of a pretrained model's weights before its performance drops sharply "
        "(2306.03805: 30 to 50 % and more).",
        removed=0.3,
    ),
]
