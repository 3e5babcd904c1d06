"""Change what a model thinks of: edits of single latents, in a running model, with all that the dictionary does not explain left as it is."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.features import Dictionary
from fewer.layout import Codes
from fewer.models.tap import Where

from .splice import spliced

Amount = Float[Tensor, " tokens"]


@dataclass(frozen=True)
class Edit(ABC):
    """What becomes of one latent. "Clamping" has four meanings in the literature; here each has a name of its own."""

    latent: int

    @abstractmethod
    def of(self, z: Amount) -> Amount:
        """What the latent says after the edit, if it said `z`."""


@dataclass(frozen=True)
class Add(Edit):
    """`by` more, at every token, whether it speaks or not.

    >>> Add(7, by=2.0).of(torch.tensor([0.0, 1.0]))
    tensor([2., 3.])
    """

    by: float

    def of(self, z: Amount) -> Amount:
        return z + self.by


@dataclass(frozen=True)
class Set(Edit):
    """`to` at every token, whether it speaks or not (Templeton et al. 2024, Scaling Monosemanticity).

    >>> Set(7, to=5.0).of(torch.tensor([0.0, 1.0]))
    tensor([5., 5.])
    """

    to: float

    def of(self, z: Amount) -> Amount:
        return torch.full_like(z, self.to)


@dataclass(frozen=True)
class ScaleWhenActive(Edit):
    """`by` times what it says; 0 takes it away.

    >>> ScaleWhenActive(7, by=0.0).of(torch.tensor([0.0, 3.0]))
    tensor([0., 0.])
    """

    by: float

    def of(self, z: Amount) -> Amount:
        return z * self.by


@dataclass(frozen=True)
class ClampWhenActive(Edit):
    """`to` where it speaks, usually below 0: how knowledge is unlearnt (Farrell et al. 2024, 2410.19278).

    >>> ClampWhenActive(7, to=-20.0).of(torch.tensor([0.0, 3.0]))
    tensor([  0., -20.])
    """

    to: float

    def of(self, z: Amount) -> Amount:
        return torch.where(z != 0, self.to, z)


EDITS: Mapping[str, type[Edit]] = {e.__name__: e for e in (Add, Set, ScaleWhenActive, ClampWhenActive)}


def instead(latents: Sequence[int], say: float = 1.0) -> Callable[[Codes], Codes]:
    """These latents and no others, `say` each, at every token: for `spliced(..., edit=...)`. So a codebook's codes are forced
    (Tamkin et al. 2023, 2310.17230, section 4).

    >>> instead([7])(Codes(torch.tensor([[4, 2], [1, 3]]), torch.ones(2, 2), 9))
    Codes(index=tensor([[7],
            [7]]), value=tensor([[1.],
            [1.]]), size=9)
    """

    def edit(codes: Codes) -> Codes:
        index = torch.tensor([*latents], device=codes.index.device).expand(len(codes.index), -1)
        return Codes(index.contiguous(), torch.full_like(index, say, dtype=codes.value.dtype), codes.size)

    return edit


@contextlib.contextmanager
def steered(
    model: nn.Module, dictionary: Dictionary, edits: Sequence[Edit], where: Where | None = None
) -> Iterator[None]:
    """While this is open, each edit moves what the dictionary writes by (edited z - z) times the latent's direction.

    z is coded from what the model itself says, so the error of the dictionary stays in (`spliced` with `error`), and an edit
    that changes nothing changes no bit. It works inside `generate`, with and without a cache, and for batches. Edits of one
    latent follow one another. `where` takes token ids and is True where the edits are made. ValueError: no such latent.
    """
    wrong = [e.latent for e in edits if not 0 <= e.latent < dictionary.latents]
    if wrong:
        raise ValueError(f"latent {wrong[0]}: the dictionary has 0 to {dictionary.latents - 1}")
    with spliced(model, dictionary, error=True, where=where, edit=partial(edited, edits)):
        yield


def edited(edits: Sequence[Edit], codes: Codes) -> Codes:
    """The codes after the edits, one after the other. Who spoke keeps its place, who did not is put behind.

    >>> codes = Codes(torch.tensor([[4, 7]]), torch.tensor([[1.0, 2.0]]), 9)
    >>> edited([ScaleWhenActive(7, 3.0), Add(5, 0.5)], codes)
    Codes(index=tensor([[4, 7, 5]]), value=tensor([[1.0000, 6.0000, 0.5000]]), size=9)
    """
    for edit in edits:
        here = (codes.index == edit.latent) & (codes.value != 0)
        z = (codes.value * here).sum(1)
        after = edit.of(z).to(z)
        value = torch.where(here, after[:, None], codes.value)
        new = torch.where(here.any(1), 0.0, after)[:, None]
        if new.any():
            index = torch.cat([codes.index, codes.index.new_full((len(new), 1), edit.latent)], 1)
            codes = Codes(index, torch.cat([value, new], 1), codes.size)
        else:
            codes = Codes(codes.index, value, codes.size)
    return codes
