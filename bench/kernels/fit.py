"""Turn a benchmark's results into the dispatcher's costs: `python -m bench.kernels.fit results/cpu-avx512-2t.json ...`."""

import json
import pathlib
import sys
from collections import defaultdict

import numpy as np
from scipy.optimize import nnls

from fewer.kernels._costs import FILE


def fitted(rows: list[dict], launch: float) -> list[float]:
    """a and b, neither negative, of seconds = launch + kept · a + places · b, by least relative error."""
    places = np.array([r["rows"] * r["cols"] for r in rows], float)
    seconds = np.array([max(r["seconds"] - launch, 1e-9) for r in rows])
    left = np.stack([places * np.array([r["density"] for r in rows]), places], 1) / seconds[:, None]
    return [float(f"{c:.4g}") for c in nnls(left * 1e-12, np.ones(len(rows)))[0] * 1e-12]


def alike(results: list[dict]) -> list[dict]:
    """The runs of a busy machine made comparable: each is scaled to the fastest run's torch float32 linear.

    All candidates of one run are interleaved, so what slows the machine slows them alike.
    """
    took = {(r["density"], r["batch"]): r["seconds"] for r in results if r["name"] == "torch float32"}
    best = {batch: min(s for (_, b), s in took.items() if b == batch) for _, batch in took}
    out = []
    for r in results:
        run = (r.get("density"), r.get("batch"))
        out.append(r | {"seconds": r["seconds"] * best[run[1]] / took[run]} if run in took else r)
    return out


def profile(found: dict) -> tuple[str, dict]:
    """The machine's name, and its costs as `fewer.kernels._costs` reads them."""
    here, results = found["machine"], alike(found["results"])
    launches = [r["seconds"] for r in results if r["op"] == "launch"]
    launch = float(f"{min(launches):.3g}") if launches else 0.0
    linear: dict = defaultdict(dict)
    groups: dict = defaultdict(list)
    for r in results:
        layout, _, stored = r["name"].partition(" ")
        stored = stored or r.get("stored", "")
        if r["op"] == "sparse_linear" and r["name"] in (
            "torch float32",
            "torch bfloat16",
            "torch qint8",
            "torch dense",
        ):
            kind = r["stored"] if r["name"] == "torch dense" else stored
            linear[kind].setdefault(str(r["batch"]), []).append((r["seconds"] - launch) / (r["rows"] * r["cols"]))
        elif r["op"] in ("sparse_linear", "unpack") and layout != "torch":
            r = r | {"density": 1.0} if layout == "dense" else r
            groups[layout, "unpack" if r["op"] == "unpack" else stored, str(r["batch"])].append(r)
    layouts: dict = defaultdict(dict)
    for (layout, stored, batch), rows in groups.items():
        if stored == "unpack":
            layouts[layout][stored] = fitted(rows, 0.0)
        else:
            layouts[layout].setdefault(stored, {})[batch] = fitted(rows, launch)
    mean = {kind: {b: [float(f"{np.median(v):.4g}")] for b, v in t.items()} for kind, t in linear.items()}
    name, kind = (here["gpu"], "gpu") if "gpu" in here else (here["vectors"], "cpu")
    return name, {"device": kind, "machine": here, "sparse_linear": dict(launch=launch, linear=mean, layouts=layouts)}


def main() -> None:
    costs = json.loads(FILE.read_text()) if FILE.exists() else {}
    for path in sys.argv[1:]:
        name, found = profile(json.loads(pathlib.Path(path).read_text()))
        costs[name] = found
        print(f"{name}: {', '.join(found['sparse_linear']['layouts'])}")
    FILE.write_text(json.dumps(costs, indent=1) + "\n")


if __name__ == "__main__":
    main()
