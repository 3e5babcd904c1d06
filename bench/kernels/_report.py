"""What `python -m bench.kernels.gpu` prints when it has done."""

import json


def report(found: dict) -> None:
    """A compact table."""
    torchs: dict[tuple, float] = {}
    print(json.dumps(found["machine"]))
    for c in found["checks"]:
        state = "ok" if not c["bad"] else f"{len(c['bad'])} BAD: {c['bad'][:2]}"
        print(f"check {c['op']} {c['dtype'][6:]}: {c['cases']} cases {state}"[:700])
    for r in found["results"]:
        if r["name"] in ("torch dense", "torch topk"):
            torchs[r["op"], r["rows"], r["cols"], r.get("batch")] = r["seconds"]
    best: dict[tuple, dict] = {}
    for r in found["results"]:
        if r["op"] == "tune":
            key = (r["layout"], r["batch"], r["rows"])
            best[key] = min(best.get(key, r), r, key=lambda q: q["seconds"])
    for (layout, batch, rows), r in best.items():
        print(
            f"tune {layout:8} batch {batch:2} rows {rows:5} {r['seconds'] * 1e6:7.1f} us {r['of_bound']:4.0%} {r['name']}"
        )
    for r in found["results"]:
        if r["op"] in ("sparse_linear", "launched", "top_k"):
            times = torchs.get((r["op"], r["rows"], r["cols"], r.get("batch")), float("nan")) / r["seconds"]
            what = f"d{r['density']:.1f} b{r['batch']:<2}" if "density" in r else f"k{r['k']}"
            micro = f"{r['seconds'] * 1e6:9.1f} us ({r['q25'] * 1e6:.1f}-{r['q75'] * 1e6:.1f})"
            print(f"{r['rows']}x{r['cols']} {what} {r['name']:22} {micro} x{times:.2f} {r.get('of_bound', 0):4.0%}")
    for name, why in found["failed"].items():
        print(f"FAILED {name}: {why}"[:300])
    print(json.dumps({"skipped": found["skipped"]}))
