"""Which backend runs an operation: forced, wanted for its gradient, or the cheapest by measured costs."""

import contextlib
import importlib
import importlib.util
import pkgutil
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

_inside: weakref.WeakKeyDictionary[Any, tuple[Tensor, ...]] = weakref.WeakKeyDictionary()  # of frozen layouts
_forced: ContextVar[str | None] = ContextVar("backend", default=None)


@dataclass(frozen=True)
class Choice:
    """What runs, and why. `seconds_estimated` holds every backend that was weighed; other keys are for comparison."""

    op: str
    backend: str
    reason: str
    seconds_estimated: dict[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def using(backend: str) -> Iterator[None]:
    """Force a backend: `with using("ref"): ...`. Operations that lack it raise `LookupError`."""
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


def is_forced() -> bool:
    """Whether a backend is forced here."""
    return _forced.get() is not None


def operations() -> list[str]:
    """The names of all operations: the folders of this room."""
    here = importlib.import_module("fewer.kernels").__path__
    return sorted(m.name for m in pkgutil.iter_modules(here) if m.ispkg)


@lru_cache
def backends(op: str) -> tuple[str, ...]:
    """The backends that `op` has a file for, whether or not they run here: `ref` means it, the others are faster."""
    if op not in operations():
        raise LookupError(f"no operation {op!r}; there are: {', '.join(operations())}")
    here = importlib.import_module(f"fewer.kernels.{op}").__path__
    names = {m.name for m in pkgutil.iter_modules(here)}
    return tuple(b for b in ("ref", "dense", "cpu", "gpu") if b in names)


@lru_cache
def missing(backend: str) -> str | None:
    """Why `backend` cannot run on this machine; None if it can."""
    if backend == "cpu" and importlib.util.find_spec("numba") is None:
        return "numba is not installed: `pip install numba`"
    if backend == "gpu" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if backend == "gpu" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed: `pip install triton`"
    return None


@lru_cache
def load(op: str, backend: str) -> Callable[..., Any]:
    """The function of `decode` on `gpu`; imports numba or Triton only when asked."""
    if backend not in backends(op):
        raise LookupError(f"{op} has no backend {backend!r}; it has: {', '.join(backends(op))}")
    do: Callable[..., Any] = getattr(importlib.import_module(f"fewer.kernels.{op}.{backend}"), op)
    return _where_it_lies(do) if backend == "gpu" else do


def _where_it_lies(do: Callable[..., Any]) -> Callable[..., Any]:
    """Kernels are launched on the current GPU: make it the one that holds the first argument."""

    @wraps(do)
    def there(first: Any, *args: Any, **kwargs: Any) -> Any:
        device = next(tensors_of((first,))).device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return do(first, *args, **kwargs)
        with torch.cuda.device(device):
            return do(first, *args, **kwargs)

    return there


def backend_of(*xs: Any) -> str:
    """`gpu` for CUDA tensors, `cpu` for plain ones, `ref` when gradients are wanted or the fast one cannot run here."""
    return _forced.get() or _by_device(xs)[0]


def backend_for(op: str, *xs: Tensor) -> str:
    """As `backend_of`, for an operation whose kernels on a GPU know their gradients; `ref` where it has no such backend."""
    backend = backend_of(*(x.detach() for x in xs))
    if backend != "gpu":
        backend = backend_of(*xs)
    return backend if backend in backends(op) or is_forced() else "ref"


def plan(op: str, *args: Any) -> Choice:
    """Say what would run for these arguments, and why, without running it."""
    if (forced := _forced.get()) is not None:
        return Choice(op, forced, "forced by `using`")
    backend, reason = _by_device(args)
    if backend == "ref" or not (estimate := _estimator(op)):
        return Choice(op, backend if backend in backends(op) else "ref", reason)
    return cheapest(op, backend, estimate(backend, *args), reason)


def cheapest(op: str, backend: str, seconds: dict[str, float], reason: str = "") -> Choice:
    """The backend with the least estimated time, among those that `op` has; `backend` if nothing was measured."""
    able = {b: s for b, s in seconds.items() if b in backends(op)}
    if not able:
        return Choice(op, backend, "; ".join(filter(None, (reason, "no costs were measured for this case"))), seconds)
    best = min(able, key=lambda b: able[b])
    rest = ", ".join(f"{b} {_time(s)}" for b, s in seconds.items() if b != best)
    why = f"estimated {_time(able[best])}" + (f" against {rest}" if rest else "")
    return Choice(op, best, "; ".join(filter(None, (reason, why))), seconds)


def run(op: str, *args: Any) -> Any:
    """Plan and do it. What was chosen for arguments of one kind is remembered."""
    if (forced := _forced.get()) is not None:
        return load(op, forced)(*args)
    backend = _by_device(args)[0]
    if backend != "ref" and (kind := _kind(op)):
        backend = _cheapest(op, backend, kind(*args))
    return load(op, backend if backend in backends(op) else "ref")(*args)


def tensors_of(args: Any) -> Iterator[Tensor]:
    """The tensors among the arguments, those inside layouts too."""
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif is_dataclass(a):
            if a not in _inside:
                _inside[a] = tuple(tensors_of([getattr(a, f.name) for f in fields(a)]))
            yield from _inside[a]


def _by_device(args: Any) -> tuple[str, str]:
    tensors = list(tensors_of(args))
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "ref", "a gradient is wanted"
    if any(t.device.type not in ("cpu", "cuda") for t in tensors):
        return "ref", "neither on the CPU nor on a CUDA device"
    backend = "gpu" if any(t.is_cuda for t in tensors) else "cpu"
    if why := missing(backend):
        return "ref", why
    return backend, "on a CUDA device" if backend == "gpu" else "on the CPU"


@lru_cache
def _estimator(op: str) -> Callable[..., dict[str, float]] | None:
    """`seconds` of the operation's `cost.py`, where there is one."""
    if importlib.util.find_spec(f"fewer.kernels.{op}.cost") is None:
        return None
    return importlib.import_module(f"fewer.kernels.{op}.cost").seconds


@lru_cache
def _kind(op: str) -> Callable[..., Any] | None:
    """What of the arguments decides, by the operation's `cost.py`: hashable."""
    if importlib.util.find_spec(f"fewer.kernels.{op}.cost") is None:
        return None
    return importlib.import_module(f"fewer.kernels.{op}.cost").kind


@lru_cache(maxsize=4096)
def _cheapest(op: str, backend: str, kind: Any) -> str:
    """The name of what `plan` chooses for arguments of this kind."""
    seconds = importlib.import_module(f"fewer.kernels.{op}.cost").estimate(kind) if kind is not None else {}
    return cheapest(op, backend, seconds).backend


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"
