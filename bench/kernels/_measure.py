"""Timing on a CPU: interleaved in one process, over buffers larger than the cache, with medians and quartiles."""

import dataclasses
import os
import pathlib
import platform
import random
import statistics
import time
from collections.abc import Callable
from itertools import cycle

import torch

Call = Callable[[], object]


def interleaved(candidates: dict[str, list[Call]], rounds: int, limit: float = 60.0) -> dict[str, dict[str, float]]:
    """Each candidate once a round, in random order, on the next of its copies; seconds as median and quartiles."""
    order, turn = list(candidates), {name: cycle(copies) for name, copies in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for name in order:  # compile, and fill caches of code
        next(turn[name])()
    begin, rng = time.perf_counter(), random.Random(0)
    for done in range(rounds):
        rng.shuffle(order)
        for name in order:
            call = next(turn[name])
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        if done >= 4 and time.perf_counter() - begin > limit:
            break
    return {name: spread(t) for name, t in times.items()}


def spread(times: list[float]) -> dict[str, float]:
    """Median, quartiles, least and count."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"seconds": middle, "q25": low, "q75": high, "least": min(times), "n": len(times)}


def copies(value: object, count: int) -> list[object]:
    """The same tensor or layout `count` times, each in memory of its own."""
    if isinstance(value, torch.Tensor):
        return [value, *(value.clone() for _ in range(count - 1))]
    if dataclasses.is_dataclass(value):
        again = [
            dataclasses.replace(value, **{k: v.clone() for k, v in value.tensors().items()}) for _ in range(count - 1)
        ]
        return [value, *again]
    return [value] * count


def cache_bytes() -> int:
    """The last level, as Linux tells it; 32 MB if it does not."""
    for index in ("index3", "index2"):
        path = pathlib.Path(f"/sys/devices/system/cpu/cpu0/cache/{index}/size")
        if path.exists():
            return int(path.read_text().strip().rstrip("K")) * 1024
    return 32 << 20


def read_bandwidth() -> float:
    """Bytes a second that torch reads on all its threads, from memory."""
    xs = [torch.randn(64 << 20) for _ in range(4)]  # 256 MB each
    times = []
    for x in xs * 4:
        start = time.perf_counter()
        x.sum()
        times.append(time.perf_counter() - start)
    return xs[0].numel() * 4 / min(times)


def machine() -> dict[str, object]:
    """What the numbers hold for."""
    model = next(
        (s.split(":")[1].strip() for s in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s),
        platform.processor(),
    )
    return {
        "cpu": model,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cache_bytes": cache_bytes(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
    }
