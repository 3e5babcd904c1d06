"""The way through a model: its blocks in order, what each hears, only one of them in memory, or on a device, if need be."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fewer.calibrate import ALONE, Crew, Enough, Seen
from fewer.core import Site
from fewer.models import blocks
from fewer.models.feed import call, feed, finish, first_of
from fewer.models.loss import Loss, answer_of, loss_of

Hold = Callable[[str], AbstractContextManager[None]]
Device = str | torch.device | None


def already_there(block: str) -> AbstractContextManager[None]:
    """How a block is held in a model that is wholly in memory."""
    return nullcontext()


class Walk:
    """Walks a model block by block, holding what the current block hears for every batch of the data.

    `dtype` is what weights are stored in (None: as they are), `hold` brings a block's weights for as long as it is open,
    `data` is `[windows, length]` token ids, or any tensor whose rows are samples; None if nobody asks for statistics.
    A model without repeated blocks, and what lies outside of them, is one more stop at the end, named "".

    With a `device`, a block is there while one is `near` it; data and what blocks say stay at home and are moved batch by
    batch. In a `crew` each process hears its share of the windows. `loss` is what gradients are taken of.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Tensor | None,
        dtype: torch.dtype | None = None,
        hold: Hold = already_there,
        batch: int = 8,
        device: Device = None,
        loss: Loss | None = None,
        crew: Crew = ALONE,
    ):
        self.model, self.dtype, self._hold = model, dtype, hold
        self.device, self.crew, self._loss = _known(device), crew, loss
        self._pairs = blocks(model)
        self.blocks = [name for name, _ in self._pairs]
        self.modules = [module for _, module in self._pairs]
        self._places = {name: i for i, name in enumerate(self.blocks)}
        if data is not None and len(data) < crew.size:
            raise ValueError(f"{len(data)} windows are too few for {crew.size} processes: give more calibration text")
        self._data = None if data is None else data[crew.rank :: crew.size]
        self._batches: list[Tensor] = [] if self._data is None else list(self._data.split(batch))
        self._away: list[tuple[Tensor, torch.device]] = []  # what lies outside the blocks, while it is on the device
        self._near = 0  # how many `near` are open
        self.rewind()

    def __enter__(self) -> "Walk":
        return self

    def __exit__(self, *error: object) -> None:
        """The walk is over: everything is where it was."""
        self._away = _home(self._away)

    def rewind(self) -> None:
        """Back to the first block."""
        self._heard: list[Any] = [None] * len(self._batches)

    def with_rest(self, sites: Sequence[Site]) -> "Walk":
        """Add the last stop if a site lies outside the blocks."""
        if any(self.number(s) == len(self.modules) for s in sites):
            self.blocks.append("")
        return self

    def number(self, site: Site) -> int:
        """The stop at which a site lies."""
        words = site.name.split(".")
        names = (".".join(words[:n]) for n in range(1, len(words)))
        return next((self._places[name] for name in names if name in self._places), len(self.modules))

    def within(self, number: int, sites: Sequence[Site]) -> list[Site]:
        """Those of the sites that lie in this block."""
        return [s for s in sites if self.number(s) == number]

    def on(self, number: int) -> AbstractContextManager[None]:
        """Be at a block: its weights are there inside."""
        return self._hold(self.blocks[number]) if number < len(self.blocks) else nullcontext()

    @contextlib.contextmanager
    def near(self, number: int) -> Iterator[None]:
        """Have the block on the device inside, and where it was afterwards; the last stop is all that is no block."""
        if self.device is None:
            yield
            return
        inside = [t for m in self.modules for t in _tensors(m)]
        known = {id(t) for t in inside}
        self._away += _move((t for t in _tensors(self.model) if id(t) not in known), self.device)
        here = _move(_tensors(self.modules[number]) if number < len(self.modules) else (), self.device)
        self._near += 1
        try:
            yield
        finally:
            self._near -= 1
            _home(here)
            if number == len(self.modules) and not self._near:
                self._away = _home(self._away)

    def listen(self, number: int, seen: Seen | None = None) -> None:
        """Let the block hear all data, for whoever watches; what it says is dropped.

        Who alone watches gives what he has `seen`: if the first batch comes by all his maps once, the others are heard
        no further than the last of them.
        """
        self.need_data()
        for i in range(len(self._batches)):
            with contextlib.suppress(Enough):
                self._run(number, i)
            if i == 0 and seen is not None:
                seen.brief = seen.once

    def advance(self, number: int) -> None:
        """Let the block hear all data; what it says is what the next one hears."""
        if number < len(self.modules):
            with self.near(number):
                self._heard = [self._run(number, i) for i in range(len(self._batches))]

    def through(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What goes into the block and what comes out, batch by batch: hidden states."""
        self.need_data()
        for i, heard in enumerate(self._heard):
            first: list[Tensor] = []
            hook = self.modules[number].register_forward_pre_hook(
                lambda _, args, kwargs, into=first: into.append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
            try:
                said = self._run(number, i)
            finally:
                hook.remove()
            yield first[0] if heard is None else first_of(heard), first_of(said)

    def answer(self) -> Tensor:
        """The model's output for the first batch: from what its last block said, if it has been walked."""
        return answer_of(self._run(len(self.modules), 0))

    def loss(self, number: int) -> float:
        """The mean loss on all data if the walk goes on from this block as the model is now; the walk stays where it is."""
        self.need_data()
        heard, price = self._heard, self.price
        start = number if number < len(self.modules) else 0
        if start != number:
            self.rewind()
        try:
            for n in range(start, len(self.modules)):
                with nullcontext() if n == number else self.on(n):
                    self.advance(n)
            with self.near(len(self.modules)):
                paid = [self._paid(price, i) for i in range(len(self._batches))]
        finally:
            self._heard = heard
        total = torch.tensor(paid, dtype=torch.float64).sum() / len(self.windows)
        return self.crew.mean(total, len(self.windows))[0].item()

    def _paid(self, price: Loss, i: int) -> float:
        batch = self.there(self._batches[i])
        return price(answer_of(self._run(len(self.modules), i)), batch).item() * len(batch)

    @property
    def price(self) -> Loss:
        """The loss, the model's own if none was given."""
        return self._loss or loss_of(self.model)

    @property
    def windows(self) -> list[Tensor]:
        """The data of this process, one window at a time."""
        return [] if self._data is None else list(self._data.split(1))

    def there(self, said: Any) -> Any:
        """Tensors, also in a tuple, on the device."""
        return said if self.device is None else _placed(said, self.device)

    def back(self, said: Any) -> Any:
        """Tensors, also in a tuple, where the data is."""
        return said if self.device is None or self._data is None else _placed(said, self._data.device)

    @torch.no_grad()
    def _run(self, number: int, i: int) -> Any:
        batch, heard = self.there(self._batches[i]), self.there(self._heard[i])
        if number < len(self.modules):
            return self.back(feed(self.model, self.modules, number, batch, heard))
        return call(self.model, batch) if heard is None else finish(self.model, self.modules, batch, heard)

    def need_data(self) -> None:
        """`ValueError` if there is none."""
        if not self._batches:
            raise ValueError("a method of this recipe asks for statistics: give calibration data (data=token ids)")


def _known(device: Device) -> torch.device | None:
    """The device with its number; `ValueError` if it is not here."""
    try:
        return None if device is None else torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"no device {str(device)!r} here; write 'cpu', or 'cuda' where there is a GPU ({why})"
        ) from None


def _placed(said: Any, device: torch.device) -> Any:
    if isinstance(said, tuple):
        return tuple(_placed(part, device) for part in said)
    return said.to(device) if isinstance(said, Tensor) else said


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _move(tensors: Iterable[Tensor], device: torch.device) -> list[tuple[Tensor, torch.device]]:
    """Move in place, and say from where; what is on disk still, or there already, stays."""
    moved = [(t, t.device) for t in tensors if not t.is_meta and t.device != device]
    for t, _ in moved:
        t.data = t.data.to(device)
    return moved


def _home(moved: list[tuple[Tensor, torch.device]]) -> list[tuple[Tensor, torch.device]]:
    for t, device in moved:
        t.data = t.data.to(device)
    return []
