"""Time attention on this CPU against torch: `python -m bench.attention.cpu [--quick] [--rounds N] [PART ...]`.

A part is decode-8192, decode-32768, decode-131072 or prefill; each takes the place of its old lines in the results, so that a
busy machine can be kept quiet for one at a time. Decode: one query, 32 heads, 8 of keys and values, 128 channels; all pages
by index, and a budget of 2048 tokens with all that choosing them takes. Prefill: 4096 tokens, 4 heads.
"""

import argparse
import json
import os
import pathlib
import time
from collections.abc import Iterator
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from bench.kernels._measure import cache_bytes, interleaved, machine, read_bandwidth
from fewer.kernels import load, top_k
from fewer.layout import Blocks

HERE = pathlib.Path(__file__).parent / "results"
HEADS, SHARED, DIM, PAGE, BUDGET = 32, 8, 128, 16, 2048
PARTS = ("decode-8192", "decode-32768", "decode-131072", "prefill")


def grouped(q, k, v):
    """Queries that share keys as the rows of one product."""
    score = q.view(1, SHARED, -1, DIM) @ k.mT * DIM**-0.5
    return (score.softmax(-1) @ v).view(q.shape)


def chosen(q, k, v, at, now, low, high, table):
    """Quest: bound every page, take the best, read those."""
    bound = load("page_bounds", "cpu")(q, low, high, table, DIM**-0.5)
    keep = top_k(bound.view(1, SHARED, -1, bound.shape[-1]).amax(2), BUDGET // PAGE)
    best = table[keep].view(1, SHARED, -1)
    return load("attend_pages", "cpu")(q, k, v, at, best, now, DIM**-0.5)[0]


def decode(keys: int, rounds: int) -> list[dict]:
    """float32 and bfloat16 stores in one run."""
    pages = SHARED * keys // PAGE
    at = torch.arange(keys).repeat(SHARED).view(pages, PAGE).int()
    table, now = torch.arange(pages).view(1, SHARED, -1).int(), torch.full((1, 1), keys, dtype=torch.int32)
    whole, calls, size = load("attend_pages", "cpu"), {}, {}
    for kind in (torch.float32, torch.bfloat16):
        name, each = str(kind).removeprefix("torch."), 2 * SHARED * keys * DIM * kind.itemsize
        count = max(1, min(4, -(-2 * cache_bytes() // each)))
        q = torch.randn(1, HEADS, 1, DIM).to(kind)
        stores = [torch.randn(2, 1, SHARED, keys, DIM).to(kind) for _ in range(count)]
        paged = [s.view(2, pages, PAGE, DIM) for s in stores]
        ends = [(p[0].amin(1), p[0].amax(1)) for p in paged]
        calls[f"sdpa {name}"] = [partial(F.scaled_dot_product_attention, q, *s, enable_gqa=True) for s in stores]
        calls[f"grouped {name}"] = [partial(grouped, q, *s) for s in stores]
        calls[f"all pages {name}"] = [partial(whole, q, *p, at, table, now, DIM**-0.5) for p in paged]
        some = [partial(chosen, q, *p, at, now, *e, table) for p, e in zip(paged, ends, strict=True)]
        calls[f"budget {BUDGET} {name}"] = some
        size |= {f"{n} {name}": each for n in ("sdpa", "grouped", "all pages")}
        size[f"budget {BUDGET} {name}"] = each // PAGE + each * BUDGET // keys
    what = dict(op="decode", part=f"decode-{keys}", keys=keys)
    return [what | dict(name=n, bytes=size[n]) | t for n, t in interleaved(calls, rounds, limit=40).items()]


def patterns(length: int, block: int) -> Iterator[tuple[str, Blocks, int]]:
    """Name, blocks, window."""
    make, i = torch.Generator().manual_seed(0), torch.arange(length)
    causal = i[:, None] >= i
    yield "causal", Blocks.of_tokens(causal[None, None], (block, block)), 0
    window = length // 8
    near = causal & (i[:, None] - i < window)
    yield f"window {window}", Blocks.of_tokens(near[None, None], (block, block)), window
    count = length // block
    for share in (0.1, 0.25, 0.5):
        keep = (torch.rand(count, count, generator=make) < share) | torch.eye(count, dtype=torch.bool)
        kinds = 2 - torch.eye(count, dtype=torch.uint8)
        name = f"causal blocks {share:.0%}"
        yield name, Blocks.pack(kinds[None, None], keep.tril()[None, None], (block, block)), 0


def prefill(length: int, rounds: int) -> Iterator[list[dict]]:
    """Beside torch's causal SDPA and its compiled FlexAttention on the same blocks."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = torch.randn(3, 1, 4, length, DIM).unbind()
    place = torch.arange(length).int()
    at, now = place.expand(1, 4, -1).contiguous(), place[None]
    full = length // 128 * (length // 128 + 1) / 2
    for name, blocks, window in patterns(length, 128):
        torch.compiler.reset()

        def mask(b, h, i, j, window=window):
            return (i >= j) & (i - j < window) if window else i >= j

        flex = partial(torch.compile(flex_attention), q, k, v, block_mask=blocks.block_mask(mask))
        ours = partial(load("attend_blocks", "cpu"), q, k, v, blocks, at, now, DIM**-0.5, window)
        calls = {"sdpa causal": [partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)], "ours": [ours]}
        first = {}
        for who, call in (("flex compiled", flex), ("ours", ours)):
            start = time.perf_counter()
            try:
                call()
            except Exception as why:  # no C++ compiler, say
                print(f"{who} left out: {str(why)[:200]}")
                continue
            first[who] = time.perf_counter() - start
            calls[who] = [call]
        what = dict(op="prefill", part="prefill", keys=length, pattern=name)
        what["density"] = blocks.keep().sum().item() / full  # of causal blocks
        times = interleaved(calls, rounds, limit=20)
        print(f"  {name}: " + ", ".join(f"{n} {t['least'] * 1e3:.1f} ms" for n, t in times.items()), flush=True)
        yield [what | dict(name=n, first_call=first.get(n)) | t for n, t in times.items()]


def table(rows: list[dict]) -> Table:
    """Milliseconds, and how many times faster than torch's SDPA with the same numbers and in float32, by the least times."""
    view = Table(
        "what", "name", "least ms", "median ms", "quartiles", "x sdpa", "x sdpa float32", "GB/s", "first call s"
    )
    least = {(r["part"], r.get("pattern"), r["name"]): r["least"] for r in rows}
    for r in rows:
        where = r["part"], r.get("pattern")
        same = "sdpa causal" if r["op"] == "prefill" else f"sdpa {r['name'].split()[-1]}"
        wide = "sdpa causal" if r["op"] == "prefill" else "sdpa float32"
        what = f"{r['keys']} {r['pattern']}, {r['density']:.2f} of causal" if "pattern" in r else f"decode {r['keys']}"
        ms = [f"{r[n] * 1e3:.2f}" for n in ("least", "seconds")]
        ratios = [f"{least[*where, n] / r['least']:.2f}" for n in (same, wide)]
        speed = f"{r['bytes'] / r['least'] / 1e9:.1f}" if "bytes" in r else ""
        first = f"{r['first_call']:.2f}" if r.get("first_call") else ""
        view.add_row(what, r["name"], *ms, f"{r['q25'] * 1e3:.2f}-{r['q75'] * 1e3:.2f}", *ratios, speed, first)
    return view


def merge(path: pathlib.Path, here: dict, done: list[dict]) -> None:
    """Put these lines in the place of those of the same parts; each remembers the load it was measured under."""
    old = json.loads(path.read_text())["results"] if path.exists() else []
    new = {r["part"] for r in done}
    results = [r for r in old if r["part"] not in new] + done
    path.write_text(json.dumps({"machine": here, "results": results}, indent=1) + "\n")


@torch.inference_mode()
def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--quick", action="store_true", help="small shapes, few rounds, nothing written: does it run?")
    parse.add_argument("--rounds", type=int, default=15)
    parse.add_argument("parts", nargs="*", default=PARTS)
    args = parse.parse_args()
    if wrong := set(args.parts) - set(PARTS):
        parse.error(f"no part {', '.join(sorted(wrong))}; there are: {', '.join(PARTS)}")
    rounds, done = 5 if args.quick else args.rounds, []
    here = machine() | {"read_bytes_per_second": read_bandwidth()}
    print(here, flush=True)
    path = HERE / f"cpu-{str(here['vectors']).lower()}-{here['threads']}t.json"
    for part in args.parts:
        load_before = os.getloadavg()[0]
        if part == "prefill":
            lines = [r for some in prefill(512 if args.quick else 4096, rounds) for r in some]
        else:
            lines = decode(2048 if args.quick else int(part.split("-")[1]), rounds)
        done += [r | {"load": load_before} for r in lines]
        if not args.quick:
            merge(path, here, done)
    Console(width=150).print(table(done))


if __name__ == "__main__":
    main()
