"""Run one block of a model on what the block before it said, with all else in place: masks, positions, layer types.

The model itself is called, its earlier blocks replaced by "pass on what you hear", and stopped right behind the block.
So each block gets exactly the arguments that its model would give it (Gemma's alternating masks, GPT-2's positional
ones), no architecture is named, and blocks that hold no weights yet (on the meta device) are never touched.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batch = Tensor | Mapping[str, Tensor]


class _Heard(Exception):
    """Raised behind the block, to leave the model."""


def call(model: nn.Module, batch: Batch) -> Any:
    """The model on a batch, without a cache: a dict of arguments, or its first one (token ids, pixel values)."""
    cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return model(**batch, **cache) if isinstance(batch, Mapping) else model(batch, **cache)


def first_of(output: Any) -> Tensor:
    """The hidden states in what a block returns: the tensor, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def feed(
    model: nn.Module, blocks: Sequence[nn.Module], number: int, batch: Batch, hidden: Tensor | None, boxed: bool = False
) -> tuple[Tensor, bool]:
    """What block `number` makes of `hidden` (None: of what the model gives its first block).

    Returns the new hidden states and whether blocks return them in a tuple (`boxed`, which later calls must be told).
    """
    said: list[Any] = []
    real = blocks[number].forward

    def here(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        said.append(real(first if hidden is None else hidden, *args, **kwargs))
        raise _Heard

    with _passing(blocks[:number], boxed), _forward(blocks[number], here), contextlib.suppress(_Heard):
        call(model, batch)
    if not said:
        raise ValueError(f"block {number} of {type(model).__name__} was not reached on this batch")
    return first_of(said[0]), isinstance(said[0], tuple)


@torch.no_grad()
def finish(model: nn.Module, blocks: Sequence[nn.Module], batch: Batch, hidden: Tensor, boxed: bool) -> Any:
    """What the model answers if its last block says `hidden`: final norm and head only."""

    def last(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden,) if boxed else hidden

    with _passing(blocks[:-1], boxed), _forward(blocks[-1], last):
        return call(model, batch)


@contextlib.contextmanager
def _passing(blocks: Sequence[nn.Module], boxed: bool) -> Iterator[None]:
    def on(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (first,) if boxed else first

    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_forward(block, on))
        yield


@contextlib.contextmanager
def _forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """Another `forward` for one instance; its hooks (and so its statistics) stay in force."""

    def named(*args: Any, **kwargs: Any) -> Any:
        if not args and "hidden_states" in kwargs:
            args = (kwargs.pop("hidden_states"),)
        return forward(*args, **kwargs)

    module.forward = named  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
