"""What operations were measured to cost, by machine: `costs.json`, written by `python -m bench.kernels.fit`."""

import json
import pathlib
from bisect import bisect_left
from functools import lru_cache
from typing import Any

import torch

FILE = pathlib.Path(__file__).with_name("costs.json")


@lru_cache
def profiles() -> dict[str, dict[str, Any]]:
    """All measured machines by name; those of GPUs have the name of the device, those of CPUs that of their vectors."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def profile(cuda: bool, op: str = "") -> tuple[str, dict[str, Any]] | None:
    """The machine most like this one, of those where `op` was measured: the same device or vector units, else one of its kind."""
    return _profile(cuda, torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability(), op)


@lru_cache
def _profile(cuda: bool, here: str, op: str = "") -> tuple[str, dict[str, Any]] | None:
    kind = {n: p for n, p in profiles().items() if (p["device"] == "gpu") == cuda and (not op or op in p)}
    name = here if here in kind else next(iter(kind), None)
    return None if name is None else (name, kind[name])


def at_batch(table: dict[str, list[float]], batch: int) -> list[float]:
    """Costs between the measured batches on a straight line; beyond the last, in proportion.

    >>> at_batch({"1": [1.0], "4": [4.0], "16": [8.0]}, 10), at_batch({"1": [1.0], "16": [8.0]}, 32)
    ([6.0], [16.0])
    """
    known = sorted(int(b) for b in table)
    if batch >= known[-1]:
        return [c * batch / known[-1] for c in table[str(known[-1])]]
    if batch <= known[0]:
        return table[str(known[0])]
    i = bisect_left(known, batch)
    low, high = known[i - 1], known[i]
    part = (batch - low) / (high - low)
    return [a + (b - a) * part for a, b in zip(table[str(low)], table[str(high)], strict=True)]
