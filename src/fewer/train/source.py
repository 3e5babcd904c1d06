"""Where batches come from, as a function of their number: a run that was killed asks for the rest, and gets the same."""

import contextlib
import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.models.tap import Enough, Tap, activations, all_but, run, tapped


class Source(ABC):
    """Endless batches of rows, [batch, dim] each, the same for the same settings."""

    @abstractmethod
    def since(self, number: int) -> Iterator[Float[Tensor, "batch dim"]]:
        """All batches from that number on, the first being 0."""

    def __iter__(self) -> Iterator[Float[Tensor, "batch dim"]]:
        return self.since(0)

    def first(self, count: int, number: int = 0) -> list[Tensor]:
        """So many batches from that number on, and no more is asked for."""
        return [*itertools.islice(self.since(number), count)]

    @property
    def mixing(self) -> object:
        """What decides which row comes when: of sources for which it is equal, rows may stand side by side (`Beside`)."""
        return None

    def share(self, rank: int, size: int) -> "Source":
        """The rows of each batch that one of several processes works on: the same batches, cut into `size` parts."""
        return Part(self, rank, size)


@dataclass(frozen=True, eq=False)
class Part(Source):
    """One of the equal parts of each batch of another source, which is read whole."""

    whole: Source
    rank: int
    size: int

    def since(self, number: int) -> Iterator[Tensor]:
        for batch in self.whole.since(number):
            yield batch.tensor_split(self.size)[self.rank]


@dataclass(frozen=True, eq=False)
class Rows(Source):
    """The rows of a tensor or a memory-mapped array, in a new order in each pass; a last batch that is not full is left out."""

    rows: "Float[Tensor, 'n dim'] | np.ndarray"
    batch: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or len(self.rows) < self.batch:
            raise ValueError(
                f"rows of shape {tuple(self.rows.shape)}: give [n, dim] with at least one batch of {self.batch}"
            )

    def since(self, number: int) -> Iterator[Tensor]:
        each = len(self.rows) // self.batch
        for epoch in itertools.count(number // each):
            order = torch.from_numpy(np.random.default_rng((self.seed, epoch)).permutation(len(self.rows)))
            for i in range(number % each if epoch == number // each else 0, each):
                rows = self._take(order[i * self.batch : (i + 1) * self.batch])
                if not rows.isfinite().all():
                    bad = order[i * self.batch + int((~rows.isfinite().all(1)).nonzero()[0])]
                    raise ValueError(f"batch {epoch * each + i}: row {int(bad)} of the data is NaN or infinite")
                yield rows

    @property
    def mixing(self) -> object:
        return "rows", len(self.rows), self.batch, self.seed

    def _take(self, at: Tensor) -> Tensor:
        if isinstance(self.rows, Tensor):
            return self.rows[at.to(self.rows.device)].float()
        return torch.from_numpy(np.ascontiguousarray(self.rows[at.numpy()])).float()


@dataclass(frozen=True, eq=False)
class Windows(Source):
    """Windows of tokens, some at a time, in a new order in each pass: for what is learnt by running the model.

    >>> next(iter(Windows(torch.tensor([[5, 6]]), 1)))
    tensor([[5, 6]])
    """

    windows: Int[Tensor, "count length"]
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.windows) < self.batch or self.batch < 1 or self.windows.shape[1] < 2:
            raise ValueError(
                f"{len(self.windows)} windows of {self.windows.shape[1]} tokens: give at least {max(1, self.batch)} of at least 2"
            )

    def since(self, number: int) -> Iterator[Tensor]:
        each = len(self.windows) // self.batch
        for at in itertools.count(number):
            draw = torch.Generator().manual_seed((self.seed << 20) + at // each)
            order = torch.randperm(len(self.windows), generator=draw)
            yield self.windows[order[at % each * self.batch :][: self.batch]]


@dataclass(frozen=True, eq=False)
class Live(Source):
    """Activations of a running model at some taps, side by side, token by token.

    `windows` are token ids, or whatever any module hears, an entry a row: images [count, channels, height, width],
    embeddings. `call` runs the model on some of them if `model(windows)` does not. What a tap says of one is its rows, its last
    axis their columns: patches, tokens, or one row. Windows are taken in a random order; `pool` of them at a time are run, and their tokens mixed before they are cut into
    batches, so that a batch holds tokens of many documents. Tokens in `leave` (special ones: their norms would outweigh all
    others) are left out, of ids alone, and what does not fill a batch is too.
    """

    model: nn.Module
    taps: Sequence[Tap]
    windows: "Int[Tensor, 'count length'] | Float[Tensor, 'count *shape']"
    batch: int = 2048
    leave: frozenset[int] = frozenset()
    pool: int = 64
    at_once: int = 8
    seed: int = 0
    spread: bool = False  # the taps' rows one under the other, for one dictionary over many layers
    call: Callable[[Tensor], object] | None = None

    def __post_init__(self) -> None:
        if not any(self._counts(self._order(0))):
            raise ValueError(
                f"{len(self.windows)} windows of {self._each} tokens do not fill one batch of {self.batch}: give more text or a smaller batch"
            )

    def since(self, number: int) -> Iterator[Tensor]:
        """ValueError: an activation that is not finite, with its batches and site."""
        first = 0  # batch of a pool
        for epoch in itertools.count():
            pools = self._order(epoch)
            for p, (windows, count) in enumerate(zip(pools, self._counts(pools), strict=True)):
                if number < first + count:
                    try:
                        rows = self._mixed(windows, epoch, p)
                    except ValueError as wrong:
                        raise ValueError(f"batches {first} to {first + count - 1}: {wrong}") from wrong
                    for i in range(max(0, number - first), count):
                        yield rows[i * self.batch : (i + 1) * self.batch]
                first += count

    def _order(self, epoch: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed((self.seed << 20) + epoch)
        return list(torch.randperm(len(self.windows), generator=draw).split(self.pool))

    def _real(self, windows: Tensor) -> Tensor:
        if self._by_tokens:
            return all_but(self.leave)(self.windows[windows])
        return torch.ones(len(windows), self._each, dtype=torch.bool)

    @property
    def _by_tokens(self) -> bool:
        return not self.windows.is_floating_point() and self._each == self.windows.shape[1]

    @cached_property
    def _each(self) -> int:
        """Rows of a window, known from a run of one. ValueError: sites that say other numbers of rows, or tokens to leave out of what has none."""
        with torch.no_grad(), tapped(self.model, self.taps, brief=True) as heard, contextlib.suppress(Enough):
            run(self.model, self.windows[:1], self.call)
        shapes = {str(tap): tuple(x.shape) for tap, x in heard.items()}
        if missing := [str(tap) for tap in self.taps if str(tap) not in shapes]:
            raise ValueError(f"site {missing[0]} was not reached by a run of the model")
        if len({shape[:-1] for shape in shapes.values()}) > 1 or any(len(s) < 2 or s[0] != 1 for s in shapes.values()):
            raise ValueError(f"sites say {shapes} of one window: as many rows each are needed, [1, ..., columns]")
        each = math.prod(next(iter(shapes.values()))[1:-1])
        if self.leave and (self.windows.is_floating_point() or each != self.windows.shape[1]):
            raise ValueError(
                f"leave={sorted(self.leave)} are token ids, and a window has {each} rows that are no tokens"
            )
        return each

    @property
    def mixing(self) -> object:
        seen = hashlib.sha256(self.windows.cpu().contiguous().numpy().tobytes()).hexdigest()
        return "live", seen, self._each, self.batch, self.leave, self.pool, self.seed, self.spread

    def _counts(self, pools: list[Tensor]) -> list[int]:
        """How many batches each pool fills: known from the tokens, without the model."""
        return [int(self._real(p).sum()) * (len(self.taps) if self.spread else 1) // self.batch for p in pools]

    def _mixed(self, windows: Tensor, epoch: int, pool: int) -> Tensor:
        parts = [rows.flatten(1, -2)[self._real(some)] if rows.ndim > 2 else rows for some, rows in self._run(windows)]
        rows = torch.cat(parts)
        rows = rows.view(len(rows) * len(self.taps), -1) if self.spread else rows
        draw = torch.Generator().manual_seed((self.seed << 40) + (epoch << 20) + pool)
        return rows[torch.randperm(len(rows), generator=draw).to(rows.device)]

    def _run(self, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            for some in windows.split(self.at_once):
                yield some, activations(self.model, self.taps, self.windows[some], self.call)
