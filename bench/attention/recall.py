"""What a reference model still finds in long texts by every pattern and every evictor, beside dense and random: `python -m bench.attention.recall`.

Facts hidden in code, three questions about each text in one cache, none of them known before the text was read; answers count to the letter.
`--axes attention --where decode --budgets 1/16` is the share of a text that a new token may read, `--axes cache --budgets 25%,50%` what stays in
memory. Points are remembered ($FEWER_CACHE), so that a run that was stopped goes on. Rows go to results/NAME.json, which `--show` prints as tables.
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from fractions import Fraction

import torch

from fewer.measure.estimate import share
from fewer.recipe.frontier import Bench
from fewer.recipe.point import Point
from fewer.recipe.recalling import Questions, steps_of

OUT = pathlib.Path(__file__).parent / "results"
BEST = ("snap_kv", "expected_attention", "kv_zip", "key_diff")  # who also divides what may stay over the heads


def steps(bench: Bench, axis: str, budgets: list[str], where: str, given: list[str] | None) -> tuple[list, list[str]]:
    """What can be done to this model, and why the rest cannot."""
    asked = steps_of([axis], budgets, given, where)
    if given is None and axis == "cache":
        asked += steps_of([axis], budgets, [f"cache/{m} by ada" for m in BEST], where)[1 + len(budgets) :]
    fit, refused = [], []
    for s in asked:
        try:
            if s is not None:
                bench.base.check(bench.shape, s)
            fit.append(s)
        except ValueError as why:
            refused.append(f"{s}: {why}")
    return fit, refused


def row(p: Point, texts: int) -> dict:
    if p.accuracy is None:
        return {"step": p.step, "error": p.error}
    last = share(round(p.turns[-1] * texts), texts)
    return {
        "step": p.step or "dense",
        "right": p.accuracy.value,
        "low": p.accuracy.low,
        "high": p.accuracy.high,
        "questions": p.questions,
        "turns": p.turns,
        "last": [last.value, last.low, last.high],
        "read": p.read,
        "remembered": p.remembered,
        "bytes": p.held,
        "seconds": p.seconds,
    }


def measure(a: argparse.Namespace, length: int, keep: Callable[[dict], None]) -> None:
    """Tell `keep` of all rows that there are, each time there is one more."""
    budgets = [str(int(length * Fraction(b))) if "/" in b else b for b in a.budgets.split(",")]
    part = {"axis": a.axes, "where": a.where, "length": length, "texts": a.count, "rows": [], "refused": []}

    def told(p: Point) -> None:
        print(p.error or f"{p.step or 'dense':60} {p.accuracy and p.accuracy.value:.3f} {p.seconds:.0f} s", flush=True)
        part["rows"].append(row(p, a.count))
        keep(part)

    asked = Questions(length, a.count, a.turns)
    bench = Bench.at(a.model, jobs=a.jobs, device=a.device, found=told, questions=asked)
    todo, part["refused"] = steps(bench, a.axes, budgets, a.where, a.methods.split(",") if a.methods else None)
    bench.points(todo)


def show(found: dict) -> None:
    for part in found["parts"]:
        print(f"\n{part['axis']}, {part['length']} tokens, {part['texts']} texts\n")
        print("| step | right | last turn | bytes |\n|---|---|---|---|")
        there = [r for r in part["rows"] if "right" in r]
        for r in sorted(there, key=lambda r: -r["right"]):
            right, last = ("{:.3f} [{:.3f}, {:.3f}]".format(*e) for e in ((r["right"], r["low"], r["high"]), r["last"]))
            print(f"| {r['step']} | {right} | {last} | {r['bytes']:.3f} |")


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--model", default="bundled")
    said.add_argument("--axes", default="attention", choices=["attention", "cache"])
    said.add_argument("--where", default="*", help="decode: patterns choose while decoding alone")
    said.add_argument("--budgets", default="1/16", help="with commas; 1/16 is that share of the length, in tokens")
    said.add_argument("--methods", default="", help="with commas; all that are quick by default")
    said.add_argument("--lengths", default="8192")
    said.add_argument("--count", type=int, default=32)
    said.add_argument("--turns", type=int, default=3)
    said.add_argument("--jobs", type=int, default=1)
    said.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    said.add_argument("--name", default="recall", help="of the file in results/")
    said.add_argument("--out", type=pathlib.Path, default=OUT)
    said.add_argument("--show", action="store_true", help="print what is there, measure nothing")
    a = said.parse_args()
    file = a.out / f"{a.name}.json"
    if a.show:
        return show(json.loads(file.read_text()))
    about = {
        "model": pathlib.Path(a.model).name,
        "device": torch.cuda.get_device_name() if a.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    parts: dict[int, dict] = {}
    a.out.mkdir(parents=True, exist_ok=True)

    def keep(part: dict) -> None:
        parts[part["length"]] = part
        file.write_text(json.dumps({**about, "parts": list(parts.values())}, indent=1) + "\n")

    for length in map(int, a.lengths.split(",")):
        measure(a, length, keep)


if __name__ == "__main__":
    main()
