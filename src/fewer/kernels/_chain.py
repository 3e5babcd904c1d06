"""Short kernels in a row, with Triton: each is put in place while the one before it still runs, and waits there for its results.

On GPUs from Hopper on. A kernel that is launched with `**in_a_row(device)` calls `wait(CHAIN)` before it touches memory.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl


@triton.jit
def wait(CHAIN: tl.constexpr):
    """Let the next kernel be put in place, and wait until all of the one before has been written."""
    if CHAIN:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@lru_cache
def in_a_row(device: torch.device) -> dict[str, bool]:
    """What a launch must say."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    return {"CHAIN": True, "launch_pdl": True} if able else {"CHAIN": False}
