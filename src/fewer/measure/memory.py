"""Peak memory of a call: how far it rises above where it began."""

import gc
import pathlib
import sys
from collections.abc import Callable

import torch

CLEAR, STATUS = pathlib.Path("/proc/self/clear_refs"), pathlib.Path("/proc/self/status")


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Run the function once; the most bytes in use meanwhile, less those in use before.

    On CUDA: torch's allocated bytes (not what its cache reserves). On Linux: the resident set, whose high-water mark is
    reset first (`/proc/self/clear_refs`, `VmHWM`); pages of 4 KiB, all threads and libraries included. Two limits:
    memory that the process freed but did not return is used again unseen, so measure big things first or in a fresh
    process; and code loaded for the first time counts, so call once before. Elsewhere: the growth of `ru_maxrss`, which
    is 0 below an earlier peak.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before, peak = _watch()
    function()
    return max(0, peak() - before)


def _watch() -> tuple[int, Callable[[], int]]:
    """The bytes in use now, and how to ask for the peak since."""
    try:
        CLEAR.write_text("5")  # 5: the high-water mark starts again from here (man 5 proc)
        return _status("VmRSS"), lambda: _status("VmHWM")
    except OSError:
        return _most(), _most


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _most() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
