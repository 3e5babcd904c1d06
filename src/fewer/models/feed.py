"""Run one block of a model on what the block before it said, with all else in place: masks, positions, layer types.

The model itself is called, its earlier blocks replaced by "pass on what you hear", and stopped right behind the block.
So each block gets exactly the arguments that its model would give it (Gemma's alternating masks, GPT-2's positional
ones), no architecture is named, and blocks that hold no weights yet (on the meta device) are never touched.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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


def feed(model: nn.Module, blocks: Sequence[nn.Module], number: int, batch: Batch, heard: Any = None) -> Any:
    """What block `number` says when the block before it has said `heard` (None: the model's own input to the first).

    Blocks say hidden states, or a tuple that begins with them; what is returned is what the next block hears.
    Gradients flow from it to `heard` and the block's weights, where they ask for any.
    """
    said: list[Any] = []
    real = blocks[number].forward

    def here(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        said.append(real(first if heard is None else first_of(heard), *args, **kwargs))
        raise _Heard

    with _passing(blocks[:number], heard), _forward(blocks[number], here), contextlib.suppress(_Heard):
        call(model, batch)
    if not said:
        raise ValueError(f"block {number} of {type(model).__name__} was not reached on this batch")
    return said[0]


def enter(model: nn.Module, blocks: Sequence[nn.Module], batch: Batch) -> Tensor:
    """What the first block hears: embedded words, pictures in patches."""
    said: list[Tensor] = []

    def here(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        said.append(first)
        raise _Heard

    with _forward(blocks[0], here), contextlib.suppress(_Heard):
        call(model, batch)
    return said[0]


def finish(model: nn.Module, blocks: Sequence[nn.Module], batch: Batch, heard: Any) -> Any:
    """What the model answers if its last block says `heard`: final norm and head only."""
    with _passing(blocks[:-1], heard), _forward(blocks[-1], lambda *args, **kwargs: heard):
        return call(model, batch)


@contextlib.contextmanager
def _passing(blocks: Sequence[nn.Module], like: Any) -> Iterator[None]:
    """Each block says what it hears, in the form that blocks of this model say it."""

    def on(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (first, *like[1:]) if isinstance(like, tuple) else first

    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_forward(block, on))
        yield


@contextlib.contextmanager
def _forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """Another `forward` for one instance; its hooks (and so its statistics) stay in force."""

    before = vars(module).get("forward")

    def named(*args: Any, **kwargs: Any) -> Any:
        if not args and "hidden_states" in kwargs:
            args = (kwargs.pop("hidden_states"),)
        return forward(*args, **kwargs)

    module.forward = named
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
