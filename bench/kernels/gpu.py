"""Check and time every Triton kernel on this GPU, in one go of a few minutes: `python -m bench.kernels.gpu`.

`--tune` also times other ways to cut the work, for the tables in the kernels' files. `--tiny` does the same on a CPU in Triton's interpreter (TRITON_INTERPRET=1), to see that it runs. Results go to the folder
that the environment variable OUT names, else beside this file.
"""

import argparse
import dataclasses
import importlib
import os
import pathlib
import sys
from functools import partial

if "--tiny" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.nn import functional as F

import fewer.kernels as kernels
from fewer.layout import Bitmask, Bsr, Csr, Gaps, Layout, Nm, Tiles

from . import _device as device
from ._cuts import CUTS, launches
from ._measure import copies
from ._report import report
from ._run import Run

DEVICE = "cuda" if device.CUDA else "cpu"
SMALL = torch.bfloat16 if device.CUDA else torch.float16  # the interpreter has no bfloat16 to be trusted
BATCHES = (1, 4, 16)
MANY = (256, 1024, 4096)  # tokens of a prompt
NM = {0.5: (2, 4), 0.125: (1, 8)}


def check(run: Run, op: str, dtype: torch.dtype) -> None:
    """The cases of the tests, compiled: within twice the reference's own rounding, or equal if not real numbers."""
    cases, bad, count = importlib.import_module(f"fewer.kernels.{op}.cases").cases, [], 0
    for args in cases(dtype, DEVICE):
        count += 1
        label = ", ".join(f"{type(a).__name__} {list(getattr(a, 'shape', []))}" for a in args)
        try:
            truth = kernels.load(op, "ref")(*map(in_double, args))
            ref, out = kernels.load(op, "ref")(*args).cpu(), kernels.load(op, "gpu")(*args).cpu()
        except Exception as why:
            bad.append(f"{label}: {type(why).__name__}: {str(why)[:300]}")
            continue
        if not out.is_floating_point():
            fine = torch.equal(out, truth)
        else:
            allowed = 2 * (ref.double() - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
            fine = bool((out.double() - truth).abs().max() <= allowed)
        bad += [] if fine else [f"{label}: not equal to the reference"]
    run.found["checks"].append({"op": op, "dtype": str(dtype), "cases": count, "bad": bad})


def in_double(a):
    if isinstance(a, torch.Tensor):
        return a.cpu().double() if a.is_floating_point() else a.cpu()
    return dataclasses.replace(a, **{k: in_double(v) for k, v in vars(a).items()}) if dataclasses.is_dataclass(a) else a


def normal(*size: int, seed: int = 0, dtype: torch.dtype = SMALL) -> torch.Tensor:
    """Random numbers from a generator of their own: torch's is of no more use once a capture has failed."""
    return torch.randn(*size, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE).to(dtype)


def packed(rows: int, cols: int, density: float) -> dict[str, Layout]:
    """A random weight in each layout that a kernel reads."""
    make = torch.Generator(DEVICE).manual_seed(1)

    def random(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=make, device=DEVICE)

    w = normal(rows, cols, seed=2)
    keep, tall = random(rows, cols) < density, (random(rows // 16, cols) < density).repeat_interleave(16, 0)
    square = (random(rows // 16, cols // 16) < density).repeat_interleave(16, 0).repeat_interleave(16, 1)
    out: dict[str, Layout] = {"bitmask": Bitmask.pack(w, keep), "tiles": Tiles.pack(w, tall, height=16)}
    out |= {"csr": Csr.pack(w, keep), "bsr": Bsr.pack(w, square, unit=(16, 16)), "gaps": Gaps.pack(w, keep)}
    if density in NM:
        n, m = NM[density]
        pattern = random(rows, cols // m, m).argsort(-1).argsort(-1) < n
        out["nm"] = Nm.pack(w, pattern.reshape(rows, cols), m=m)
    return {name: dataclasses.replace(v, value=v.value.contiguous()) for name, v in out.items()}


def large(run: Run, rows: int, cols: int) -> None:
    """At full size, against float64 on the device, by the norm of the difference."""
    bad, cases = [], 0
    for name, w in (*packed(rows, cols, 0.5).items(), *packed(rows, cols, 0.125).items()):
        for batch in (1, 2, 5, 8, 16):
            x, cases = normal(batch, cols), cases + 1
            try:
                truth = x.double() @ w.dense().double().T
                error = (kernels.load("sparse_linear", "gpu")(x, w).double() - truth).norm() / truth.norm()
                bad += [] if error < 5e-3 else [f"{name} batch {batch}: relative error {error:.1e}"]
            except Exception as why:
                bad.append(f"{name} batch {batch}: {type(why).__name__}: {str(why)[:300]}")
    found = {"op": f"sparse_linear {rows}x{cols}", "dtype": str(SMALL), "cases": cases, "bad": bad}
    run.found["checks"].append(found)


def rotated(w, least: int = 2) -> list:
    """As many copies as overflow the cache."""
    if not device.CUDA:
        return [w]
    size = w.bytes if isinstance(w, Layout) else w.numel() * w.element_size()
    return copies(w, max(least, min(12, -(-device.bytes_to_rotate() // max(size, 1)))))


def dense(run: Run, rows: int, cols: int) -> None:
    """cuBLAS, and torch's own 2:4."""
    w = normal(rows, cols)
    masked = packed(rows, cols, 0.5)["nm"].dense() if device.CUDA else w
    for batch in (*BATCHES, 128):  # beyond the kernels' own, for what is dense there
        x = normal(batch, cols)
        calls = {"torch dense": [partial(F.linear, x, c) for c in rotated(w)]}
        if device.CUDA:
            try:
                semi = [torch.sparse.to_sparse_semi_structured(masked.clone()) for _ in range(4)]
                calls["torch semi-structured"] = [partial(F.linear, x, c) for c in semi]
            except Exception as why:
                run.found["failed"][f"semi-structured {rows}x{cols}"] = str(why)[:300]
        what = dict(op="sparse_linear", rows=rows, cols=cols, density=1.0, batch=batch, stored=str(SMALL)[6:])
        run.time(what, calls, {"torch dense": w.numel() * 2, "torch semi-structured": w.numel() * 9 // 8})


def sparse(run: Run, rows: int, cols: int, density: float) -> None:
    """Every layout, with the launch of the table; and what unpacking takes."""
    ours, layouts = kernels.load("sparse_linear", "gpu"), packed(rows, cols, density)
    same, whole = {name: rotated(w) for name, w in layouts.items()}, rotated(normal(rows, cols))
    what = dict(op="sparse_linear", rows=rows, cols=cols, density=density)
    for batch in BATCHES:
        x = normal(batch, cols)
        calls = {name: [partial(ours, x, w) for w in ws] for name, ws in same.items()}
        calls["torch dense"] = [partial(F.linear, x, w) for w in whole]  # in the same run, to compare
        run.time(what | {"batch": batch, "stored": str(SMALL)[6:]}, calls, {n: w.bytes for n, w in layouts.items()})
    calls = {name: [w.dense for w in ws] for name, ws in same.items()}
    run.time(what | {"op": "unpack", "batch": 0}, calls, {}, replays=5, graphs=False)  # waits for the device


def prompt(run: Run, rows: int, cols: int) -> None:
    """2:4 with many tokens: ours (cuSPARSELt, planned once), torch's own, and cuBLAS on the same weight."""
    w = packed(rows, cols, 0.5)["nm"]
    masked, ours = w.dense(), kernels.load("sparse_linear", "gpu")
    for tokens in MANY if device.CUDA else (16,):
        x = normal(tokens, cols)
        calls = {"torch dense": [partial(F.linear, x, masked)] * 2, "nm": [partial(ours, x, w)] * 2}
        if device.CUDA:
            semi = torch.sparse.to_sparse_semi_structured(masked)
            calls["torch semi-structured"] = [partial(F.linear, x, semi)] * 2
            truth = x.double() @ masked.double().T
            error = float((ours(x, w).double() - truth).norm() / truth.norm())
            found = {"op": f"2:4 {rows}x{cols} {tokens} tokens", "dtype": str(SMALL), "cases": 1}
            run.found["checks"].append(found | {"bad": [] if error < 5e-3 else [f"relative error {error:.1e}"]})
        what = dict(op="sparse_linear", rows=rows, cols=cols, density=0.5, batch=tokens, stored=str(SMALL)[6:])
        run.time(what, calls, {}, replays=8)
        if device.CUDA:  # launched one by one, the host's share counts too
            run.time(what | {"op": "launched"}, calls, {}, replays=8, graphs=False)


def tune(run: Run, shape: tuple[int, int], layout: str, batch: int, tiny: bool) -> None:
    """Other ways to cut the work, for the table in `sparse_linear/gpu.py`."""
    ours = kernels.load("sparse_linear", "gpu")
    same, x = rotated(packed(*shape, 0.5)[layout]), normal(batch, shape[1])
    calls = {
        str(c): [partial(ours, x, w, None, c) for w in same] for c in launches(layout, batch)[: 2 if tiny else None]
    }
    what = dict(op="tune", rows=shape[0], cols=shape[1], layout=layout, batch=batch)
    run.time(what, calls, dict.fromkeys(calls, same[0].bytes), replays=12)


def top_k(run: Run, rows: int, cols: int, k: int) -> None:
    """Equal to the reference, and beside torch's own ways to the same mask."""

    def by_topk(s: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(s, dtype=torch.bool).scatter_(-1, s.topk(k, sorted=False).indices, True)

    def by_sort(s: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(s, dtype=torch.bool).scatter_(-1, s.argsort(-1, descending=True)[..., :k], True)

    score = normal(rows, cols, dtype=torch.float32)
    ours = partial(kernels.load("top_k", "gpu"), score, k)
    label = f"top_k [{rows}, {cols}] {k}"
    try:
        some = slice(0, min(rows, max(1, (1 << 27) // cols)))
        bad = [] if torch.equal(ours()[some], kernels.load("top_k", "ref")(score[some], k)) else ["not the reference"]
    except Exception as why:
        bad = [f"{type(why).__name__}: {str(why)[:300]}"]
    run.found["checks"].append({"op": label, "dtype": "torch.float32", "cases": 1, "bad": bad})
    calls = {"ours": [ours], "torch topk": [partial(by_topk, score)], "torch sort": [partial(by_sort, score)]}
    run.time(
        dict(op="top_k", rows=rows, cols=cols, k=k),
        calls,
        dict.fromkeys(calls, score.numel() * 5),
        replays=7,
        graphs=False,
    )


def launch(run: Run) -> None:
    """What a call takes when there is nothing to do."""
    ours = kernels.load("sparse_linear", "gpu")
    x = normal(1, 64)
    run.time(
        {"op": "launch"},
        {name: [partial(ours, x, w)] * (20 if device.CUDA else 1) for name, w in packed(64, 64, 0.5).items()},
        {},
    )


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--tiny", action="store_true", help="small shapes in the interpreter: does it run?")
    parse.add_argument("--tune", action="store_true", help="also other ways to cut the work")
    parse.add_argument("--limit", type=float, default=430, help="seconds after which no further part is begun")
    parse.add_argument("--parts", default="", help="only parts whose name this finds, such as 'dense|sparse|prompt'")
    args = parse.parse_args()
    shapes = [(32, 64), (16, 128)] if args.tiny else [(14336, 4096), (4096, 14336)]
    file = "gpu.json" if device.CUDA else "gpu-tiny.json"
    run = Run(args.limit, args.parts, pathlib.Path(__file__).parent / "results", file)
    run.found |= {"checks": [], "results": []}
    with torch.no_grad():
        for op in kernels.operations():
            for dtype in (torch.float32, torch.float16, torch.bfloat16)[: None if device.CUDA else 2]:
                if "gpu" in kernels.backends(op):
                    run.part(f"check {op} {dtype}", check, run, op, dtype)
        for shape in shapes:
            run.part(f"check {shape}", large, run, *shape)
        run.part("check of many rows", large, run, *(256, 64) if args.tiny else (327680, 256))  # many for each warp
        run.part("launch", launch, run)
        for shape in shapes:
            run.part(f"dense {shape}", dense, run, *shape)
            for density in (0.5, 0.3, 0.125, 0.1):
                run.part(f"sparse {shape} {density}", sparse, run, *shape, density)
            run.part(f"prompt {shape}", prompt, run, *shape)
        for rows, cols, k in [(64, 256, 8), (1, 5000, 50)] if args.tiny else [
            (4096, 65536, 64), (1, 58720256, 29360128), (14336, 4096, 2048)]:  # fmt: skip
            if "gpu" in kernels.backends("top_k"):
                run.part(f"top_k [{rows}, {cols}]", top_k, run, rows, cols, k)
        for layout, batch in CUTS if args.tune else ():
            for shape in shapes:
                run.part(f"tune {layout} {batch} {shape}", tune, run, shape, layout, batch, args.tiny)
    report(run.found)


if __name__ == "__main__":
    main()
