"""Where an idea comes from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A reference: an arXiv id, a DOI or, without either, an address; the title, the year, our ledger's id if it has one, the equation if one rules.

    >>> Paper("2306.11695", "Wanda", 2023).url
    'https://arxiv.org/abs/2306.11695'
    >>> Paper("10.1109/ACSSC.1993.342465", "OMP", 1993).url
    'https://doi.org/10.1109/ACSSC.1993.342465'
    """

    id: str
    title: str
    year: int
    ledger: int | None = None
    equation: str = ""

    @property
    def url(self) -> str:
        if self.id.startswith("https://"):
            return self.id
        return f"https://doi.org/{self.id}" if self.id.startswith("10.") else f"https://arxiv.org/abs/{self.id}"


AT_RANDOM = Paper(  # of the control that most axes have
    "2202.02643",
    "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training",
    2022,
    ledger=174,
)
