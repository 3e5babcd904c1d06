"""What the points say, in words, and which of them no other beats."""

import math
import re
from collections.abc import Sequence
from typing import Any

from fewer.measure import paired

from .table import Row, number


def measured(rows: Sequence[Row], quality: str = "perplexity") -> list[Row]:
    """The rows that have a quality: those whose job did not fail."""
    return [row for row in rows if row.get(quality) is not None]


def scales(rows: Sequence[Row]) -> tuple[str, str]:
    """The cost and the quality that rows are held against each other by: what is less, is better.

    >>> scales([dict(perplexity=None, wrong=0.2)]), scales([])
    (('kept', 'wrong'), ('bits', 'perplexity'))
    """
    return ("kept", "wrong") if measured(rows, "wrong") else ("bits", "perplexity")


def front(rows: Sequence[Row], cost: str = "", quality: str = "") -> list[Row]:
    """The points that no other beats: nothing is cheaper and at least as good. Cheapest first.

    >>> rows = [dict(bits=1, perplexity=9), dict(bits=2, perplexity=9), dict(bits=2, perplexity=7), dict(bits=3, perplexity=8)]
    >>> [(row["bits"], row["perplexity"]) for row in front(rows)]
    [(1, 9), (2, 7)]
    """
    usual = scales(rows)
    cost, quality = cost or usual[0], quality or usual[1]
    best, found = float("inf"), []
    for row in sorted(measured(rows, quality), key=lambda row: (row[cost], row[quality])):
        if row[quality] < best:
            best = row[quality]
            found.append(row)
    return found


def best(rows: Sequence[Row], budget: str, quality: str = "perplexity") -> Row | None:
    """The best method at a budget, controls apart; those that store 5 % more than the smallest are no equals."""
    cost = scales(rows)[0]
    there = [row for row in measured(rows, quality) if row["budget"] == budget]
    least = min((row[cost] for row in there), default=0)
    equals = [row for row in there if row[cost] <= 1.05 * least and not row.get("control")]
    return min(equals, key=lambda row: row[quality], default=None)


def finding(rows: Sequence[Row]) -> str:
    """The result in one sentence, at the budget nearest to a half that most methods were measured at.

    >>> make = lambda method, budget, p: dict(method=method, budget=budget, kept=0.5, bits=9, perplexity=p, control=method in "random dense")
    >>> finding([make("dense", "", 6.0), make("wanda", "50%", 6.6), make("random", "50%", 600.0)])
    'Keeping 50 %, wanda costs +10 % perplexity, random 100-fold'
    """
    quality = scales(rows)[1]
    there = measured(rows, quality)
    dense = next((row for row in there if row["method"] == "dense"), None)
    budgets = {row["budget"] for row in there if not row.get("control")}
    if dense is None or not budgets:
        return "Nothing could be measured"
    methods = {b: sum(row["budget"] == b for row in there) for b in budgets}
    kept = {row["budget"]: row["kept"] for row in there}
    budget = min(sorted(budgets), key=lambda b: (-methods[b], abs(kept[b] - 0.5), ":" in b))
    winner = best(there, budget, quality)
    same = [row for row in there if row.get("control") and row["budget"] == budget]
    control = next((row for row in same if winner and row.get("axis") in (None, winner.get("axis"))), None)
    assert winner is not None
    if quality == "wrong":
        told = [f"{winner['method']} answers {_right(winner)} right, dense {_right(dense)}"]
        told += [f"{control['method']} {_right(control)}"] if control else []
        return f"At {_spaced(budget)}, {', '.join(told)}"
    text = f"Keeping {_spaced(budget)}, {winner['method']} costs {_growth(winner, dense)} perplexity"
    return text + (f", random {_growth(control, dense)}" if control else "")


def _right(row: Row) -> str:
    return f"{(1 - row['wrong']) * 100:.0f} %"


def _growth(row: Row, dense: Row) -> str:
    times = row["perplexity"] / dense["perplexity"]
    return (
        f"{times:,.0f}-fold"
        if times >= 1000
        else f"{number(times)}-fold"
        if times >= 10
        else f"{(times - 1) * 100:+.0f} %"
    )


def _spaced(budget: str) -> str:
    return re.sub(r"(\d)%", r"\1 %", budget)


def compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows, each with `ratio`, its perplexity over dense's from the losses on the same windows, and `front`.

    The interval of the ratio is paired: the text is the same for both, so it is far narrower than that of a perplexity.
    `perplexity_from` and `perplexity_to` are that interval times the dense perplexity: what a figure of several methods should draw.
    """
    import torch

    dense = next((row for row in rows if row["method"] == "dense" and row.get("losses")), None)
    best = [id(row) for row in front(rows)]
    out = []
    for row in rows:
        new = {k: v for k, v in row.items() if k != "losses"} | {"front": id(row) in best}
        if dense and row.get("losses"):
            apart = paired(torch.tensor(row["losses"]), torch.tensor(dense["losses"]))
            ratio, low, high = (math.exp(x) for x in (apart.value, apart.low, apart.high))
            drawn = {"perplexity_from": low * dense["perplexity"], "perplexity_to": high * dense["perplexity"]}
            new |= {"ratio": ratio, "ratio_low": low, "ratio_high": high, **drawn}
        out.append(new)
    return out
