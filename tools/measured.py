"""The measured rows on a method's page, from what `fewer frontier` wrote to bench/weights/results/frontier-10m.jsonl.

    python -m bench.weights.frontier bench/weights/results/frontier-10m.jsonl

writes it anew; a page shows every point whose step uses the method, beside dense and random at the same budgets.
"""

import functools
import json
import re
from typing import Any

from tools.floors import SOURCE

FILE = SOURCE.parents[1] / "bench" / "weights" / "results" / "frontier-10m.jsonl"
COMMAND = "python -m bench.weights.frontier bench/weights/results/frontier-10m.jsonl"


@functools.cache
def points() -> tuple[dict[str, Any], ...]:
    """All points that have a quality; none if nothing was measured yet."""
    if not FILE.is_file():
        return ()
    rows = (json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(row for row in rows if row.get("perplexity") is not None)


def uses(step: str, short: str) -> bool:
    """Whether a step names the method, as pruner, allocator or corrector.

    >>> uses("weights/wanda 50% by owl + eora(rank=8)", "owl"), uses("weights/wanda 50% by owl", "wan")
    (True, False)
    """
    return re.search(rf"(?:/|\bby |\+ ){re.escape(short)}(?![\w])", step) is not None


def section(name: str) -> str:
    """A table for `weights/wanda`; empty where nothing was measured."""
    axis, _, short = name.partition("/")
    mine = [row for row in points() if row["axis"] == axis and uses(row["step"], short)]
    if not mine:
        return ""
    same = {_asked(row) for row in mine}
    controls = [r for r in points() if r["control"] and (r["method"] == "dense" or _asked(r) in same) and r not in mine]
    dense = next(row["perplexity"] for row in points() if row["method"] == "dense")
    rows = sorted([*mine, *controls], key=lambda row: (row["method"] != "dense", row["budget"], row["perplexity"]))
    head = f"`{COMMAND}`: the bundled model of 10 million parameters on unseen standard-library code."
    columns = (
        "| step | kept | bits a weight | perplexity, times dense | KL to dense, nats a token |\n|---|---|---|---|---|"
    )
    return "\n".join([head, "", columns, *(_row(row, dense) for row in rows)])


def _asked(row: dict[str, Any]) -> tuple[str, str]:
    """How much was to stay, and of which maps."""
    return row["budget"], row["step"].partition(" @ ")[2]


def _row(row: dict[str, Any], dense: float) -> str:
    times = row["perplexity"] / dense
    shown = f"{times:,.0f}" if times >= 100 else f"{times:.3g}"
    step = "dense" if row["method"] == "dense" else f"`{row['step']}`"
    return f"| {step} | {row['kept']:.1%} | {row['bits']:.2f} | {shown} | {row['kl']:.3g} |"
