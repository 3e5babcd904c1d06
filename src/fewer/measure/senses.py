"""Whether one word in two contexts wakes the same latent just where it means the same."""

import torch
from jaxtyping import Bool
from torch import Tensor

from fewer.layout import Codes

from .estimate import Score, jackknife, share


def same_latent(a: Codes, b: Codes) -> Bool[Tensor, " n"]:
    """Whether the loudest latent of each row of `a` is that of the same row of `b`; ties go to the first, silence is not same."""
    loud = []
    for codes in (a, b):
        best = codes.value.abs().argmax(1, keepdim=True)
        top = codes.index.gather(1, best)[:, 0]
        loud.append(torch.where(codes.value.gather(1, best)[:, 0] != 0, top, -1 - len(loud)))
    return loud[0] == loud[1]


def senses(a: Codes, b: Codes, same: Bool[Tensor, " n"]) -> tuple[Score, ...]:
    """Minegishi et al. 2025 (2501.06254), PS-Eval: codes of a word in contexts `a` and `b`, and whether it means the same.

    "Same latent" answers "same sense". accuracy; precision = hits / said same; recall = hits / same; specificity = the share
    of other senses that woke other latents; f1 = 2 hits / (said same + same). Higher is better for all. Wilson's intervals
    over pairs, a jackknife for f1. ValueError: pairs of one kind only.

    >>> one = Codes(torch.tensor([[0], [1]]), torch.ones(2, 1), 3)
    >>> two = Codes(torch.tensor([[0], [2]]), torch.ones(2, 1), 3)
    >>> [s.value for s in senses(one, two, torch.tensor([True, False]))]
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    n, yes = len(same), int(same.sum())
    if not 0 < yes < n:
        raise ValueError(f"{yes} of {n} pairs mean the same: give some of each kind")
    same = same.cpu()
    said = same_latent(a, b).cpu()
    hits, told = int((said & same).sum()), int(said.sum())

    def f1(rows: Tensor) -> float:
        both = (said & same)[rows].sum()
        return (2 * both / (said[rows].sum() + same[rows].sum()).clamp(min=1)).item()

    found = {
        "accuracy": share(int((said == same).sum()), n),
        "precision": share(hits, told) if told else share(0, 1),
        "recall": share(hits, yes),
        "specificity": share(int((~said & ~same).sum()), n - yes),
        "f1": jackknife(f1, n),
    }
    return tuple(Score(name, e, higher_is_better=True) for name, e in found.items())
