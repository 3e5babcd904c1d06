"""A form in which dictionaries lie on a disk, as a value; and what all foreign forms share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Budget, budget
from fewer.features import Dictionary
from fewer.features.abs_top_k import AbsTopK
from fewer.features.batch_top_k import BatchTopK
from fewer.features.feature_choice import FeatureChoice
from fewer.features.gated import Gated
from fewer.features.hierarchical_top_k import HierarchicalTopK
from fewer.features.jump_relu import JumpRelu
from fewer.features.matryoshka import Matryoshka
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_k import TopK

ALL = budget("100%")  # where no budget is stored: a threshold says who speaks
PLAIN = (TopK, AbsTopK, ReluL1, JumpRelu, Gated)  # how others' dictionaries choose who speaks
FITTED = (BatchTopK, Matryoshka, FeatureChoice)  # those that a threshold stands for once they are learnt


@dataclass(frozen=True)
class Form:
    """`marks` are the files by which a directory of this form is known; all of them are there.

    `read` raises ValueError naming file and field; `write` fills an empty directory, and raises ValueError before it does if
    the form has no place for what a dictionary is.
    """

    name: str
    marks: tuple[str, ...]
    read: Callable[[Path], list[Dictionary]]
    write: Callable[[Sequence[Dictionary], Path], None]

    def lies_in(self, folder: Path) -> bool:
        return all((folder / mark).is_file() for mark in self.marks)


def single(
    name: str,
    marks: tuple[str, ...],
    read: Callable[[Path], Dictionary],
    write: Callable[[Dictionary, Path], None],
) -> Form:
    """A form with one dictionary in a directory."""

    def write_one(several: Sequence[Dictionary], folder: Path) -> None:
        if len(several) != 1:
            raise ValueError(f"a directory of the form {name!r} holds one dictionary, not {len(several)}")
        write(several[0], folder)

    return Form(name, marks, lambda folder: [read(folder)], write_one)


def plain(d: Dictionary, form: str, kinds: Sequence[type]) -> Dictionary:
    """The same codes said by one of `kinds`: sparsifiers that others know too. ValueError: there is none.

    What a fitted threshold stands for becomes a JumpReLU with that threshold, HierarchicalTopK is TopK with its budget.
    """
    d.read_alone(f"the form {form!r}")
    given, d = d.sparsifier, d.to("cpu").to(torch.float32)
    if isinstance(d.sparsifier, HierarchicalTopK):
        d = replace(d, sparsifier=TopK())
    if isinstance(d.sparsifier, FITTED) and "threshold" in d.own:
        d = replace(d, sparsifier=JumpRelu(), own={"threshold": d.own["threshold"].expand(d.latents)})
    if type(d.sparsifier) not in kinds:
        without = ", while it has no fitted threshold," if isinstance(d.sparsifier, FITTED) else ""
        known = ", ".join(kind.name for kind in kinds)  # type: ignore[attr-defined]
        raise ValueError(f"the form {form!r} has no place for {given.name}{without} but for {known}; save as 'fewer'")
    return d


def top(d: Dictionary, form: str) -> int:
    """The k of a top-k. ValueError: a budget that does not keep k of each row."""
    b = d.budget
    if not b.plain:
        raise ValueError(f"the form {form!r} keeps k latents of each input, which '{b}' is not; save as 'fewer'")
    return b.of(d.latents)


def thresholds(d: Dictionary) -> Float[Tensor, " latents"]:
    """Of a plain JumpReLU or ReLU: above it a latent speaks."""
    return d.own["threshold"].clamp(min=0).expand(d.latents) if "threshold" in d.own else torch.zeros(d.latents)


def autoencoder(d: Dictionary, form: str) -> None:
    """ValueError if it does not write where it reads."""
    if not d.is_autoencoder or d.encoder.shape[1] != d.decoder.shape[1]:
        raise ValueError(f"the form {form!r} holds autoencoders alone, and this reads {d.reads} and writes {d.writes}")


def kept(k: int) -> Budget:
    return budget(str(k))


def folded(
    bias: Float[Tensor, " latents"], encoder: Float[Tensor, "latents in"], centre: Float[Tensor, " in"]
) -> Float[Tensor, " latents"]:
    """The bias of an encoder that hears x, of one that hears x - centre."""
    return (bias.double() - encoder.double() @ centre.double()).float()


def unfolded(
    bias: Float[Tensor, " latents"], encoder: Float[Tensor, "latents in"], centre: Float[Tensor, " in"]
) -> Float[Tensor, " latents"]:
    """What `folded` gives `bias` for. It stays in float64, so that the bias comes back to the bit; others round it."""
    return bias.double() + encoder.double() @ centre.double()
