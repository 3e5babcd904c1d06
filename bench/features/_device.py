"""Timing of steps on a GPU: in graphs, one by one, by kernel, and on the host."""

import pathlib
import statistics
from collections.abc import Callable

import torch

from bench.kernels import _device as device

CUDA = device.CUDA
DEVICE, SMALL = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float16)


def ms(call: Callable[[], object], graph: bool = True, n: int = 15) -> dict:
    """Milliseconds by CUDA events: median and quartiles; in a graph, or launched one by one."""
    try:
        for _ in range(2):
            call()
        run = call
        if CUDA:
            torch.cuda.synchronize()
            if graph:
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    call()
                torch.cuda.current_stream().wait_stream(side)
                captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured):
                    call()
                run = captured.replay
                run()
        times = [device._seconds(run) * 1e3 for _ in range(n if CUDA else 2)]
    except Exception as why:
        return {"ms": float("nan"), "failed": f"{type(why).__name__}: {str(why)[:300]}"}
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"ms": round(middle, 4), "q25": round(low, 4), "q75": round(high, 4)}


def normal(*size: int, seed: int = 0, dtype: torch.dtype = SMALL) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE).to(dtype)


def profile(call: Callable[[], object]) -> dict:
    """Where the time of a step goes, by kernel."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
    rows = [
        (e.key[:70], e.self_device_time_total / 3, e.count // 3)
        for e in seen.key_averages()
        if e.self_device_time_total
    ]
    rows = [r for r in rows if r[1] >= 3]
    return {f"{name} x{count}": round(us, 1) for name, us, count in sorted(rows, key=lambda r: -r[1])[:30]}


def host(call: Callable[[], object]) -> dict:
    """Where the host's time goes, by function, itself alone and with what it calls."""
    import cProfile
    import pstats

    torch.cuda.synchronize()
    with cProfile.Profile() as seen:
        for _ in range(5):
            call()
    torch.cuda.synchronize()
    rows = [
        (f"{pathlib.Path(f).name}:{line} {name}", t, c, n)
        for (f, line, name), (_, n, t, c, _) in pstats.Stats(seen).stats.items()
    ]
    return {
        name[:60]: [round(t * 2e5), round(c * 2e5), n // 5] for name, t, c, n in sorted(rows, key=lambda r: -r[2])[:45]
    }
