"""What a model costs: bytes, arithmetic, seconds, peak memory."""

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .quality import Model, Progress, at_rest, device_of

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch 2.13 does not count it


def bytes_of(model: nn.Module) -> int:
    """The bytes of all parameters and buffers; what is tied, or the same memory twice, counts once.

    A packed layer counts as packed, because its buffers are what is stored, indices included; a masked dense weight
    counts as dense, because it is. Memory while running comes on top: see `peak_memory`.
    """
    there: dict[Any, int] = {}
    for t in (*model.parameters(), *model.buffers()):
        there[(t.device, t.data_ptr(), t.nbytes) if t.data_ptr() else id(t)] = t.nbytes
    return sum(there.values())


def flops(model: Model, tokens: Int[Tensor, "count length"]) -> int:
    """The floating-point operations of one forward pass over `tokens` (a multiplication and an addition are two).

    Counted by torch while the model runs: matrix products, convolutions, attention (the whole square, causal or not). A
    module with a method `flops(tokens: int) -> int` (packed layers, whose kernels torch cannot see) is asked instead,
    for as many tokens as reached it. A masked dense weight costs what a dense one costs; what its zeros would save is
    the difference to `useful_flops`.
    """
    attention = dict.fromkeys((CPU_ATTENTION, CPU_ATTENTION.default), _attention)
    count = FlopCounterMode(display=False, custom_mapping=attention)
    with _rows_seen(model, _counts_itself) as rows, at_rest(model), count:
        model(input_ids=tokens.to(device_of(model)))
    counts = count.get_flop_counts()
    names = {m: n for n, m in model.named_modules()} if isinstance(model, nn.Module) else {}
    root = type(model).__name__
    seen = (sum(counts.get(f"{root}.{names[m]}", {}).values()) for m in rows)
    return count.get_total_flops() - sum(seen) + sum(m.flops(n) for m, n in rows.items())


def useful_flops(model: Model, tokens: Int[Tensor, "count length"]) -> int:
    """As `flops`, less the multiplications by zeros of the weights: `2 * nnz * tokens` for each linear map.

    What a kernel that skips every zero would compute, whether there is one or not: a bound, not a cost. Sees the zeros
    of modules with one weight matrix (`nn.Linear`, `Conv1D` of transformers), not those of stacked experts.
    """
    with _rows_seen(model, _is_linear) as rows:
        total = flops(model, tokens)
    return total - sum(2 * n * int((m.weight == 0).sum()) for m, n in rows.items())


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of `n` rounds and the quartiles `low` and `high`.

    >>> print(Timing(0.0038, 0.0037, 0.0041, 20))
    3.8 ms [3.7, 4.1]
    """

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        units = ((0, "s"), (3, "ms"), (6, "µs"))
        power, unit = next((u for u in units if self.median * 10 ** u[0] >= 1), (9, "ns"))
        scaled = [x * 10**power for x in (self.median, self.low, self.high)]
        digits = max(0, 1 - math.floor(math.log10(scaled[0]))) if scaled[0] > 0 else 0
        median, low, high = (f"{x:.{digits}f}" for x in scaled)
        return f"{median} {unit} [{low}, {high}]"


def seconds(
    functions: Mapping[str, Callable[[], object]], rounds: int = 20, warmup: int = 3, progress: Progress | None = None
) -> dict[str, Timing]:
    """Time functions against each other: every round runs each once, so that a busy moment of the machine hits all
    alike.

    The order turns by one each round, so none always follows the same neighbour. Wall-clock time with the garbage
    collector off; where CUDA is in use, each call is waited for. Compare medians of one call only: between processes
    the machine differs.
    """
    if not functions or rounds < 2:
        raise ValueError(f"{len(functions)} functions in {rounds} rounds: give at least one function and two rounds")
    names = list(functions)
    taken: dict[str, list[float]] = {name: [] for name in names}
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(-warmup, rounds):
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                spent = _once(functions[name])
                if i >= 0:
                    taken[name].append(spent)
            if progress and i >= 0:
                progress(i + 1, rounds)
    finally:
        if was_on:
            gc.enable()
    return {name: _timing(times) for name, times in taken.items()}


def _once(function: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    function()
    _wait()
    return time.perf_counter() - start


def _timing(times: list[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, low, high, len(times))


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    """`2 * rows * keys * width` for the scores and again for the values, for each head of each sequence."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)
    return matrix and not _counts_itself(module)


def _counts_itself(module: nn.Module) -> bool:
    return callable(getattr(module, "flops", None))


@contextlib.contextmanager
def _rows_seen(model: Model, which: Callable[[nn.Module], bool]) -> Iterator[dict[Any, int]]:
    """How many rows (tokens) reach each of these modules meanwhile."""
    rows: dict[Any, int] = {}

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows[module] = rows.get(module, 0) + args[0].shape[:-1].numel()

    modules = [m for m in model.modules() if m is not model and which(m)] if isinstance(model, nn.Module) else []
    handles = [m.register_forward_pre_hook(see) for m in modules]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
