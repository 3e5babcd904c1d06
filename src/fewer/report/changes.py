"""What steps did to a model, site by site."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewer.core import Change

from .table import Column, jsonl, plain, size

_COLUMNS = (
    Column("site", "site", str),
    Column("step", "step", str),
    Column("kept", "kept", "{:.1%}".format),
    Column("bytes_after", "bytes", size),
    Column("bytes_before", "of", size),
    Column("layout", "stored as", str),
    Column("error", "error", "{:.2%}".format),
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
