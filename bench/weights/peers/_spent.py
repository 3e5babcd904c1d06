"""What a call costs a process: CPU-seconds of all its threads, seconds, and memory above what was there before."""

import os
import time
from collections.abc import Callable

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}  # to warm up on


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def spent(call: Callable[[], None]) -> dict[str, float]:
    """CPU-seconds (user and system), seconds, and bytes of resident memory at the peak above the start."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins here
    before, cpu, wall = _status("VmRSS"), os.times(), time.perf_counter()
    call()
    after = os.times()
    used = after.user - cpu.user + after.system - cpu.system
    return {"cpu": used, "seconds": time.perf_counter() - wall, "peak": _status("VmHWM") - before}
