"""How much may stay."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, cast, get_args

Scope = Literal["row", "column", "tensor", "layer", "model"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_FORM = re.compile(
    r"(?:(?P<share>\d+(?:\.\d+)?|\.\d+)%|(?P<n>\d+):(?P<m>\d+)|(?P<count>\d+))"
    r"(?: of (?P<h>\d+)x(?P<w>\d+))?"
    rf"(?: per (?P<scope>{'|'.join(SCOPES)}))?"
)


@dataclass(frozen=True)
class Budget:
    """A share, a count or an N:M pattern; of what unit; counted over what.

    `keep` is a `Fraction` (a share) or an `int` (a count, or the N of N:M). Rounding is always down, and
    something always stays.

    >>> budget("50%").of(10), budget("2:4").of(4), budget("64").of(10)
    (5, 2, 10)
    >>> budget("10%").of(10)      # exact: 10 * (1 - 0.9) would be 0.9999999999999998, then 0
    1
    >>> print(budget("25% of 16x16 per tensor"))
    25% of 16x16 per tensor
    """

    keep: Fraction | int
    group: int = 0  # M of N:M; 0 means no groups
    unit: tuple[int, int] = (1, 1)  # rows x columns that stay or go together
    scope: Scope = "row"

    def of(self, n: int) -> int:
        """How many of `n` stay: at least one, never more than there are."""
        return max(1, min(n, int(n * self.keep) if isinstance(self.keep, Fraction) else self.keep))

    @property
    def joint(self) -> bool:
        """True if several tensors share one ranking: `per layer` and `per model`."""
        return self.scope in ("layer", "model")

    @property
    def whole(self) -> bool:
        """True for all of it."""
        return isinstance(self.keep, Fraction) and self.keep == 1

    @property
    def plain(self) -> bool:
        """True for a share or a count of each row's single entries: no N:M, no larger units, no other scope."""
        return self.scope == "row" and not self.group and self.unit == (1, 1)

    def with_count(self, n: int) -> "Budget":
        """The same units, with exactly `n` of them kept in the whole tensor."""
        return replace(self, keep=n, group=0, scope="tensor")

    def check(self, rows: int, cols: int) -> None:
        """Refuse a matrix that this budget cannot be met on, and say what could be met."""
        h, w = self.unit
        if rows % h or cols % w:
            raise ValueError(
                f"budget '{self}': {rows}x{cols} does not divide into units of {h}x{w}; {_units(rows, cols)}"
            )
        if self.group and (cols // w) % self.group:
            raise ValueError(
                f"budget '{self}': rows of {cols // w} do not divide into groups of {self.group}; "
                f"M may be one of {_divisors(cols // w)}"
            )
        most = {"row": cols // w, "column": rows // h}.get(self.scope, rows * cols // (h * w))
        if not self.group and not self.joint and isinstance(self.keep, int) and self.keep > most:
            raise ValueError(f"budget '{self}': there are only {most} to keep per {self.scope}; write {most} or less")

    def __str__(self) -> str:
        if self.group:
            amount = f"{self.keep}:{self.group}"
        elif isinstance(self.keep, Fraction):
            amount = f"{_decimal(self.keep * 100)}%"
        else:
            amount = str(self.keep)
        unit = "" if self.unit == (1, 1) else f" of {self.unit[0]}x{self.unit[1]}"
        return amount + unit + ("" if self.scope == "row" else f" per {self.scope}")


def budget(text: "str | Budget") -> Budget:
    """Read a budget as people write it: '50%', '64', '2:4', '25% of 16x16', '10% per tensor', '30% per model'."""
    if isinstance(text, Budget):
        return text
    if not (form := _FORM.fullmatch(text.strip())):
        raise ValueError(
            f"not a budget: {text!r}; write '50%', '64', '2:4', '25% of 16x16', '10% per tensor' or '30% per model'"
        )
    g = form.groupdict()
    keep = Fraction(g["share"]) / 100 if g["share"] else int(g["n"] or g["count"])
    if not 0 < keep or (g["share"] and keep > 1) or (g["m"] and keep > int(g["m"])):
        raise ValueError(f"a budget keeps something and at most everything: {text!r}")
    if g["m"] and g["scope"] not in (None, "row"):
        raise ValueError(f"N:M is counted in each group, so it has no scope: {text!r}; write '{g['n']}:{g['m']}'")
    unit = (int(g["h"]), int(g["w"])) if g["h"] else (1, 1)
    if not all(unit):
        raise ValueError(f"a unit has at least one row and one column: {text!r}")
    return Budget(keep, int(g["m"] or 0), unit, cast(Scope, g["scope"] or "row"))


def _decimal(x: Fraction) -> str:
    """Exactly, as people write it: budgets are read from decimals, so the expansion ends (else 12 digits)."""
    text = f"{x.numerator / x.denominator:.12f}".rstrip("0").rstrip(".")
    return text or "0"


def _divisors(n: int) -> list[int]:
    return [d for d in (2, 4, 8, 16, 32, 64) if n % d == 0]


def _units(rows: int, cols: int) -> str:
    return f"heights that divide: {[1, *_divisors(rows)]}, widths: {[1, *_divisors(cols)]}"
