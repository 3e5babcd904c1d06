"""CPU-seconds of one training step of a TopK dictionary, and of its parts: `python -m bench.features.step`.

One thread, float32, least and median of some rounds, taken in turn; the peak memory of a process that does nothing else. Ours beside the
encoder's product alone, which nobody who looks at every latent goes below, and beside autograd through dense codes. Others that are
there (bench/features/beside.py) take seven steps each on the same rows, in processes of their own.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from bench.kernels._measure import machine
from fewer import kernels
from fewer.layout import Codes

from ._steps import RATE, Ours, Plain, data
from .beside import asked, there


def spent(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """CPU-seconds a call."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            times[name].append(time.process_time() - begin)
    return {name: {"least": round(min(t), 4), "median": round(statistics.median(t), 4)} for name, t in times.items()}


def parts(dim: int, latents: int, k: int, batch: int, rounds: int) -> dict:
    ours = Ours(dim, latents, k, batch, "cpu")
    plain, rows = Plain(ours, k), data(batch, dim, "cpu")
    w, b = (ours.one.tensors[name].detach() for name in ("encoder", "encoder_bias"))
    index, value = kernels.encode(rows, w, b, k)
    codes, room = Codes(index, value, latents), torch.empty(batch, latents)
    return spent(
        {
            "step": lambda: ours(rows),
            "step, dense autograd": lambda: plain(rows),
            "the product alone": lambda: torch.addmm(b, rows, w.mT, out=room),
            "encode": lambda: kernels.encode(rows, w, b, k),
            "decode": lambda: kernels.decode(codes, w),
            "residual": lambda: kernels.residual(codes, w, rows, rows[0]),
        },
        rounds,
    )


def peak(dim: int, latents: int, k: int, batch: int) -> int:
    """Bytes, of this process, after three steps."""
    ours, rows = Ours(dim, latents, k, batch, "cpu"), data(batch, dim, "cpu")
    for _ in range(3):
        ours(rows)
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[0])


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--tiny", action="store_true", help="a small shape: does it run?")
    parse.add_argument("--peak", action="store_true", help="say only the peak memory")
    parse.add_argument("--rounds", type=int, default=7)
    args = parse.parse_args()
    torch.set_num_threads(1)
    shape = (32, 512, 4, 64) if args.tiny else (512, 16384, 32, 2048)
    if args.peak:
        print(peak(*shape))
        return
    found: dict = {"machine": machine(), "shape": dict(zip(("dim", "latents", "k", "batch"), shape, strict=True))}
    found["cpu_seconds"] = parts(*shape, args.rounds)
    again = [sys.executable, "-m", "bench.features.step", "--peak", *(["--tiny"] if args.tiny else [])]
    peaks = [int(subprocess.run(again, capture_output=True, text=True, check=True).stdout) for _ in range(2)]
    found["peak_bytes"] = peaks[1]  # the first may have compiled the loops, which takes more
    dim, latents, k, batch = shape
    for name, python in there():
        given = {"latents": latents, "batch": batch, "steps": args.rounds + 1, "rate": RATE}
        found.setdefault("others", {})[name] = asked(name, python, data(batch, dim, "cpu"), k, **given)[1]
    print(json.dumps(found, indent=1))
    if not args.tiny:
        (pathlib.Path(__file__).parent / "results" / "cpu.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
