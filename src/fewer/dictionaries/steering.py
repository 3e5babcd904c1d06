"""A steering as a small artefact: edits, and of the dictionary only the rows that they need, which are asked for no more."""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewer.features import Dictionary
from fewer.features.jump_relu import JumpRelu
from fewer.features.relu_l1 import ReluL1
from fewer.models.tap import Where

from . import files
from ._disk import note_of, whole, write_note
from ._form import ALL, plain
from .steer import EDITS, Add, Edit, steered

NOTE, FORMAT = "steering.json", 1
NEVER = torch.finfo(torch.float32).max  # a threshold above which nobody speaks


@dataclass(frozen=True, eq=False)
class Steering:
    """Edits, with as much of their dictionary as they need: it steers alone, at the sites that it names.

    Latents that speak above thresholds of their own (JumpReLU, fitted BatchTopK) need their own rows alone, and so does `Add`,
    which does not ask what a latent says. Others compete for places (TopK): then the dictionary is kept whole. `latents` are
    the numbers that the rows had there; `of` is a hash of the dictionary (see `identity`).

    >>> from fewer.core import budget
    >>> from fewer.features.top_k import TopK
    >>> d = Dictionary(TopK(), budget("1"), torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3))
    >>> small = Steering.cut(d, [Add(2, by=4.0)])
    >>> small.dictionary.decoder, small.edits, small.latents
    (tensor([[0., 0., 1.]]), (Add(latent=0, by=4.0),), (2,))
    """

    dictionary: Dictionary
    edits: tuple[Edit, ...]  # of the rows that are kept
    latents: tuple[int, ...]
    of: str

    @classmethod
    def cut(cls, dictionary: Dictionary, edits: Sequence[Edit]) -> "Steering":
        """What these edits need of a dictionary. ValueError: no edits, or a latent that it does not have."""
        if not edits:
            raise ValueError("there are no edits: give at least one, such as Add(7, by=4.0)")
        if wrong := [e.latent for e in edits if not 0 <= e.latent < dictionary.latents]:
            raise ValueError(f"latent {wrong[0]}: the dictionary has 0 to {dictionary.latents - 1}")
        d, name = dictionary.to("cpu"), identity(dictionary)
        d = _by_thresholds(d, all(isinstance(e, Add) for e in edits))
        kept = (
            sorted({e.latent for e in edits}) if isinstance(d.sparsifier, (JumpRelu, ReluL1)) else [*range(d.latents)]
        )
        rows = {name: getattr(d, name)[kept] for name in ("encoder", "encoder_bias", "decoder")}
        own = {"threshold": d.own["threshold"].expand(d.latents)[kept]} if isinstance(d.sparsifier, JumpRelu) else d.own
        return cls(
            replace(d, **rows, own=own),
            tuple(replace(e, latent=kept.index(e.latent)) for e in edits),
            tuple(kept),
            name,
        )

    @contextlib.contextmanager
    def on(self, model: nn.Module, where: Where | None = None) -> Iterator[None]:
        """While this is open, the model is steered (see `steered`)."""
        with steered(model, self.dictionary, self.edits, where):
            yield

    def save(self, out: str | Path, force: bool = False) -> Path:
        """Write a directory, whole or not at all: JSON and safetensors. ValueError: it exists."""
        out = Path(out)
        if out.exists() and not (force and (out / NOTE).is_file()):
            raise ValueError(f"{out} exists; name another place, or replace a steering by force=True")
        edits = [{"kind": type(e).__name__, **asdict(e)} for e in self.edits]
        with whole(out.absolute()) as part:
            files.write(self.dictionary, part)
            write_note(part / NOTE, {"format": FORMAT, "of": self.of, "latents": self.latents, "edits": edits})
        return out

    @classmethod
    def load(cls, place: str | Path) -> "Steering":
        """What `save` wrote. ValueError names the file and the field that does not fit."""
        folder = Path(place)
        file, note = folder / NOTE, note_of(folder / NOTE)
        if note.get("format") != FORMAT:
            raise ValueError(f"{file}: format {note.get('format')!r} found, {FORMAT} expected")
        d, latents, edits = files.read(folder), note.get("latents"), note.get("edits")
        right = isinstance(latents, list) and all(type(i) is int and i >= 0 for i in latents)
        if not right or len(latents) != d.latents or not isinstance(note.get("of"), str):  # type: ignore[arg-type]
            raise ValueError(f"{file}: 'latents' must be the {d.latents} numbers of the rows, and 'of' a hash")
        if not isinstance(edits, list) or not edits:
            raise ValueError(f"{file}: 'edits' must be a list of at least one")
        return cls(d, tuple(_edit(file, e, d.latents) for e in edits), tuple(latents), note["of"])  # type: ignore[arg-type]


def identity(dictionary: Dictionary) -> str:
    """A hash of what it computes: tensors, sparsifier, budget and sites; where it lies and what is told of it do not count."""
    d = dictionary.to("cpu")
    told = hashlib.sha256(repr((d.sparsifier, str(d.budget), d.reads, d.writes)).encode())
    for name, t in sorted({**d.tensors(), **{f"own.{name}": t for name, t in d.own.items()}}.items()):
        told.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        told.update(t.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def _by_thresholds(d: Dictionary, blind: bool) -> Dictionary:
    """The same latents, each for itself, if that can be; if nobody asks what they say, they may as well say nothing."""
    d = replace(d, skip=None)  # it says the same before and after an edit
    if blind:
        return replace(d, sparsifier=JumpRelu(), budget=ALL, own={"threshold": torch.full((d.latents,), NEVER)})
    try:
        return replace(plain(d, "steering", (JumpRelu, ReluL1)), budget=ALL)
    except ValueError:  # they compete
        return d


def _edit(file: Path, e: Any, latents: int) -> Edit:
    kind = EDITS.get(e.get("kind")) if isinstance(e, dict) else None
    if kind is None:
        raise ValueError(f"{file}: an edit is {e!r:.80}; its kind must be one of {', '.join(EDITS)}")
    fields = {name: value for name, value in e.items() if name != "kind"}
    if (
        {*fields} != {*kind.__dataclass_fields__}
        or type(fields["latent"]) is not int
        or not 0 <= fields["latent"] < latents
    ):
        raise ValueError(
            f"{file}: {e!r:.80} must have {', '.join(kind.__dataclass_fields__)}; latents are 0 to {latents - 1}"
        )
    if not all(type(x) in (int, float) and math.isfinite(x) for x in fields.values()):
        raise ValueError(f"{file}: {e!r:.80} must hold finite numbers")
    return kind(**fields)
