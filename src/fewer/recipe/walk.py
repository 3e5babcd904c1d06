"""The way through a model: its blocks in order, what each hears, and only one of them in memory if need be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fewer.core import Site
from fewer.models import blocks
from fewer.models.feed import Batch, call, feed, finish, first_of

Hold = Callable[[str], AbstractContextManager[None]]


def already_there(block: str) -> AbstractContextManager[None]:
    """How a block is held in a model that is wholly in memory."""
    return nullcontext()


class Walk:
    """Walks a model block by block, holding what the current block hears for every batch of the data.

    `dtype` is what weights are stored in (None: as they are), `hold` brings a block's weights for as long as it is open,
    `data` is `[windows, length]` token ids, or any tensor whose rows are samples; None if nobody asks for statistics.
    A model without repeated blocks, and what lies outside of them, is one more stop at the end, named "".
    """

    def __init__(
        self,
        model: nn.Module,
        data: Tensor | None,
        dtype: torch.dtype | None = None,
        hold: Hold = already_there,
        batch: int = 8,
    ):
        self.model, self.dtype, self._hold = model, dtype, hold
        self._pairs = blocks(model)
        self.blocks = [name for name, _ in self._pairs]
        self._modules = [module for _, module in self._pairs]
        self._batches: list[Batch] = [] if data is None else list(data.split(batch))
        self.rewind()

    def rewind(self) -> None:
        """Back to the first block."""
        self._heard: list[Any] = [None] * len(self._batches)

    def with_rest(self, sites: Sequence[Site]) -> "Walk":
        """Add the last stop if a site lies outside the blocks."""
        if any(self._number(s) is None for s in sites):
            self.blocks.append("")
        return self

    def _number(self, site: Site) -> int | None:
        return next((i for i, (n, _) in enumerate(self._pairs) if site.name.startswith(f"{n}.")), None)

    def within(self, number: int, sites: Sequence[Site]) -> list[Site]:
        """Those of the sites that lie in this block."""
        here = number if number < len(self._pairs) else None
        return [s for s in sites if self._number(s) == here]

    def on(self, number: int) -> AbstractContextManager[None]:
        """Be at a block: its weights are there inside."""
        return self._hold(self.blocks[number])

    def listen(self, number: int) -> None:
        """Let the block hear all data, for whoever watches; what it says is dropped."""
        self._need_data()
        for i in range(len(self._batches)):
            self._run(number, i)

    def advance(self, number: int) -> None:
        """Let the block hear all data; what it says is what the next one hears."""
        if number < len(self._pairs):
            self._heard = [self._run(number, i) for i in range(len(self._batches))]

    def through(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What goes into the block and what comes out, batch by batch: hidden states."""
        self._need_data()
        for i, heard in enumerate(self._heard):
            first: list[Tensor] = []
            hook = self._modules[number].register_forward_pre_hook(
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
        return _logits(self._run(len(self._pairs), 0))

    @torch.no_grad()
    def _run(self, number: int, i: int) -> Any:
        batch, heard = self._batches[i], self._heard[i]
        if number < len(self._pairs):
            return feed(self.model, self._modules, number, batch, heard)
        return call(self.model, batch) if heard is None else finish(self.model, self._modules, batch, heard)

    def _need_data(self) -> None:
        if not self._batches:
            raise ValueError("a method of this recipe asks for statistics: give calibration data (data=token ids)")


def _logits(output: object) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if (found := getattr(output, "logits", None)) is not None:
        return found
    return first_of(output if isinstance(output, tuple) else output.to_tuple())  # type: ignore[attr-defined]
