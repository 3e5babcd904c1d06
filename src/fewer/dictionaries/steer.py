"""Change what a model thinks of: edits of single latents, in a running model, with all that the dictionary does not explain left as it is."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.features import Dictionary
from fewer.models import Tap, find_taps, hooked

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


@contextlib.contextmanager
def steered(model: nn.Module, dictionary: Dictionary, edits: Sequence[Edit]) -> Iterator[None]:
    """While this is open, each edit moves what the dictionary writes by (edited z - z) times the latent's direction.

    z is coded from what the model itself says, so the error of the dictionary stays in, and an edit that changes nothing
    changes no bit. It works inside `generate`, with and without a cache, for batches and for several taps. Edits of one
    latent follow one another. ValueError: no such latent; a dictionary that does not say where it reads and writes.
    """
    wrong = [e.latent for e in edits if not 0 <= e.latent < dictionary.latents]
    if wrong:
        raise ValueError(f"latent {wrong[0]}: the dictionary has 0 to {dictionary.latents - 1}")
    if len(dictionary.reads) != 1 or len(dictionary.writes) != 1:
        raise ValueError(
            f"a dictionary that reads {list(dictionary.reads)} and writes {list(dictionary.writes)} cannot steer: one of each is needed"
        )
    (reads,), (writes,) = find_taps(model, dictionary.reads), find_taps(model, dictionary.writes)
    latents = list(dict.fromkeys(e.latent for e in edits))
    heard: dict[Tap, Tensor] = {}

    def hear(x: Tensor) -> Tensor:
        heard[reads] = x
        return x

    def write(y: Tensor) -> Tensor:
        x = heard.pop(reads, y)
        return _moved(dictionary, edits, latents, x, y) if latents else y

    with hooked(model, {writes: write} if reads == writes else {reads: hear, writes: write}):
        yield


def _moved(dictionary: Dictionary, edits: Sequence[Edit], latents: list[int], x: Tensor, y: Tensor) -> Tensor:
    flat = x.detach().reshape(-1, x.shape[-1]).to(dictionary.encoder.dtype)
    codes = dictionary.encode(flat)
    at = torch.tensor(latents, device=flat.device)
    before = (codes.value[:, :, None] * (codes.index[:, :, None] == at)).sum(1)
    after = dict(zip(latents, before.unbind(1), strict=True))
    for edit in edits:
        after[edit.latent] = edit.of(after[edit.latent])
    change = torch.stack([after[i] for i in latents], 1) - before
    moved = (change @ dictionary.decoder[at]).to(y.dtype).view(y.shape)
    return torch.where((change != 0).any(1).view(*y.shape[:-1], 1), y + moved, y)
