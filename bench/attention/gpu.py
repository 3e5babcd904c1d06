"""Time attention over blocks and over pages on this GPU beside torch's own, in a few minutes: `python -m bench.attention.gpu`.

Heads 32, key-value heads 8, dim 128, bfloat16. Prefill: random causal blocks of 128 x 128, each head its own, beside cuDNN over everything that is
causal and compiled FlexAttention over the same blocks. Decode: one token reads 2048 of its keys, the scoring of pages and their
choice included, as CUDA graphs over copies larger than the cache. `--tiny` does the same on a CPU in Triton's interpreter, to
see that it runs; `--tune` times other cuts. Results go to the folder that OUT names, else beside this file.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable
from functools import partial

if "--tiny" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from bench.kernels import _device as device
from bench.kernels._run import Run
from fewer.kernels import load
from fewer.kernels.attend_blocks import gpu as blocks_gpu
from fewer.layout import Blocks

from . import _decode

TINY = not device.CUDA
DEVICE, DTYPE = ("cpu", torch.float16) if TINY else ("cuda", torch.bfloat16)
HEADS, KV_HEADS, DIM, BLOCK = (4, 2, 16, 16) if TINY else (32, 8, 128, 128)


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE, dtype=DTYPE)


def chosen(length: int, density: float) -> Blocks:
    """Blocks at random below the diagonal, and the diagonal, which is read in part: together `density` of what is causal."""
    n, make = length // BLOCK, torch.Generator(DEVICE).manual_seed(1)
    row = torch.arange(n, device=DEVICE)
    past, here = row[None] < row[:, None], row[None] == row[:, None]
    share = max(0.0, (density * n * (n + 1) / 2 - n) / (n * (n - 1) / 2))
    keep = (torch.rand(1, HEADS, n, n, generator=make, device=DEVICE) < share) & past | here
    return Blocks.pack(torch.where(here, 1, 2).byte().expand_as(keep), keep, (BLOCK, BLOCK))


def inputs(length: int) -> tuple:
    q, k, v = (normal(1, h, length, DIM, seed=s) for s, h in enumerate((HEADS, KV_HEADS, KV_HEADS)))
    place = torch.arange(length, dtype=torch.int32, device=DEVICE)
    return q, k, v, place.expand(1, KV_HEADS, -1).contiguous(), place[None]


def whole(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = True) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH if TINY else backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def peers(blocks: Blocks) -> dict[str, Callable]:
    flex = partial(FLEX, block_mask=blocks.block_mask(lambda b, h, i, j: i >= j), enable_gqa=True)
    return {"flex": flex, "cudnn causal": partial(whole, SDPBackend.CUDNN_ATTENTION)}


FLEX = flex_attention if TINY else torch.compile(flex_attention, dynamic=False)


def error(found: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: Blocks) -> float:
    """Of some rows of some heads, against float64: the norm of the difference over the norm."""
    keep, group, length, worst = blocks.keep()[0], HEADS // KV_HEADS, q.shape[2], 0.0
    for head in (0, HEADS - 1):
        for row in torch.linspace(0, length - 1, 9).int().tolist():
            cols = keep[head, row // BLOCK].repeat_interleave(BLOCK)
            cols &= torch.arange(length, device=DEVICE) <= row
            keys, values = (t[0, head // group, cols].double() for t in (k, v))
            truth = torch.softmax(keys @ q[0, head, row].double() * DIM**-0.5, 0) @ values
            worst = max(worst, float((found[0, head, row].double() - truth).norm() / truth.norm()))
    return worst


def prefill(run: Run, length: int, density: float, others: bool = True) -> None:
    q, k, v, at, now = inputs(length)
    blocks = chosen(length, density)
    mine = partial(load("attend_blocks", "gpu"), q, k, v, blocks, at, now, DIM**-0.5)
    off, read = error(mine()[0], q, k, v, blocks), float(blocks.keep().float().mean())
    calls = {"ours": [mine]}
    if others:
        calls |= {name: [partial(f, q, k, v)] for name, f in peers(blocks).items()}
    what = dict(op="prefill", length=length, density=density)
    print(
        f"prefill {length} {density}: of the square {read:.4f}, largest relative error of a row {off:.1e}", flush=True
    )
    again = 1 if TINY or length > 1 << 16 else 4  # the host is ahead of the device, as in a model
    run.time(
        what | {"relative_error": off}, {n: c * again for n, c in calls.items()}, {}, 5 if again == 1 else 11, False
    )


def train(run: Run, length: int, density: float) -> None:
    """Forward and backward."""
    q, k, v, at, now = inputs(length)
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    blocks, given = chosen(length, density), normal(1, HEADS, length, DIM, seed=9)

    def both(f: Callable) -> tuple:
        with torch.enable_grad():
            return torch.autograd.grad(f(), (q, k, v), given)

    ours = load("attend_blocks", "gpu")
    calls = {"ours": lambda: ours(q, k, v, blocks, at, now, DIM**-0.5)[0]}
    calls |= {name: partial(f, q, k, v) for name, f in peers(blocks).items()}
    mine, theirs = both(calls["ours"]), both(calls["flex"])
    off = [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(mine, theirs, strict=True)]
    print(f"train {length} {density}: dq, dk, dv away from flex by {', '.join(f'{x:.1e}' for x in off)}", flush=True)
    what = dict(op="train", length=length, density=density, from_flex=off)
    run.time(what, {name: [partial(both, f)] * (1 if TINY else 3) for name, f in calls.items()}, {}, 7, False)


# rows, keys, warps, stages, copying unit
CUTS = [(128, 64, 4, 2), (128, 64, 4, 2, False), (128, 64, 4, 3), (128, 128, 8, 2), (64, 64, 4, 2)]
ROWS = [(64, 64, 4, 2), (64, 64, 4, 2, False), (64, 64, 4, 3), (128, 128, 8, 2)]
COLUMNS = [(64, 64, 4, 3), (64, 64, 4, 2), (64, 128, 8, 2)]


def tune(run: Run, length: int, density: float) -> None:
    """Other cuts, forward and backward, beside FlexAttention."""
    q, k, v, at, now = inputs(length)
    blocks, cut = chosen(length, density), blocks_gpu.Cut
    rest = blocks, at, now, DIM**-0.5, 0, 0.0
    calls = {f"{c}": [partial(blocks_gpu.forward, q, k, v, *rest, cut(*c))] for c in CUTS}
    calls["flex"] = [partial(peers(blocks)["flex"], q, k, v)]
    run.time(dict(op="tune forward", density=density), calls, {}, 9, False)
    out, lse = blocks_gpu.forward(q, k, v, *rest)
    back = partial(blocks_gpu.backward, q, k, v, out, lse, normal(*out.shape, seed=9), torch.zeros_like(lse), *rest)
    calls = {f"{c} rows": [partial(back, (cut(*c), cut(*COLUMNS[0])))] for c in ROWS}
    calls |= {f"{c} columns": [partial(back, (cut(*ROWS[0]), cut(*c)))] for c in COLUMNS}
    calls["by columns"] = [partial(blocks_gpu.by_columns, blocks)]
    run.time(dict(op="tune backward", density=density), calls, {}, 7, False)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--tiny", action="store_true", help="small shapes in the interpreter: does it run?")
    parse.add_argument("--tune", action="store_true", help="also other ways to cut the work")
    parse.add_argument("--limit", type=float, default=300, help="seconds after which no further part is begun")
    parse.add_argument("--parts", default="", help="only parts whose name this finds, such as 'prefill|decode'")
    args = parse.parse_args()
    short, long = (64, 128) if TINY else (1 << 15, 1 << 17)
    file = "gpu-tiny.json" if TINY else "gpu.json"
    run = Run(args.limit, args.parts, pathlib.Path(__file__).parent / "results", file)
    with torch.no_grad():
        if args.tune:
            run.part("tune pages", _decode.tune, run, short)
            run.part("tune blocks .1", tune, run, short, 0.1)
            run.part("tune blocks .25", tune, run, short, 0.25)
        for length, batch, page in [(n, 1, p) for n in (short, long) for p in (16, 32, 64)] + [(short, 8, 32)]:
            run.part(f"decode {length} {batch} {page}", _decode.decode, run, length, batch, page)
        for length in (short, long):
            for density in (0.05, 0.1, 0.25):
                run.part(f"prefill {length} {density}", prefill, run, length, density)
        for density in (0.05, 0.1, 0.25):
            run.part(f"train {short} {density}", train, run, short, density)
    print(json.dumps(run.found["machine"]), json.dumps(run.found["failed"])[:3000], run.found["skipped"])


if __name__ == "__main__":
    main()
