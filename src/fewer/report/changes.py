"""What steps did to a model, site by site."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewer.core import Change

from .table import Column, jsonl, plain, size


def _time(seconds: float) -> str:
    """Seconds as people write few of them; nothing if they are not known."""
    if not seconds:
        return ""
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


_COLUMNS = (
    Column("site", "site", str),
    Column("step", "step", str),
    Column("kept", "kept", "{:.1%}".format),
    Column("bytes_after", "bytes", size),
    Column("bytes_before", "of", size),
    Column("layout", "stored as", str),
    Column("error", "error", "{:.2%}".format),
)

_COSTS = (
    Column("maps", "one token through", str),
    Column("bits", "bits a weight", "{:.1f}".format),
    Column("floor", "its bytes alone", _time),
    Column("runs", "as stored", _time),
    Column("plain", "dense, 8 bits", _time),
    Column("advice", "", str),
)


@dataclass(frozen=True)
class Report:
    """The changes of a recipe: `print` it for people, `.jsonl()` for programs.

    >>> print(Report([Change("mlp.up", "weights/wanda 2:4", "2:4", 0.5, 4096, 2304, "nm", 0.031)]))
    site    step               kept  bytes     of  stored as  error
    mlp.up  weights/wanda 2:4 50.0% 2.3 kB 4.1 kB  nm          3.1%
    total                     50.0% 2.3 kB 4.1 kB
    """

    changes: Sequence[Change]

    def __str__(self) -> str:
        return plain([*(c.as_dict() for c in self.changes), self.total], _COLUMNS)

    @property
    def total(self) -> dict[str, str | float]:
        """All sites together; the share kept weighs each site by its bytes."""
        before = sum(c.bytes_before for c in self.changes)
        after = sum(c.bytes_after for c in self.changes)
        kept = sum(c.kept * c.bytes_before for c in self.changes) / max(before, 1)
        return {"site": "total", "kept": kept, "bytes_before": before, "bytes_after": after}

    def jsonl(self) -> str:
        return jsonl(c.as_dict() for c in self.changes)

    @property
    def costs(self) -> str:
        """What one token costs in the maps of each name, as stored and as dense maps of eight bits: which are to be beaten.

        Estimates from costs measured on a machine like this; empty if there are none.

        >>> pruned = Change("layers.0.up", "s", "50%", 0.5, 4096, 2304, "nm", weights=2048, floor=1e-6, runs=5e-6, plain=3e-6)
        >>> print(Report([pruned]).costs)
        one token through bits a weight its bytes alone as stored dense, 8 bits
        1 x up                      9.0            1 us      5 us          3 us dense int8 is smaller, faster
        """
        kinds: dict[str, list[Change]] = {}
        for c in self.changes:
            if c.runs and c.weights:
                kinds.setdefault(c.site.rpartition(".")[2], []).append(c)
        return plain([_cost(name, here) for name, here in kinds.items()], _COSTS) if kinds else ""


def _cost(name: str, here: Sequence[Change]) -> dict[str, str | float]:
    floor, runs, dense = (sum(getattr(c, field) for c in here) for field in ("floor", "runs", "plain"))
    bits = 8 * sum(c.bytes_after for c in here) / sum(c.weights for c in here)
    better = [word for word, is_so in (("smaller", bits > 8), ("faster", 0 < dense < runs)) if is_so]
    advice = f"dense int8 is {', '.join(better)}" if better else ""
    return {
        "maps": f"{len(here)} x {name}",
        "bits": bits,
        "floor": floor,
        "runs": runs,
        "plain": dense,
        "advice": advice,
    }
