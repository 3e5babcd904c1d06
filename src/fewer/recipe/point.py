"""One measured point of the frontier: what a step costs, and what it leaves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fewer.measure import Estimate

ESTIMATES = ("perplexity", "kl", "accuracy")
LISTS = ("losses", "turns", "notes")


@dataclass(frozen=True)
class Point:
    """A step, measured; the dense model is the point whose method is `dense`.

    `kept` and `bits` (stored bits a weight, indices and low-rank parts included) speak of the maps the step acts on, `bytes_*` of the
    whole model as stored, `flops` of a forward pass, as a share of dense. `losses` are nats a token, one for each test window, for paired
    comparison. A step that failed has an `error` and no numbers.

    Of a running model, `kept` is the share of the tokens that are read and remembered, both of which stand beside; `held` the bytes
    remembered, as a share of dense; `accuracy` the share of `questions` answered to the letter, `turns` that of each turn.
    """

    axis: str
    step: str
    method: str
    budget: str
    kept: float | None = None
    bits: float | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    flops: float | None = None
    perplexity: Estimate | None = None
    kl: Estimate | None = None
    seconds: float | None = None
    losses: tuple[float, ...] = ()
    accuracy: Estimate | None = None
    turns: tuple[float, ...] = ()
    questions: int = 0
    read: float | None = None
    remembered: float | None = None
    held: float | None = None
    notes: tuple[str, ...] = ()
    error: str = ""

    @property
    def control(self) -> bool:
        """Dense and random: what everything is compared with."""
        return self.method == "dense" or self.method.removeprefix(f"{self.axis}/").partition("(")[0] == "random"

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON: an estimate becomes `perplexity`, `perplexity_low`, `perplexity_high`."""
        row = {**asdict(self), "control": self.control}
        row |= {name: list(getattr(self, name)) for name in LISTS}
        for name in ESTIMATES:
            found = getattr(self, name)
            row |= {
                name: found and found.value,
                f"{name}_low": found and found.low,
                f"{name}_high": found and found.high,
            }
        if (right := self.accuracy) is not None:
            row |= {"wrong": 1 - right.value, "wrong_low": 1 - right.high, "wrong_high": 1 - right.low}
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Point":
        """The inverse of `as_dict`."""
        plain = {f.name: row[f.name] for f in fields(cls)}
        n = len(row["losses"]) or row["questions"]
        for name in ESTIMATES:
            if row[name] is not None:
                plain[name] = Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], n)
        return cls(**plain | {name: tuple(row[name]) for name in LISTS})
