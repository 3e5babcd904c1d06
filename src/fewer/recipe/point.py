"""One measured point of the frontier: what a step costs, and what it leaves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fewer.measure import Estimate

ESTIMATES = ("perplexity", "kl")


@dataclass(frozen=True)
class Point:
    """A step, measured; the dense model is the point whose method is `dense`.

    `kept` and `bits` (stored bits a weight, indices and low-rank parts included) speak of the maps the step acts on, `bytes_*` of the
    whole model as stored, `flops` of a forward pass, as a share of dense. `losses` are nats a token, one for each test window, for paired
    comparison. A step that failed has an `error` and no numbers.
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
    error: str = ""

    @property
    def control(self) -> bool:
        """Dense and random: what everything is compared with."""
        return self.method in ("dense", "random") or self.method.startswith("random(")

    def as_dict(self) -> dict[str, Any]:
        """Flat, for JSON: an estimate becomes `perplexity`, `perplexity_low`, `perplexity_high`."""
        row = {**asdict(self), "control": self.control, "losses": list(self.losses)}
        for name in ESTIMATES:
            found = getattr(self, name)
            row |= {
                name: found and found.value,
                f"{name}_low": found and found.low,
                f"{name}_high": found and found.high,
            }
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Point":
        """The inverse of `as_dict`."""
        plain = {f.name: row[f.name] for f in fields(cls)}
        n = len(row["losses"])
        for name in ESTIMATES:
            if row[name] is not None:
                plain[name] = Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], n)
        return cls(**{**plain, "losses": tuple(row["losses"])})
