"""What a model goes on with at some sites is made of what others say, by any function; nothing stays behind."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .tap import Tap, Where, hooked

Say = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def rewritten(
    model: nn.Module,
    reads: Sequence[Tap],
    writes: Sequence[Tap],
    say: Say,
    where: Where | None = None,
    added: bool = False,
) -> Iterator[None]:
    """While this is open, the model goes on at `writes` with `say(x)`, x being what `reads` say, side by side.

    `say` takes [..., numbers read] and gives [..., numbers written], shared out equally; gradients pass through it. `added`:
    what it gives is added to what the sites say. `where` takes the token ids of a run and is True where this is done.
    ValueError: a site that is written before all that is read was heard, or that has another width.

    >>> model = nn.Sequential(nn.Identity(), nn.Identity())
    >>> with rewritten(model, [Tap("0")], [Tap("1")], lambda x: 2 * x):
    ...     model(torch.tensor([1.0, 3.0]))
    tensor([2., 6.])
    """
    work = _Work(tuple(reads), tuple(writes), say, added, Masked(where))
    changes = {tap: lambda x, tap=tap: work.at(tap, x) for tap in (*reads, *writes)}  # type: ignore[misc]
    first = model.register_forward_pre_hook(work.begin, with_kwargs=True, prepend=True)
    try:
        with hooked(model, changes):
            yield
    finally:
        first.remove()


@dataclass
class Masked:
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
    """What the hooks share: what was heard in this run, and what is still to be written."""

    reads: tuple[Tap, ...]
    writes: tuple[Tap, ...]
    say: Say
    added: bool
    seen: Masked
    heard: dict[Tap, Tensor] = field(default_factory=dict)
    parts: dict[Tap, Tensor] = field(default_factory=dict)

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
        return self.seen.only(tap, x + part.to(x) if self.added else part.to(x), x)

    def _speak(self, tap: Tap) -> None:
        missing = [str(read) for read in self.reads if read not in self.heard]
        if missing:
            raise ValueError(f"site {tap} is written before {', '.join(missing)} is heard: one run cannot do both")
        out = self.say(torch.cat([self.heard[read] for read in self.reads], -1))
        self.parts = dict(zip(self.writes, out.chunk(len(self.writes), -1), strict=True))
