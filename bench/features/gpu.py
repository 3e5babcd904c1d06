"""Dictionaries on a GPU: kernels against float64, ways to encode, whole steps and all prefixes: `python -m bench.features.gpu`.

Writes $OUT/features-gpu.json after each part (bench/features/results/ without $OUT). `--tiny`: small shapes, in the interpreter.
"""

import argparse
import importlib
import json
import pathlib
import re
import subprocess
import sys

import torch
from torch.nn import functional as F

import fewer.kernels as kernels
from bench.kernels import _device as device
from bench.kernels._run import Run
from fewer.kernels.adam import Move
from fewer.layout import Codes

from ._device import CUDA, DEVICE, SMALL, host, ms, normal, profile
from ._product import fused
from ._steps import Ours, Plain, bound, data

OPS = ("encode", "decode", "correlate", "collect", "adam", "places", "prefixes", "residual")
SHAPES = {"gemma": (2304, 65536, 64, 4096), "gpt2": (768, 16384, 32, 4096)}
TINY = {"tiny": (48, 9000, 4, 8)}


def checks() -> list:
    """Each operation in a process of its own: compiling is what takes the time."""
    work = [subprocess.Popen([sys.executable, "-m", "bench.features.check", op], stdout=subprocess.PIPE) for op in OPS]
    done = [w.communicate()[0].decode() for w in work]
    found = [
        json.loads(text.splitlines()[-1]) if text.strip() else [{"op": op, "bad": "died"}]
        for op, text in zip(OPS, done, strict=True)
    ]
    return [row for rows in found for row in rows]


def encoding(dim: int, latents: int, k: int, batch: int) -> dict:
    """The ways to find the k best pre-activations, and that they find the same."""
    gpu = importlib.import_module("fewer.kernels.encode.gpu")
    x, w, b = normal(batch, dim), normal(latents, dim, seed=1) / dim**0.5, normal(latents, seed=2) * 0.1
    pre = F.linear(x, w, b)
    index, value = (torch.empty(batch, k, dtype=kind, device=DEVICE) for kind in (torch.int64, SMALL))
    group = gpu.group_of(latents, k)
    found: dict = {"group": group, "encode": ms(lambda: gpu.encode(x, w, b, k, False))}
    at, best = gpu.encode(x, w, b, k, False)[0], pre.topk(k, dim=1)[0]
    mine = pre.gather(1, at).sort(1, descending=True)[0]
    found["same values as torch.topk"] = bool(torch.equal(mine, best)) and bool((at.diff(dim=1) > 0).all())
    mine, top = fused(x, w, b, group, False)
    gpu.best(mine, False, index, value, group, top)
    found["share of places alike, own product"] = (index == at).float().mean().item()
    found["the same twice"] = bool(torch.equal(gpu.encode(x, w, b, k, False)[0], at))
    found["cuBLAS alone"] = ms(lambda: F.linear(x, w, b))
    found["own product and groups' best"] = ms(lambda: fused(x, w, b, group, False))
    found["ranking alone"] = ms(lambda: gpu.best(pre, False, index, value, group))
    found["torch.topk alone"] = ms(lambda: pre.topk(k, dim=1, sorted=False), n=5)
    found["kernels.top_k and places"] = ms(
        lambda: kernels.load("places", "gpu")(kernels.load("top_k", "gpu")(pre, k), k), graph=False, n=5
    )
    kept, times = (gpu.GROUPS, gpu.LANES), {}
    for size in (16, 32, 64):
        for lanes in (16, 32, 64, 128):
            gpu.GROUPS, gpu.LANES = (size,), lanes
            if gpu.group_of(latents, k):
                times[size, lanes] = ms(lambda size=size: gpu.best(pre, False, index, value, size), n=7)["ms"]
    gpu.GROUPS, gpu.LANES = kept
    if times:
        size, gpu.LANES = min(times, key=times.get)
        gpu.GROUPS = (size, *kept[0])
    found |= {f"ranking, groups of {size}, {lanes} a lane": t for (size, lanes), t in times.items()}
    return found


def pieces(dim: int, latents: int, k: int, batch: int) -> dict:
    """Each kernel of the step by itself; uses spread evenly, and with eight latents that every row uses."""
    make = torch.Generator(DEVICE).manual_seed(3)
    even = torch.randint(latents, (batch, k), generator=make, device=DEVICE)
    dense = even.clone()
    dense[:, : min(8, k)] = torch.arange(min(8, k), device=DEVICE)
    value, y = normal(batch, k, seed=4, dtype=torch.float32), normal(batch, dim, seed=5)
    atoms, found = normal(latents, dim, seed=6), {}
    wide = atoms.float()
    state = [wide.clone(), torch.zeros_like(wide), torch.zeros_like(wide)]
    op = {name: kernels.load(name, "gpu") for name in OPS}
    codes = {"even": Codes(even, value, latents), "dense": Codes(dense, value, latents)}
    found["decode"] = ms(lambda: op["decode"](codes["even"], atoms))
    found["decode, float32 atoms"] = ms(lambda: op["decode"](codes["even"], wide))
    found["correlate"] = ms(lambda: op["correlate"](y, atoms, even))
    found["residual"] = ms(lambda: op["residual"](codes["even"], atoms, y, y[0]))
    found["sort"] = ms(lambda: importlib.import_module("fewer.kernels.collect.gpu").by_atom(codes["even"]))
    for name, c in codes.items():
        found[f"collect, {name}"] = ms(lambda c=c: op["collect"](c, y))
        found[f"adam, {name}"] = ms(lambda c=c: op["adam"](*state, c, y, Move(1e-3, 2, unit=True), atoms))
    found["adam's bytes, ms"] = round(latents * dim * 26 / device.copy_bandwidth() * 1e3, 3)
    found["collect twice the same"] = bool(
        torch.equal(op["collect"](codes["dense"], y), op["collect"](codes["dense"], y))
    )
    truth = torch.zeros(latents, dim, dtype=torch.float64, device=DEVICE)
    truth.index_add_(
        0, dense.flatten(), (value[..., None].double() * y[:, None].double()).flatten(0, 1)
    ) if batch * k * dim < 2e8 else None
    if truth.any():
        found["collect's error"] = ((op["collect"](codes["dense"], y.float()) - truth).norm() / truth.norm()).item()
    return found


def steps(dim: int, latents: int, k: int, batch: int) -> dict:
    """A whole step; losses of both from the same start say whether it is the same step."""
    ours = Ours(dim, latents, k, batch, DEVICE)
    plain = Plain(ours, k)
    rows = [data(batch, dim, DEVICE, seed) for seed in range(4)]
    losses = {name: [step(rows[i % 4]).item() for i in range(5)] for name, step in (("ours", ours), ("plain", plain))}
    found: dict = {"losses": losses}
    found["ours, graph"] = ms(lambda: ours(rows[0]))
    found["ours, launched"] = ms(lambda: ours(rows[1]), graph=False)
    found["plain, launched"] = ms(lambda: plain(rows[1]), graph=False, n=8)
    found["plain, graph"] = ms(lambda: plain(rows[0]), n=8)
    a, b = normal(batch, dim), normal(latents, dim, seed=1)
    product = ms(lambda: F.linear(a, b))
    flops = 2 * batch * dim * latents / (product["ms"] / 1e3)
    found |= {"cuBLAS product": product, "TFLOP/s": round(flops / 1e12)}
    found["bound, ms"] = round(bound(dim, latents, batch, flops, device.copy_bandwidth()) * 1e3, 3)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ours(rows[0])
        found["bytes beyond state"] = torch.cuda.max_memory_allocated() - before
        found["kernels, us"] = profile(lambda: ours(rows[0]))
        found["host, us"] = host(lambda: ours(rows[0]))
    return found


def nested(dim: int, latents: int, k: int, batch: int) -> dict:
    """Loss of all prefixes, and the gradients of values, atoms and target."""
    from fewer.features import Runs, missed

    make = torch.Generator(DEVICE).manual_seed(3)
    index = torch.randint(latents, (batch, k), generator=make, device=DEVICE)
    found, weight, zero = {}, torch.full((k,), 1 / k, device=DEVICE), torch.zeros(dim, device=DEVICE)
    for dtype in (SMALL, torch.float32):
        value = normal(batch, k, seed=4, dtype=torch.float32).requires_grad_()
        atoms = (normal(latents, dim, seed=6, dtype=torch.float32) / dim**0.5).to(dtype).requires_grad_()
        y = normal(batch, dim, seed=5, dtype=dtype)

        def both(value=value, atoms=atoms, y=y):
            value.grad = atoms.grad = None
            codes = Codes(index, value, latents)
            missed(codes, Runs(codes, range(1, k + 1), [1 / k] * k), atoms, y, zero.to(y.dtype))[0].backward()

        def there(value=value, atoms=atoms, y=y):
            with torch.no_grad():
                return kernels.prefixes(Codes(index, value, latents), atoms, y, weight)

        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if CUDA else 0
        found[f"{dtype}, forward and backward"] = ms(both, graph=False, n=9)
        found[f"{dtype}, peak bytes beyond"] = (torch.cuda.max_memory_allocated() if CUDA else 0) - before
        found[f"{dtype}, kernel alone"] = ms(there, graph=False, n=9)
        first = atoms.grad.clone()
        both()
        found[f"{dtype}, the same twice"] = bool(torch.equal(first, atoms.grad))
    return found


def tune(dim: int, latents: int, k: int, batch: int) -> dict:
    """Other ways to cut the kernels that gather."""
    index = torch.randint(latents, (batch, k), generator=torch.Generator(DEVICE).manual_seed(3), device=DEVICE)
    codes, y = Codes(index, normal(batch, k, seed=4, dtype=torch.float32), latents), normal(batch, dim, seed=5)
    atoms, found = normal(latents, dim, seed=6), {}
    calls = {
        "decode": lambda do: do(codes, atoms),
        "correlate": lambda do: do(y, atoms, index),
        "residual": lambda do: do(codes, atoms, y, y[0]),
        "collect": lambda do: do(codes, y),
    }
    for op, call in calls.items():
        module, do = importlib.import_module(f"fewer.kernels.{op}.gpu"), kernels.load(op, "gpu")
        times: dict = {}
        for wide in (256, 512):
            for many in (1, 2, 4, 8):
                module.WIDE, module.MANY = wide, many
                times[wide, many] = ms(lambda call=call, do=do: call(do), n=7)["ms"]
        module.WIDE, module.MANY = min(times, key=times.get)
        found |= {f"{op} {wide} {many}": t for (wide, many), t in times.items()}
    return found | tune_adam(codes, y, atoms)


def tune_adam(codes: Codes, y: torch.Tensor, atoms: torch.Tensor) -> dict:
    module, do = importlib.import_module("fewer.kernels.adam.gpu"), kernels.load("adam", "gpu")
    state, found = [atoms.float(), torch.zeros_like(atoms.float()), torch.zeros_like(atoms.float())], {}
    names = {True: ("WHOLE_MANY", "WHOLE_LANES"), False: ("MANY", "TILE")}
    for unit, cuts in (
        (True, [(1, 512), (2, 256), (4, 256), (2, 512), (4, 512), (2, 1024)]),
        (False, [(2, 256), (4, 256), (2, 512), (4, 512), (2, 1024), (4, 1024), (4, 4096)]),
    ):
        times: dict = {}
        for cut in cuts:
            vars(module).update(zip(names[unit], cut, strict=True))
            times[cut] = ms(lambda unit=unit: do(*state, codes, y, Move(1e-3, 2, unit=unit), atoms), n=7)["ms"]
        vars(module).update(zip(names[unit], min(times, key=times.get), strict=True))
        found |= {f"adam {'unit' if unit else 'free'} {many} {lanes}": t for (many, lanes), t in times.items()}
    return found


def compiled(dim: int, latents: int, k: int, batch: int) -> dict:
    """The textbook's loss through torch.compile."""
    plain, rows = Plain(Ours(dim, latents, k, batch, DEVICE), k), data(batch, dim, DEVICE)
    plain.loss = torch.compile(plain.loss)
    return {"plain, compiled": ms(lambda: plain(rows), graph=False, n=8)}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--tiny", action="store_true", help="small shapes in the interpreter: does it run?")
    parse.add_argument("--limit", type=float, default=110, help="seconds after which no further part is begun")
    parse.add_argument("--parts", default="", help="only parts whose name holds one of these, comma between")
    args = parse.parse_args()
    parts = "|".join(re.escape(p) for p in args.parts.split(",") if p)
    run = Run(args.limit, parts, pathlib.Path(__file__).parent / "results", "features-gpu.json")
    shapes = TINY if args.tiny else SHAPES
    run.part("checks", checks)
    run.part("tune", tune, *((48, 90, 4, 3) if args.tiny else SHAPES["gemma"]))
    for name, shape in reversed(shapes.items()):
        run.part(f"encode {name}", encoding, *shape)
    for name, shape in shapes.items():
        run.part(f"step {name}", steps, *shape)
    for k in (2,) if args.tiny else (32, 64, 128):
        run.part(f"prefixes {k}", nested, *((48, 90, k, 3) if args.tiny else (2304, 65536, k, 4096)))
    for name, shape in shapes.items():
        run.part(f"pieces {name}", pieces, *((48, 90, 4, 3) if args.tiny else shape))
    if CUDA:
        for name, shape in shapes.items():
            run.part(f"compiled {name}", compiled, *shape)
    print(json.dumps({"failed": run.found["failed"], "skipped": run.found["skipped"]}))


if __name__ == "__main__":
    main()
