"""Turn the times of decoding into the dispatcher's costs: `python -m bench.attention.fit results/cpu-avx512-2t.json ...`."""

import json
import pathlib
import sys

import numpy as np
from scipy.optimize import nnls

from bench.attention.cpu import BUDGET, DIM, PAGE, SHARED
from fewer.kernels._costs import FILE

SLOT = 2 * SHARED * DIM  # numbers of a key and a value, of all heads
WIDTH = {"float32": 4, "bfloat16": 2}


def line(points: list[tuple[float, float]]) -> dict[str, float]:
    """launch and byte, neither negative, of seconds = launch + byte · bytes, by least relative error."""
    size, seconds = np.array(points, float).T
    launch, byte = nnls(np.stack([np.ones_like(size) / seconds, size * 1e-9 / seconds], 1), np.ones(len(size)))[0]
    return {"launch": float(f"{launch:.4g}"), "byte": float(f"{byte * 1e-9:.4g}")}


def at(costs: dict[str, float], size: float) -> float:
    return costs["launch"] + costs["byte"] * size


def of_cpu(rows: list[dict]) -> dict:
    """All pages of three lengths; a budget of 2048 of them, whose rest is what choosing took."""
    took = {(r["keys"], r["name"]): r["seconds"] for r in rows if r["op"] == "decode"}
    keys = sorted({n for n, _ in took})
    read = {
        kind: line([(n * SLOT * width, took[n, f"all pages {kind}"]) for n in keys]) for kind, width in WIDTH.items()
    }
    rest = [
        (n // PAGE * SLOT * width, took[n, f"budget {BUDGET} {kind}"] - at(read[kind], BUDGET * SLOT * width))
        for kind, width in WIDTH.items()
        for n in keys
    ]
    return {"read": read, "choose": line([(size, max(s, 1e-6)) for size, s in rest])}


def of_gpu(rows: list[dict]) -> dict:
    """In bfloat16: dense and 2048 keys by attend_pages; bounds and best pages, for pages of three sizes."""
    some = [r for r in rows if r["op"] == "decode" and r["batch"] == 1]
    named = {(r["length"], r["page"], r["name"]): r["seconds"] for r in some}
    read = [(n * SLOT * 2, s) for (n, _, name), s in named.items() if name == "dense ours"]
    read += [(BUDGET * SLOT * 2, s) for (_, _, name), s in named.items() if name == "only attend"]
    rest = [
        (n // page * SLOT * 2, s - named[n, page, "only attend"])
        for (n, page, name), s in named.items()
        if name == "ours"
    ]
    return {"read": {"bfloat16": line(read)}, "choose": line(rest)}


def main() -> None:
    costs = json.loads(FILE.read_text())
    for path in sys.argv[1:]:
        found = json.loads(pathlib.Path(path).read_text())
        gpu = found["machine"].get("gpu")
        name = gpu or found["machine"]["vectors"]
        said = of_gpu(found["results"]) if gpu else of_cpu(found["results"])
        costs.setdefault(name, {"device": "gpu" if gpu else "cpu", "machine": found["machine"]})
        costs[name]["attend_pages"] = said | {
            "measured": {k: x for k, x in found["machine"].items() if k in ("date", "cpu", "threads")}
        }
        print(name, said)
    FILE.write_text(json.dumps(costs, indent=1) + "\n")


if __name__ == "__main__":
    main()
