"""OWL (Yin et al. 2023): layers with more outliers keep more."""

from fewer.recipe.claims import Better

CLAIMS = [
    Better(
        "weights/owl",
        "With 30 % of the weights kept, dividing the budget by outliers lowers Wanda's perplexity much (LLaMA-7B: 24.55 against 85.77, Table 3).",
        ours="weights/wanda 30% by owl",
        baseline="weights/wanda 30%",
        factor=0.9,
    ),
]
