"""Time sparse_linear and top_k on this CPU against torch: `python -m bench.kernels.cpu [--quick] [PART ...]`.

A part is a density of 1.0, 0.5, 0.3 and 0.1, or top_k; each takes a minute or so and takes the place of its old lines in
the results, so that a busy machine can be kept quiet for one at a time.
"""

import argparse
import json
import pathlib
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import fewer.kernels as kernels
from fewer.layout import Bitmask, Csr, Dense, Layout, Nm, Tiles

from ._measure import cache_bytes, copies, interleaved, machine, read_bandwidth

HERE = pathlib.Path(__file__).parent / "results"
BATCHES = (1, 4, 16, 128)  # the last for the break-even with dense
DENSITIES = (1.0, 0.5, 0.3, 0.1)


def packed(w: torch.Tensor, density: float) -> dict[str, Layout]:
    """The weight in each layout at this density, stored as bfloat16, and where it is the fastest also otherwise."""
    rows, cols = w.shape
    make = torch.Generator().manual_seed(1)
    keep = torch.rand(rows, cols, generator=make) < density
    tall = (torch.rand(rows // 16, cols, generator=make) < density).repeat_interleave(16, 0)
    small = w.bfloat16()
    out: dict[str, Layout] = {
        "dense bfloat16": Dense(small),
        "csr bfloat16": Csr.pack(small, keep),
        "bitmask bfloat16": Bitmask.pack(small, keep),
        "tiles bfloat16": Tiles.pack(small, tall, height=16),
        "tiles float32": Tiles.pack(w, tall, height=16),
        "tiles int8": Tiles.pack((w * 30).clamp(-127, 127).to(torch.int8), tall, height=16),
    }
    if density == 0.5:
        rank = torch.rand(rows, cols // 4, 4, generator=make).argsort(-1)
        out["nm bfloat16"] = Nm.pack(small, (rank < 2).reshape(rows, cols), m=4)
    if density == 1.0:
        whole = Dense((w * 30).clamp(-127, 127).to(torch.int8))
        return {"dense bfloat16": Dense(small), "dense float32": Dense(w), "dense int8": whole}
    return out


def dense(w: torch.Tensor, x: torch.Tensor, count: int) -> dict[str, list]:
    """What torch has for a weight that is not sparse."""
    out = {"torch float32": [partial(F.linear, x, c) for c in copies(w, count)]}
    small = x.bfloat16()
    out["torch bfloat16"] = [partial(F.linear, small, c) for c in copies(w.bfloat16(), count)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            linear = torch.nn.Sequential(torch.nn.Linear(w.shape[1], w.shape[0], bias=False))
            linear[0].weight.data = w
            made = [
                torch.ao.quantization.quantize_dynamic(linear, {torch.nn.Linear}, torch.qint8) for _ in range(count)
            ]
            made[0](x)
        out["torch qint8"] = [partial(m, x) for m in made]
    except Exception as why:  # not in every build
        print(f"torch qint8 left out: {why}")
    return out


def linear(
    rows: int, cols: int, rounds: int, read: float, densities: Sequence[float], batches: Sequence[int]
) -> Iterator[list[dict]]:
    """sparse_linear at each density and batch, beside torch."""
    w = torch.randn(rows, cols)
    ours = kernels.load("sparse_linear", "cpu")
    for density in densities:
        layouts = packed(w, density)
        count = max(1, min(4, -(-2 * cache_bytes() // (sum(v.bytes for v in layouts.values()) + w.numel() * 7))))
        rotated = {name: copies(v, count) for name, v in layouts.items()}
        csr32 = copies(Csr.pack(w, layouts["csr bfloat16"].keep()).to_torch(), count) if density < 1 else []
        for batch in batches:
            out = []
            x = torch.randn(batch, cols)
            calls = dense(w, x, count)
            size = {"torch float32": w.numel() * 4, "torch bfloat16": w.numel() * 2, "torch qint8": w.numel()}
            for name, same in rotated.items():
                calls[name], size[name] = [partial(ours, x, c) for c in same], layouts[name].bytes
            if csr32:
                across = x.T.contiguous()
                calls["torch csr int32"] = [
                    partial(torch.mm, c, across) if batch > 1 else partial(torch.mv, c, x[0]) for c in csr32
                ]
                size["torch csr int32"] = int(w.numel() * density) * 8
            for name, t in interleaved(calls, rounds, limit=7).items():
                bound = size[name] / read
                what = dict(op="sparse_linear", rows=rows, cols=cols, density=density, batch=batch, name=name)
                out.append(what | t | {"bytes": size[name], "of_bound": bound / t["seconds"]})
            yield out
            print(f"  sparse_linear {density:.0%} batch {batch}: {len(calls)} candidates", flush=True)
        calls = {name: [partial(_unpack, v) for v in same] for name, same in rotated.items()}
        times = interleaved(calls, 3)
        where = dict(op="unpack", rows=rows, cols=cols, density=density, batch=0)
        yield [where | {"name": name} | t for name, t in times.items()]
    tiny = {name: [partial(ours, torch.randn(1, 16), v)] for name, v in packed(torch.randn(16, 16), 0.5).items()}
    yield [dict(op="launch", name=name) | t for name, t in interleaved(tiny, 200).items()]


def _unpack(layout: Layout) -> torch.Tensor:
    return layout.dense().float()  # what a CPU without bfloat16 units multiplies


def top_k(rounds: int, part: int) -> list[dict]:
    """top_k beside the two ways torch has to make the same mask."""

    def by_topk(s: torch.Tensor, k: int) -> torch.Tensor:
        return torch.zeros_like(s, dtype=torch.bool).scatter_(-1, s.topk(k, sorted=False).indices, True)

    def by_sort(s: torch.Tensor, k: int) -> torch.Tensor:
        best = s.argsort(-1, descending=True)[..., :k]
        return torch.zeros_like(s, dtype=torch.bool).scatter_(-1, best, True)

    out, ours = [], kernels.load("top_k", "cpu")
    for rows, cols, k in ((4096, 4096, 2048), (256, 65536, 64), (1, 1 << 24, 1 << 23)):
        score = torch.randn(max(1, rows // part), cols if rows > 1 else cols // part)
        k = min(k, score.shape[1] // 2)
        calls = {
            n: [partial(f, score, k)] for n, f in (("ours", ours), ("torch topk", by_topk), ("torch sort", by_sort))
        }
        for name, t in interleaved(calls, rounds, limit=30).items():
            out.append(dict(op="top_k", rows=score.shape[0], cols=score.shape[1], k=k, name=name) | t)
        print(f"  top_k {list(score.shape)}, k {k}", flush=True)
    return out


def table(rows: list[dict]) -> Table:
    """For people: milliseconds, the spread, the ratio to the faster of torch's float32 and bfloat16, the bound."""
    view = Table("what", "batch", "name", "ms", "quartiles", "x torch", "of bandwidth", title="median, interleaved")
    best: dict[tuple, float] = {}
    for r in rows:
        if r["name"] in ("torch float32", "torch bfloat16", "torch topk"):
            key = (r["op"], r.get("density"), r.get("batch"), r.get("cols"))
            best[key] = min(best.get(key, 1e9), r["seconds"])
    for r in rows:
        key = (r["op"], r.get("density"), r.get("batch"), r.get("cols"))
        if key not in best:
            continue
        what = f"{r['density']:.0%}" if r["op"] == "sparse_linear" else f"top_k [{r['rows']}, {r['cols']}] {r['k']}"
        r["times_torch"] = best[key] / r["seconds"]
        cells = [f"{r['seconds'] * 1e3:.2f}", f"{r['q25'] * 1e3:.2f}-{r['q75'] * 1e3:.2f}", f"{r['times_torch']:.2f}"]
        view.add_row(
            what, str(r.get("batch", "")), r["name"], *cells, f"{r['of_bound']:.0%}" if "of_bound" in r else ""
        )
    return view


def merge(path: pathlib.Path, here: dict, done: list[dict]) -> None:
    """Put these lines in the place of those of the same parts; the bandwidth is the best that was seen."""
    old = json.loads(path.read_text()) if path.exists() else {"machine": here, "results": []}
    new = {(r["op"], r.get("density"), r.get("batch")) for r in done}
    results = [r for r in old["results"] if (r["op"], r.get("density"), r.get("batch")) not in new] + done
    speed = "read_bytes_per_second"
    machine_now = here | {speed: max(here[speed], old["machine"][speed])}
    path.write_text(json.dumps({"machine": machine_now, "results": results}, indent=1) + "\n")


@torch.inference_mode()
def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--quick", action="store_true", help="small shapes, few rounds, nothing written: does it run?")
    parse.add_argument("--rounds", type=int, default=25)
    parse.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parse.add_argument("parts", nargs="*", default=[*map(str, DENSITIES), "top_k"])
    args = parse.parse_args()
    begin, rounds = time.time(), 5 if args.quick else args.rounds
    rows, cols = (512, 256) if args.quick else (8192, 4096)
    here = machine() | {"read_bytes_per_second": read_bandwidth()}
    print(here, flush=True)
    path = HERE / f"cpu-{str(here['vectors']).lower()}-{here['threads']}t.json"
    HERE.mkdir(exist_ok=True)
    with torch.no_grad():
        done = []
        densities = [d for d in DENSITIES if str(d) in args.parts]
        for lines in linear(rows, cols, rounds, here["read_bytes_per_second"], densities, args.batches):
            done += lines
            if not args.quick:
                merge(path, here, lines)
        if "top_k" in args.parts:
            done += top_k(rounds, 64 if args.quick else 1)
    Console(width=120).print(table(done))
    if not args.quick:
        merge(path, here, done)
    best = {f"{r['density']:.0%} batch {r['batch']} {r['name']}": round(r["times_torch"], 2)
            for r in done if r["op"] == "sparse_linear" and "tiles" in r["name"]}  # fmt: skip
    last = {"seconds": round(time.time() - begin), "written": "" if args.quick else path.name, "times_torch": best}
    print(json.dumps(last))


if __name__ == "__main__":
    main()
