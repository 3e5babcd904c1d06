"""The tables of docs/kernels.md from results: `python -m bench.kernels.table bench/kernels/results/gpu-h100.json docs/kernels.md`.

Results of a GPU go between the markers `gpu: begin` and `gpu: end` of the page, those of a CPU between `cpu: begin` and `cpu: end`.
"""

import json
import pathlib
import re
import sys

NAMES = {"torch dense": "cuBLAS, nothing pruned", "torch semi-structured": "torch's own 2:4"}
FEW = (1, 4, 16)  # tokens
DENSE = "torch bfloat16"  # on a CPU: what ours is compared with
Key = tuple[int, int, float, int, str]


def linear(found: dict) -> list[str]:
    """Microseconds, times faster than cuBLAS on the unpruned weight, and the part of the memory's speed that is reached."""
    rows = {key(r): r for r in found["results"] if r["op"] == "sparse_linear" and r["batch"] in FEW}
    columns = [(r, c, b) for r, c in dict.fromkeys(k[:2] for k in rows) for b in FEW]
    head = [f"{r}x{c}, {b} token{'s' * (b > 1)}" for r, c, b in columns]
    out = [f"| weights | kept | {' | '.join(head)} |", "|---|---|" + "---|" * len(columns)]
    listed = {(-k[2], k[4]) for k in rows if k[2] == 1 or k[4] != "torch dense"}  # below 1 it stands beside the others
    listed -= {(d, name) for d, name in listed if d == -0.125 and name != "nm"}  # beside 1:8 all say what 10 % does
    for density, name in sorted(listed, key=lambda v: (-rank(v[1]), v[1], v[0])):
        cells = []
        for r, c, b in columns:
            dense = rows.get((r, c, -density, b, "torch dense")) or rows[r, c, 1.0, b, "torch dense"]
            cells.append(cell(rows.get((r, c, -density, b, name)), dense))
        kept = 0.5 if name == "torch semi-structured" else -density
        shown = NAMES.get(name, name) if name != "nm" else f"{'2:4' if kept == 0.5 else '1:8'}, `nm`"
        out.append(f"| {shown} | {kept:.0%} | {' | '.join(cells)} |")
    return out


def prompt(found: dict) -> list[str]:
    """Microseconds of 2:4 with many tokens: the GPU's alone, and launched one by one."""
    rows = {(r["op"], r["batch"], r["rows"], r["cols"], r["name"]): r["seconds"] * 1e6
            for r in found["results"] if r["op"] in ("sparse_linear", "launched") and r["batch"] >= 256}  # fmt: skip
    shapes = list(dict.fromkeys(k[2:4] for k in rows))
    head = " | ".join(f"{r}x{c}: cuBLAS | 2:4 | torch's own" for r, c in shapes)
    out = [f"| tokens | {head} |", "|---|" + "---|---|---|" * len(shapes)]
    for op, tokens in sorted({k[:2] for k in rows}, key=lambda k: (k[0] == "launched", k[1])):
        cells = []
        for shape in shapes:
            dense, *sparse = (rows[op, tokens, *shape, n] for n in ("torch dense", "nm", "torch semi-structured"))
            cells += [f"{dense:.0f}", *(f"{t:.0f} ({dense / t:.2f}x)" for t in sparse)]
        out.append(f"| {tokens}{', launched one by one' * (op == 'launched')} | {' | '.join(cells)} |")
    return out if rows else []


def top_k(found: dict) -> list[str]:
    """Milliseconds."""
    rows: dict[tuple, dict[str, float]] = {}
    for r in found["results"]:
        if r["op"] == "top_k":
            rows.setdefault((r["rows"], r["cols"], r["k"]), {})[r["name"]] = r["seconds"] * 1e3
    out = ["| scores | k | ours | torch.topk | torch.argsort |", "|---|---|---|---|---|"]
    for (n, cols, k), t in rows.items():
        out.append(f"| {n}x{cols} | {k} | {t['ours']:.2f} | {t['torch topk']:.2f} | {t['torch sort']:.2f} |")
    return out


def on_cpu(found: dict) -> list[str]:
    """Milliseconds, times faster than torch's bfloat16 linear on the unpruned weight."""
    rows = {(r["density"], r["batch"], r["name"]): r for r in found["results"] if r["op"] == "sparse_linear"}
    batches = sorted({b for _, b, _ in rows})
    out = [f"| weights | kept | {' | '.join(f'{b} token' + 's' * (b > 1) for b in batches)} |"]
    out.append("|---|---|" + "---|" * len(batches))
    kept = sorted({d for d, _, _ in rows}, reverse=True)
    names = dict.fromkeys(n for _, _, n in rows)
    for name in sorted(names, key=lambda n: not n.startswith("torch")):
        dense = name in ("torch float32", DENSE, "torch qint8")
        for density in kept[:1] if dense else [d for d in kept if d < 1]:
            found_here = [rows.get((density, b, name)) for b in batches]
            if any(found_here):
                cells = [_ms(r, rows[density, b, DENSE]) for r, b in zip(found_here, batches, strict=True)]
                out.append(f"| {name} | {density:.0%} | {' | '.join(cells)} |")
    return out


def _ms(r: dict | None, dense: dict) -> str:
    return "" if r is None else f"{r['seconds'] * 1e3:.2f} ({dense['seconds'] / r['seconds']:.2f}x)"


def key(r: dict) -> Key:
    return r["rows"], r["cols"], r["density"], r["batch"], r["name"]


def rank(name: str) -> int:
    """torch first."""
    return name.startswith("torch") + (name == "torch dense")


def cell(r: dict | None, dense: dict) -> str:
    if r is None:
        return ""
    times = f"{dense['seconds'] / r['seconds']:.2f}x, " if r is not dense else ""
    return f"{r['seconds'] * 1e6:.1f} ({times}{r['of_bound']:.0%})"


def text(found: dict) -> str:
    here = found["machine"]
    if "gpu" not in here:
        size = next(f"{r['rows']}x{r['cols']}" for r in found["results"] if r["op"] == "sparse_linear")
        where = f"{here['cpu']} ({here['vectors']}), {here['threads']} threads, torch {here['torch']}, {here['date']}"
        about = f"""`sparse_linear`, {size}, {where}, reading {here["read_bytes_per_second"] / 1e9:.0f} GB/s: ms, median of interleaved runs over
rotated buffers (times faster than torch's bfloat16 linear on the unpruned weight in the same run)."""
        return "\n".join([about, "", *on_cpu(found), "", "`top_k`, float32, ms:", "", *top_k(found)])
    where = f"{here['gpu']}, torch {here['torch']}, Triton {here['triton']}, {here['date']}"
    speed = f"{here['copy_bytes_per_second'] / 1e12:.2f} TB/s"
    about = f"""`sparse_linear`, bfloat16, {where}: µs (times faster than cuBLAS on the unpruned weight, part of the time that
reading the packed weight takes at {speed}), median of 20 replays of a CUDA graph over weights not in cache."""
    many = ["", "2:4 with a prompt, µs, in graphs but for the last rows:", "", *p] if (p := prompt(found)) else []
    few = [about, "", *linear(found), *many]
    return "\n".join([*few, "", "`top_k`, float32, ms, launches included:", "", *top_k(found)])


def put(page: str, name: str, lines: str) -> str:
    """The page with `lines` between its markers of that name."""
    begin, end = (f"<!-- {name}: {side} -->" for side in ("begin", "end"))
    if begin not in page or end not in page:
        raise ValueError(f"the page has no {begin} and {end}: write them where the tables belong")
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{lines}\n{end}", page, flags=re.S)


def main() -> None:
    results, page = map(pathlib.Path, sys.argv[1:3])
    found = json.loads(results.read_text())
    kind = "gpu" if "gpu" in found["machine"] else "cpu"
    page.write_text(put(page.read_text(encoding="utf-8"), kind, text(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
