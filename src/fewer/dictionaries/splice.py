"""A dictionary in a running model: what a site says becomes what the dictionary makes of it, and nothing stays behind."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewer.features import Dictionary
from fewer.layout import Codes
from fewer.measure.quality import device_of
from fewer.models.tap import Tap, Where, find_taps, hooked

Edit = Callable[[Codes], Codes]


@contextlib.contextmanager
def spliced(
    model: nn.Module, dictionary: Dictionary, error: bool = False, where: Where | None = None, edit: Edit | None = None
) -> Iterator[None]:
    """While this is open, the model goes on with what `dictionary` writes at its sites instead of what they say.

    An autoencoder reads and writes the same site; a transcoder reads one and writes another, later one. `edit` changes
    the codes between. With `error`, what the dictionary misses is kept:

        said = x_hat(edit(z)) + (x - x_hat(z)),  computed as  x + (x_hat(edit(z)) - x_hat(z)),

    so that an edit that changes nothing changes no bit (Marks et al. 2024, 2403.19647, eq. 1). `where` takes the token
    ids of a run and is True where the dictionary speaks; elsewhere the model's own words stay. Steps of `generate`
    with a cache are runs of one token.

    ValueError: no such site, another width, or a site that is written before all that is read was heard.
    """
    work = _Work.of(model, dictionary.to(device_of(model)), error, where, edit)
    changes = {tap: lambda x, tap=tap: work.at(tap, x) for tap in (*work.reads, *work.writes)}  # type: ignore[misc]
    first = model.register_forward_pre_hook(work.begin, with_kwargs=True, prepend=True)
    try:
        with hooked(model, changes):
            yield
    finally:
        first.remove()


@contextlib.contextmanager
def replaced(model: nn.Module, by: Mapping[Tap, Tensor], where: Where | None = None) -> Iterator[None]:
    """While this is open, each tap says the same vector for every token: zero and mean ablation.

    `where` as in `spliced`. ValueError: a vector of another width than the site.
    """
    seen = _Seen(where)

    def put(tap: Tap, x: Tensor) -> Tensor:
        if x.shape[-1] != by[tap].shape[-1]:
            raise ValueError(f"site {tap} says {x.shape[-1]} numbers a token, not {by[tap].shape[-1]}")
        return seen.only(tap, by[tap].to(x).expand_as(x), x)

    first = model.register_forward_pre_hook(seen.begin, with_kwargs=True, prepend=True)
    try:
        with hooked(model, {tap: lambda x, tap=tap: put(tap, x) for tap in by}):  # type: ignore[misc]
            yield
    finally:
        first.remove()


@dataclass
class _Seen:
    """The mask of the run that is under way."""

    where: Where | None
    mask: Tensor | None = None

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.where is None:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            raise ValueError("where=... asks for token ids, and this run of the model has none: pass input_ids")
        self.mask = self.where(ids)

    def only(self, tap: Tap, new: Tensor, old: Tensor) -> Tensor:
        if self.where is None:
            return new
        if self.mask is None or self.mask.shape != old.shape[:-1]:
            shape = None if self.mask is None else tuple(self.mask.shape)
            raise ValueError(f"site {tap} speaks for tokens {tuple(old.shape[:-1])}, the mask is for {shape}")
        return torch.where(self.mask[..., None].to(old.device), new, old)


@dataclass
class _Work:
    """What the hooks of one splice share: what was heard in this run, and what is still to be written."""

    dictionary: Dictionary
    reads: tuple[Tap, ...]
    writes: tuple[Tap, ...]
    error: bool
    edit: Edit | None
    seen: _Seen
    heard: dict[Tap, Tensor] = field(default_factory=dict)
    parts: dict[Tap, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, dictionary: Dictionary, error: bool, where: Where | None, edit: Edit | None
    ) -> "_Work":
        if not dictionary.reads or not dictionary.writes:
            raise ValueError("this dictionary names no sites: give `reads` and `writes`, as in replace(d, reads=...)")
        reads, writes = (tuple(find_taps(model, names)) for names in (dictionary.reads, dictionary.writes))
        if len(dictionary.decoder_bias) % len(writes):
            raise ValueError(f"{len(dictionary.decoder_bias)} numbers cannot be dealt out to {len(writes)} sites")
        return cls(dictionary, reads, writes, error, edit, _Seen(where))

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.heard.clear()
        self.parts.clear()
        self.seen.begin(module, args, kwargs)

    def at(self, tap: Tap, x: Tensor) -> Tensor:
        if tap in self.reads:
            self.heard[tap] = x
        if tap not in self.writes:
            return x
        if not self.parts:
            self._speak(tap)
        part = self.parts[tap]
        if part.shape != x.shape:
            raise ValueError(f"site {tap} says {tuple(x.shape)}, the dictionary writes {tuple(part.shape)}")
        return self.seen.only(tap, x + part.to(x) if self.error else part.to(x), x)

    def _speak(self, tap: Tap) -> None:
        """What the dictionary says, or with `error` by how much it says something else now, for each site."""
        d, missing = self.dictionary, [str(read) for read in self.reads if read not in self.heard]
        if missing:
            raise ValueError(f"site {tap} is written before {', '.join(missing)} is heard: one run cannot do both")
        x = torch.cat([self.heard[read] for read in self.reads], -1)
        if x.shape[-1] != d.encoder.shape[1]:
            raise ValueError(f"the dictionary reads {d.encoder.shape[1]} numbers a token, its sites say {x.shape[-1]}")
        rows = x.reshape(-1, x.shape[-1]).to(d.encoder.dtype)
        codes = d.encode(rows)
        edited = self.edit(codes) if self.edit else codes
        out = d.decode(edited, rows)
        if self.error:
            out = torch.zeros_like(out) if self.edit is None else out - d.decode(codes, rows)
        parts = out.view(*x.shape[:-1], -1).chunk(len(self.writes), -1)
        self.parts = dict(zip(self.writes, parts, strict=True))
