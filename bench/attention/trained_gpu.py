"""Time the kernels of trained attention on this GPU, in less than six minutes: `python -m bench.attention.trained_gpu`.

First each kernel is compared with its reference in float64 on small crooked shapes: PASS or FAIL for each. Then, in bfloat16 with heads of 128:

- nsa: 64 heads in groups of 16, 4 and 1, every query reads 16 blocks of 64 keys (the first, the two newest, others at random),
  forward and backward, beside dense SDPA (flash, cuDNN), compiled FlexAttention with the same mask at 8k, and fla where it is found;
- dsa: 64 heads share one list of 2048 keys;
- indexer: 64 index heads over 128k, the best 2048 of each query, beside torch (a sample of its chunks, told as all of them);
- entmax: alpha 1.5, plain and peaked scores, forward and backward, beside adasplash where it is found and cuDNN's softmax.

Peers are looked for as wheels in `.whl/` of the repository. `--tiny` runs the same on a CPU in Triton's interpreter, `--tune` times other cuts. Results go
to the folder that OUT names, else beside this file.
"""

import argparse
import json
import os
import pathlib
import sys
from functools import partial

if "--tiny" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from bench.kernels import _device as device
from bench.kernels._run import Run
from fewer.kernels import load
from fewer.kernels.attend_chosen import gpu as chosen_gpu
from fewer.kernels.entmax_attention import gpu as entmax_gpu
from fewer.kernels.index_top_k import gpu as index_gpu

from . import _trained as others
from ._trained import DEVICE, TINY, gradients, normal, positions

HEADS, DIM, BLOCK, READS = (4, 16, 16, 2) if TINY else (64, 128, 64, 16)


def lists(length: int, units: int, block: int = BLOCK, reads: int = READS) -> torch.Tensor:
    """[1, units, length, reads]: the first block and the two newest, others of the past at random."""
    blocks, make = length // block, torch.Generator(DEVICE).manual_seed(1)
    here, each, out = torch.arange(length, device=DEVICE)[:, None] // block, torch.arange(blocks, device=DEVICE), []
    for _ in range(units):
        want = torch.rand(length, blocks, generator=make, device=DEVICE)
        if block > 1:
            want += ((each == 0) | (each >= here - 1)) * 2.0
        best = want.masked_fill_(each > here, -1.0).topk(min(reads, blocks))
        out.append(torch.where(best.values < 0, -1, best.indices).int())
    return torch.stack(out)[None]


def inputs(length: int, heads: int, units: int) -> tuple[torch.Tensor, ...]:
    return tuple(normal(1, h, length, DIM, seed=s) for s, h in enumerate((heads, units, units)))


def off(mine: torch.Tensor, other: torch.Tensor) -> float:
    return float((mine.float() - other.float()).norm() / other.float().norm())


def nsa(run: Run, length: int, units: int, backward: bool = True) -> None:
    qkv, index = inputs(length, HEADS, units), lists(length, units)
    at, now = positions(length, units)
    ours = partial(load("attend_chosen", "gpu"), index=index, block=BLOCK, at=at, now=now, scale=DIM**-0.5)
    calls = {"ours": lambda q, k, v: ours(q, k, v)[0]} | others.dense()
    if length <= 1 << 13 and units == HEADS // 16:
        calls |= others.flex(index, BLOCK)
    calls |= others.fla(index, BLOCK, HEADS // units)
    given, truth = normal(1, HEADS, length, DIM, seed=9), {}
    for name in ("flex, same mask", "fla"):
        if name in calls:
            mine, theirs = gradients(calls["ours"], qkv, given), gradients(calls[name], qkv, given)
            truth[f"from {name}"] = [off(a, b) for a, b in zip(mine, theirs, strict=True)]
    again = gradients(calls["ours"], qkv, given), gradients(calls["ours"], qkv, given)
    same = all(torch.equal(a, b) for a, b in zip(*again, strict=True))
    del again
    what = dict(op="nsa forward and backward", length=length, group=HEADS // units)
    print(*what.values(), truth, "the same twice" if same else "NOT the same twice", flush=True)
    timed = {name: [partial(gradients, f, qkv, given)] for name, f in calls.items()}
    run.time(what | {"away": truth, "same": same}, timed, {}, 5, False)
    with torch.no_grad():
        run.time(what | {"op": "nsa forward"}, {n: [partial(f, *qkv)] for n, f in calls.items()}, {}, 5, False)


def dsa(run: Run, length: int, reads: int) -> None:
    """Keys one by one, one list for all heads."""
    qkv, index = inputs(length, HEADS, 1), lists(length, 1, 1, reads)
    at, now = positions(length, 1)
    ours = partial(load("attend_chosen", "gpu"), index=index, block=1, at=at, now=now, scale=DIM**-0.5)
    calls = {"ours": lambda q, k, v: ours(q, k, v)[0]} | others.dense()
    what = dict(op="dsa forward", length=length, reads=reads)
    with torch.no_grad():
        run.time(what, {n: [partial(f, *qkv)] for n, f in calls.items()}, {}, 5, False)
    given = normal(1, HEADS, length, DIM, seed=9)
    timed = {name: [partial(gradients, f, qkv, given)] for name, f in calls.items()}
    run.time(what | {"op": "dsa forward and backward"}, timed, {}, 3, False)


def indexer(run: Run, length: int, heads: int, top: int) -> dict:
    q, k, weight = normal(1, heads, length, DIM), normal(1, length, DIM, seed=1), normal(1, heads, length, seed=2)
    at, now = (t.contiguous() for t in positions(length, 1))
    at, find = at[:, 0], load("index_top_k", "gpu")
    size = sum(t.numel() * t.element_size() for t in (q, k, weight, at, now)) + 4 * length * top
    if device.CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    found = find(q, k, weight, at, now, top)
    peak = torch.cuda.max_memory_allocated() - before if device.CUDA else 0
    inside = sum(t.numel() * t.element_size() for t in (q, k, weight, at, now))
    checks = others.chosen_well(found, q, k, weight, top)
    what = dict(op="indexer", length=length, top=top)
    run.time(what, {"ours": [partial(find, q, k, weight, at, now, top)]}, {}, 3, False)
    share = others.sample_of_torch(q, k, weight, top)
    run.time(what, {"torch, a sample of its chunks": [share[0]]}, {}, 3, False)
    a, b = (r["seconds"] for r in run.found["results"][-2:])
    return checks | {"peak of in and out": (peak + inside) / size, "ours": a, "torch": b * share[1]}


def entmax(run: Run, length: int, heads: int, peaked: float) -> None:
    q, k, v = inputs(length, heads, heads)
    qkv = q * peaked, k, v
    at, now = positions(length, heads)
    ours = partial(load("entmax_attention", "gpu"), alpha=1.5, at=at, now=now, scale=DIM**-0.5)
    calls = {"ours": lambda q, k, v: ours(q, k, v), "general": lambda q, k, v: ours(q, k, v, alpha=1.4999)}
    calls |= others.adasplash() | others.dense()
    given, what = normal(1, heads, length, DIM, seed=9), dict(op="entmax", length=length, peaked=peaked)
    away = {"from float64": others.entmax_rows(calls["ours"](*qkv), *qkv)}
    if "adasplash" in calls:
        away["adasplash from float64"] = others.entmax_rows(calls["adasplash"](*qkv), *qkv)
        pairs = zip(*(gradients(calls[n], qkv, given) for n in ("ours", "adasplash")), strict=True)
        away["gradients from adasplash"] = [off(a, b) for a, b in pairs]
    task = entmax_gpu.Task(DIM**-0.5, 0, 0.0, True, entmax_gpu.cut_of(DIM, 2))
    alphas = torch.full((heads,), 1.5, device=DEVICE)
    counts = entmax_gpu.forward(*qkv, alphas, at, now, task)[2]
    away["tiles with weight"] = float(counts.float().mean() / (-(-length // task.cut.cols) / 2))
    print(*what.values(), away, flush=True)
    run.time(what | away, {n: [partial(gradients, f, qkv, given)] for n, f in calls.items()}, {}, 5, False)
    with torch.no_grad():
        run.time(what | {"op": "entmax forward"}, {n: [partial(f, *qkv)] for n, f in calls.items()}, {}, 5, False)


THERE = [(128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 1), (128, 64, 8, 1), (128, 64, 4, 2)]
BACK = [(64, 64, 8, 2), (64, 64, 4, 1), (32, 64, 4, 2), (64, 64, 8, 2, 64, 128), (128, 64, 8, 2), (64, 64, 8, 2, 16)]
SPLASH = [((8, 3), (8, 2), (8, 2)), ((8, 2), (8, 1), (8, 1)), ((4, 2), (4, 2), (4, 2))]
KEEPS = [(64, 128, 8, 3, 2, 128), (64, 256, 8, 3), (64, 128, 8, 3), (128, 128, 8, 3), (64, 128, 8, 2, 2, 128)]


def tune(run: Run, length: int) -> None:
    """Other cuts; and the two ways of attend_chosen."""
    at, now = positions(length, 16)
    for units in (4, 16):
        qkv, index, given = inputs(length, HEADS, units), lists(length, units), normal(1, HEADS, length, DIM, seed=9)
        ours = partial(
            load("attend_chosen", "gpu"), index=index, block=BLOCK, at=at[:, :units], now=now, scale=DIM**-0.5
        )
        cut, cuts = chosen_gpu.Cut, chosen_gpu.Cuts
        ways = {f"there {c}": dict(cuts=cuts(there=cut(*c)), by_queries=False) for c in THERE}
        ways |= {"by queries": dict(by_queries=True)}
        with torch.no_grad():
            calls = {n: [partial(ours, *qkv, **how)] for n, how in ways.items()}
            calls["lists"] = [partial(chosen_gpu.by_blocks, index.flatten(0, 1), length // BLOCK)]
            run.time(dict(op="tune there", group=HEADS // units), calls, {}, 5, False)
        ways = {f"back {c}": dict(cuts=cuts(back=cut(*c)), by_queries=False) for c in BACK}
        ways |= {"by queries": dict(by_queries=True)}
        calls = {n: [partial(gradients, lambda *x, f=ours, h=h: f(*x, **h)[0], qkv, given)] for n, h in ways.items()}
        run.time(dict(op="tune back", group=HEADS // units), calls, {}, 5, False)
    qkv, given = inputs(length, 16, 16), normal(1, 16, length, DIM, seed=9)
    ours = partial(load("entmax_attention", "gpu"), alpha=1.5, at=at, now=now, scale=DIM**-0.5)
    for rows in (128, 64):
        cuts = {f"{rows} {c}": entmax_gpu.Cut(rows, 64, *c) for c in SPLASH}
        calls = {n: [partial(gradients, lambda *x, c=c: ours(*x, cut=c), qkv, given)] for n, c in cuts.items()}
        run.time(dict(op="tune entmax"), calls, {}, 3, False)
    q, k, weight = normal(1, 64, length, DIM), normal(1, length, DIM, seed=1), normal(1, 64, length, seed=2)
    find = partial(load("index_top_k", "gpu"), q, k, weight, at[:, 0].contiguous(), now, 64 if TINY else 2048)
    run.time(dict(op="tune indexer"), {f"{c}": [partial(find, cut=index_gpu.Cut(*c))] for c in KEEPS}, {}, 3, False)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--tiny", action="store_true", help="small shapes in the interpreter: does it run?")
    parse.add_argument("--tune", action="store_true", help="other ways to cut the work")
    parse.add_argument("--limit", type=float, default=300, help="seconds after which no further part is begun")
    parse.add_argument("--parts", default="", help="only parts whose name this finds, such as 'check|nsa'")
    args = parse.parse_args()
    file = "trained-gpu-tiny.json" if TINY else "trained-gpu-h100.json"
    run = Run(args.limit, args.parts, pathlib.Path(__file__).parent / "results", file)
    for op in ("attend_chosen", "index_top_k", "entmax_attention"):
        run.part(f"check {op}", others.check, op)
    if args.tune:
        run.part("tune", tune, run, 64 if TINY else 1 << 14)
    size = 5 if TINY else 10  # two to the power of
    for units in (HEADS // 4, HEADS) if TINY else (4, 16, 64):
        for more in (5, 4, 3, 6):
            run.part(f"nsa {units} {1 << more}k", nsa, run, 1 << (size + min(more, 1 if TINY else more)), units)
        if units == (HEADS // 4 if TINY else 4):
            run.part("indexer", indexer, run, *((64, 2, 8) if TINY else (1 << 17, 64, 2048)))
            for more, peaked in ((4, 1.0), (5, 1.0), (4, 4.0), (3, 1.0)):
                run.part(
                    f"entmax {1 << more}k {peaked}",
                    entmax,
                    run,
                    64 if TINY else 1 << (size + more),
                    2 if TINY else 32,
                    peaked,
                )
            run.part("dsa", dsa, run, *((32, 8) if TINY else (1 << 14, 2048)))
    others.table(run.found)
    print(json.dumps(run.found["machine"]), json.dumps(run.found["failed"])[:3000], run.found["skipped"])


if __name__ == "__main__":
    main()
