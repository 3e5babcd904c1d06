"""Read or replace what any module says or hears, by its path: no wrapper, and nothing stays behind."""

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .hook_names import path_of

Change = Callable[[Tensor], Tensor]
GRADIENT = ":gradient"
Where = Callable[[Tensor], Tensor]  # token ids to True where something is done


def all_but(leave: Collection[int]) -> Where:
    """Every token but these: special ones, whose activations are like no others.

    >>> all_but(frozenset({0}))(torch.tensor([[0, 5, 7]]))
    tensor([[False,  True,  True]])
    """

    def where(ids: Int[Tensor, "*batch length"]) -> Bool[Tensor, "*batch length"]:
        return ~torch.isin(ids, torch.tensor(sorted(leave), dtype=ids.dtype, device=ids.device))

    return where


class Enough(Exception):
    """The last tap was heard: the rest of this run may be left out."""


@dataclass(frozen=True)
class Tap:
    """What the module at `path` says, or, as `path:in`, what it hears: its first tensor, [..., dim].

    With `:gradient` behind it, the gradient of the next-token loss there, which only `activations` gives.

    >>> Tap.read("model.layers.4.mlp:in")
    Tap(path='model.layers.4.mlp', hears=True, gradient=False)
    """

    path: str
    hears: bool = False
    gradient: bool = False

    @classmethod
    def read(cls, text: str) -> "Tap":
        plain = text.removesuffix(GRADIENT)
        path, _, side = plain.partition(":")
        if side not in ("", "in", "out") or not path:
            raise ValueError(
                f"not a site: {text!r}; write a module's path, such as 'layers.4' (what it says) or 'layers.4.mlp:in' (what it hears)"
            )
        return cls(path, side == "in", plain != text)

    def __str__(self) -> str:
        return self.path + (":in" if self.hears else "") + (GRADIENT if self.gradient else "")


def find_taps(model: nn.Module, texts: Sequence[str]) -> list[Tap]:
    """Taps with the model's own full paths; the end of a path is enough if only one module has it.

    ValueError: no such module, with the nearest paths; or several.

    >>> find_taps(nn.Sequential(nn.Sequential(nn.Linear(2, 2))), ["0.0:in"])
    [Tap(path='0.0', hears=True, gradient=False)]
    """
    paths = [name for name, _ in model.named_modules() if name]
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    return [replace(tap, path=_full(tap.path, paths, kind)) for tap in map(Tap.read, texts)]


def _full(end: str, paths: Sequence[str], kind: str = "") -> str:
    if end in paths:
        return end
    found = [path for path in paths if path.endswith(f".{end}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"site {end!r} could be {', '.join(found[:4])}: write more of the path")
    if site := path_of(end, kind):
        there = f"that is {site!r} here" if site.removesuffix(":in") in paths else "this one has other modules"
        raise ValueError(f"{end!r} is TransformerLens' name of a place in a model of this kind; {there}: write a path")
    near = get_close_matches(end, paths, n=3, cutoff=0.3) or [p for p in paths if end.rpartition(".")[2] in p][:3]
    raise ValueError(f"the model has no module {end!r}; near: {', '.join(near) or ', '.join(paths[:3])}")


@contextlib.contextmanager
def tapped(
    model: nn.Module, taps: Sequence[Tap], brief: bool = False
) -> Iterator[dict[Tap, Float[Tensor, "*batch dim"]]]:
    """What each tap heard in the last run of the model. With `brief`, that run may raise `Enough` after the last of them."""
    heard: dict[Tap, Tensor] = {}

    def hear(tap: Tap, x: Tensor) -> Tensor:
        heard[tap] = x
        if brief and len(heard) == len(taps):
            raise Enough
        return x

    def forget(module: nn.Module, args: tuple) -> None:
        heard.clear()

    with hooked(model, {tap: lambda x, tap=tap: hear(tap, x) for tap in taps}):  # type: ignore[misc]
        first = model.register_forward_pre_hook(forget, prepend=True)
        try:
            yield heard
        finally:
            first.remove()


def activations(
    model: nn.Module,
    taps: Sequence[Tap],
    inputs: "Int[Tensor, 'windows length'] | Float[Tensor, 'windows *shape']",
    call: Callable[..., object] | None = None,
) -> Float[Tensor, "*rows dim"]:
    """What all taps say of some windows, side by side, in float32; the model runs no further than it must (see `run`).

    For a gradient it runs to its end, and back: of the next-token loss in nats, summed over the tokens.
    ValueError: a number that is not finite, with its tap.
    """
    if any(tap.gradient for tap in taps):
        return _felt(model, taps, inputs, call)
    with tapped(model, taps, brief=True) as heard:
        with contextlib.suppress(Enough):
            run(model, inputs, call)
        return _beside(heard, taps)


def _beside(heard: Mapping[Tap, Tensor], taps: Sequence[Tap]) -> Tensor:
    for tap in taps:
        if tap not in heard:
            raise ValueError(f"site {tap} was not reached by a run of the model")
        if not (real := heard[tap].isfinite()).all():
            place = (~real.all(-1)).nonzero()[0].tolist()
            raise ValueError(f"site {tap}: NaN or infinite at [window, token] {place}; is the model in float16?")
    return torch.cat([heard[tap].float() for tap in taps], dim=-1)


def _felt(model: nn.Module, taps: Sequence[Tap], ids: Tensor, call: Callable[..., object] | None) -> Tensor:
    """The same with gradients among it."""
    ids, heard = ids.to(next(model.parameters()).device), {}

    def hear(tap: Tap, x: Tensor) -> Tensor:
        heard[tap] = x if x.requires_grad else x.detach().requires_grad_()
        return heard[tap]

    plain = dict.fromkeys(replace(tap, gradient=False) for tap in taps)
    changes: dict[Tap, Change] = {tap: lambda x, tap=tap: hear(tap, x) for tap in plain}  # type: ignore[misc]
    with torch.enable_grad(), hooked(model, changes):
        said = getattr(run(model, ids, call), "logits", None)
        if said is None:
            raise ValueError(
                f"the gradient of a next-token loss was asked for, and {type(model).__name__} says no logits"
            )
        loss = F.cross_entropy(said[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
        reached = [tap for tap in plain if tap in heard]
        slopes = torch.autograd.grad(loss, [heard[tap] for tap in reached])
    found = {replace(tap, gradient=True): slope for tap, slope in zip(reached, slopes, strict=True)}
    return _beside({**{tap: x.detach() for tap, x in heard.items()}, **found}, taps)


def run(model: nn.Module, inputs: Tensor, call: Callable[..., object] | None = None) -> object:
    """What a model says of token ids, images, or whatever it takes first; a cache is not built by those that could."""
    able = "use_cache" in inspect.signature(call or model.forward).parameters
    return (call or model)(inputs.to(next(model.parameters()).device), **({"use_cache": False} if able else {}))


@contextlib.contextmanager
def hooked(model: nn.Module, changes: Mapping[Tap, Change]) -> Iterator[None]:
    """While this is open, what is said or heard at each tap is what `change` makes of it; the same tensor changes nothing."""
    modules, handles = dict(model.named_modules()), []
    try:
        for tap, change in changes.items():
            module = modules[tap.path]
            if tap.hears:
                handles.append(module.register_forward_pre_hook(_before(tap, change), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_after(tap, change)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(tap: Tap, change: Change) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (change(_tensor(tap, args[0])), *args[1:]), kwargs
        name = next((k for k, v in kwargs.items() if isinstance(v, Tensor) and v.is_floating_point()), None)
        if name is None:
            raise ValueError(f"site {tap}: the module hears no tensor")
        return args, {**kwargs, name: change(kwargs[name])}

    return hook


def _after(tap: Tap, change: Change) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple, said: Any) -> Any:
        if isinstance(said, tuple):
            return (change(_tensor(tap, said[0])), *said[1:])
        if isinstance(said, dict) and said:
            name = next(iter(said))
            said[name] = change(_tensor(tap, said[name]))
            return said
        return change(_tensor(tap, said))

    return hook


def _tensor(tap: Tap, x: Any) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(
            f"site {tap}: expected activations, got {type(x).__name__}; choose a module that passes on a tensor of numbers"
        )
    return x
