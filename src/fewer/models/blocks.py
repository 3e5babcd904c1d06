"""The repeated layers of a model, in order, and what each of them is given: enough to run a model block by block."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

Call = tuple[tuple, dict[str, Any]]


def is_map(module: nn.Module) -> bool:
    """Whether the module is a linear map: `nn.Linear`, transformers' `Conv1D`, a router, or one of our packed ones."""
    if isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "SparseLinear"):
        return True
    return type(module).__name__.endswith("Router") and isinstance(getattr(module, "weight", None), nn.Parameter)


def stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Every outermost `nn.ModuleList` of composite modules that hold linear maps, by name."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and any(_holds(block) for block in module):
            found[name] = module
    return found


def _holds(block: nn.Module) -> bool:
    return not is_map(block) and any(is_map(m) for m in block.modules())


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The repeated layers in order, as `(name, module)`; empty for a model without them.

    Found by structure: of all outermost `nn.ModuleList`s of composite modules that hold linear maps, the one with the
    most weights (the decoder of an encoder-decoder).

    >>> blocks(nn.Sequential(nn.Linear(2, 2)))
    []
    """
    every = stacks(model)
    if not every:
        return []
    name = max(every, key=lambda n: sum(p.numel() for p in every[n].parameters()))
    return [(f"{name}.{i}", block) for i, block in enumerate(every[name])]


class _Stop(Exception):
    """Everything wanted has been seen."""


def _word(kwargs: dict[str, Any]) -> str:
    """What the hidden states are called where they are not the first positional argument."""
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))


def _first(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs[_word(kwargs)]


def _put(hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Call:
    return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {_word(kwargs): hidden})


def _without_cache(args: tuple, kwargs: dict[str, Any]) -> Call:
    """A cache would grow each time that a block is run again."""
    drop = lambda v: None if isinstance(v, Cache) else v  # noqa: E731
    return tuple(drop(v) for v in args), {k: drop(v) for k, v in kwargs.items()}


@contextmanager
def _forward(block: nn.Module, forward: Any) -> Iterator[None]:
    before = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if before is not None:
            block.forward = before


def _run(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> None:
    takes = signature(model.forward).parameters
    words = {"use_cache": False} if "use_cache" in takes else {}
    with torch.no_grad():
        try:
            model(**batch, **words) if isinstance(batch, Mapping) else model(batch, **words)
        except _Stop:
            return
    raise ValueError("the model's forward did not pass through its blocks; is the batch what the model takes?")


def first_inputs(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> Call:
    """What block 0 receives for the batch, as `(args, kwargs)`; nothing behind the embedding is computed.

    `batch` is a dictionary of keyword arguments of the model, or its one positional argument. Caches become None.
    """
    seen: list[Call] = []

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(_without_cache(args, kwargs))
        raise _Stop

    hook = _stack(model)[0].register_forward_pre_hook(note, with_kwargs=True)
    try:
        _run(model, batch)
    finally:
        hook.remove()
    return seen[0]


def block_inputs(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> list[Call]:
    """What each block receives besides the hidden states, as `(args, kwargs)` for `run_block`.

    Layers may differ in masks and position embeddings (Gemma's sliding windows), and only the model's own forward
    knows which layer gets which. So the forward runs, but every block except the first (which shows whether blocks
    return a tensor or a tuple) hands its input straight on, and the last one stops it: the price is one block, not a
    dense pass. The hidden states in each entry are those of block 0, one tensor shared by all, as are masks and
    position embeddings that layers share; feed your own with `run_block`. Block 0 must not be on the meta device.

        calls = block_inputs(model, batch)
        hidden = calls[0][0][0]                                     # or calls[0][1]["hidden_states"], where it is named
        for (name, block), (args, kwargs) in zip(blocks(model), calls):
            hidden = run_block(block, hidden, args, kwargs)     # prune the block first, if that is what you came for
    """
    stack, seen, rest = _stack(model), [], []
    first = stack[0].forward

    def begin(*args: Any, **kwargs: Any) -> Any:
        seen.append(_without_cache(args, kwargs))
        if len(stack) == 1:
            raise _Stop
        out = first(*args, **kwargs)
        rest.append(out[1:] if isinstance(out, tuple) else None)
        return _first(args, kwargs) if rest[0] is None else (_first(args, kwargs), *rest[0])

    def skip(*args: Any, **kwargs: Any) -> Any:
        hidden = _first(*seen[0])
        seen.append(_put(hidden, *_without_cache(args, kwargs)))
        if len(seen) == len(stack):
            raise _Stop
        return hidden if rest[0] is None else (hidden, *rest[0])

    with ExitStack() as every:
        for i, block in enumerate(stack):
            every.enter_context(_forward(block, skip if i else begin))
        _run(model, batch)
    return seen


def run_block(block: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The block's output for `hidden` in place of the hidden states it was recorded with: always one tensor."""
    args, kwargs = _put(hidden, args, kwargs)
    out = block(*args, **kwargs)
    return out[0] if isinstance(out, tuple) else out


def _stack(model: nn.Module) -> list[nn.Module]:
    stack = [block for _, block in blocks(model)]
    if not stack:
        raise ValueError(f"{type(model).__name__} has no repeated blocks; act on its sites instead")
    return stack
