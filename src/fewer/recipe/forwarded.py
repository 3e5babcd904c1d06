"""A model's `forward` done otherwise for a while, one way around another."""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from fewer.models.cache_layer import Layer, Memory


@contextlib.contextmanager
def forwarded(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While this is open, the model's `forward` is this one; afterwards what it was."""
    before = vars(model).get("forward")
    model.forward = wraps(model.forward)(lambda *args, **kwargs: forward(*args, **kwargs))
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def named(kwargs: dict[str, Any]) -> str:
    """The name that the cache goes by among what a model's `forward` is given; '' if there is none."""
    return next((name for name, x in kwargs.items() if isinstance(x, Cache)), "")


def given(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor | None, str, list[Memory]]:
    """What a model's `forward` is given: the tokens, the name that its cache goes by, and what our layers of that remember.

    A cache that is given by its place alone has no name: ''.
    """
    ids = kwargs.get("input_ids", args[0] if args else None)
    name = named(kwargs)
    layers = kwargs[name].layers if name else []
    return ids if isinstance(ids, Tensor) else None, name, [x.memory for x in layers if isinstance(x, Layer)]
