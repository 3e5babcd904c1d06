"""Timing on a GPU: each candidate a CUDA graph over copies larger than the cache, replays interleaved, medians."""

import random
import time
from collections.abc import Callable

import torch

from ._measure import spread

CUDA = torch.cuda.is_available()
Call = Callable[[], object]


def bytes_to_rotate() -> int:
    """More than twice the second-level cache."""
    return int(2.5 * torch.cuda.get_device_properties(0).L2_cache_size) if CUDA else 0


def interleaved(
    candidates: dict[str, list[Call]], replays: int = 20, failed: dict[str, str] | None = None, graphs: bool = True
) -> dict[str, dict]:
    """Seconds a call, as median and quartiles; a candidate that raises is left out and its error kept in `failed`.

    What waits for the device cannot be captured: without `graphs` its launches are timed too.
    """
    ready = {}
    for name, calls in candidates.items():
        try:
            ready[name] = (_together(calls, graphs), len(calls))
        except Exception as why:
            if CUDA:
                torch.cuda.synchronize()
            if failed is not None:
                failed[name] = f"{type(why).__name__}: {str(why).splitlines()[0][:200] if str(why) else ''}"
    order, times, rng = list(ready), {name: [] for name in ready}, random.Random(0)
    for _ in range(replays if CUDA else 2):
        rng.shuffle(order)
        for name in order:
            run, count = ready[name]
            times[name].append(_seconds(run) / count)
    return {name: spread(t) for name, t in times.items()}


def _together(calls: list[Call], graph: bool) -> Call:
    """One call for all of them, each on its own copy."""

    def all_of_them() -> None:
        for call in calls:
            call()

    all_of_them()  # compiles
    if not CUDA or not graph:
        return all_of_them
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        all_of_them()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        all_of_them()
    captured.replay()
    torch.cuda.synchronize()
    return captured.replay


def _seconds(run: Call) -> float:
    if not CUDA:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def copy_bandwidth() -> float:
    """Bytes a second, read and written."""
    if not CUDA:
        return 1e10
    a, b = torch.randn(1 << 29, device="cuda"), torch.empty(1 << 29, device="cuda")
    b.copy_(a)
    times = [_seconds(lambda: b.copy_(a)) for _ in range(10)]
    return 2 * a.numel() * 4 / min(times)


def machine(bandwidth: float) -> dict[str, object]:
    """What the numbers hold for."""
    import triton

    here = {"torch": torch.__version__, "triton": triton.__version__, "copy_bytes_per_second": bandwidth}
    if CUDA:
        p = torch.cuda.get_device_properties(0)
        here |= {"gpu": p.name, "multiprocessors": p.multi_processor_count, "l2_bytes": p.L2_cache_size}
    return here | {"date": time.strftime("%Y-%m-%d")}
