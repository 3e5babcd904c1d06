"""What a budget is to reach, in the unit of who pays: bytes, the attention's mass, an error, time."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TIMES = {"us": Fraction(1, 10**6), "ms": Fraction(1, 1000), "s": Fraction(1)}
_NUMBER = r"(?P<n>\d+(?:\.\d+)?|\.\d+)"
_BYTES = re.compile(rf"{_NUMBER} ?(?P<unit>{'|'.join(SIZES)}|KB)(?P<each> per token)?")
_SHARE = re.compile(rf"{_NUMBER}% of (?P<what>mass|error)")
_TIME = re.compile(rf"{_NUMBER} ?(?P<unit>{'|'.join(TIMES)})(?: at (?P<tokens>\d+))?")


@dataclass(frozen=True)
class Target:
    """Stands where a budget stands; a budget that reaches it is found before anything runs."""

    plain: ClassVar[bool] = False  # no share and no count


@dataclass(frozen=True)
class Bytes(Target):
    """What is remembered, or read for one token, at all modules of a step together; `each`: for each token there has been.

    >>> target("200MB"), str(target("64KB per token"))
    (Bytes(amount=200000000, each=False), '64kB per token')
    """

    amount: int
    each: bool = False

    def __str__(self) -> str:
        unit = next(
            u for u in ("GB", "MB", "kB", "B") if SIZES[u] <= max(1, self.amount) and not self.amount % SIZES[u]
        )
        return f"{self.amount // SIZES[unit]}{unit}{' per token' if self.each else ''}"


@dataclass(frozen=True)
class Mass(Target):
    """The least mean share of the attention's mass that is read.

    >>> str(target("95% of mass"))
    '95% of mass'
    """

    share: Fraction

    def __str__(self) -> str:
        return f"{_plain(self.share * 100)}% of mass"


@dataclass(frozen=True)
class Error(Target):
    """The greatest length of the error of what attention says, as a share of the length of what it should say.

    >>> str(target("2.5% of error"))
    '2.5% of error'
    """

    share: Fraction

    def __str__(self) -> str:
        return f"{_plain(self.share * 100)}% of error"


@dataclass(frozen=True)
class Seconds(Target):
    """The time that attention takes for one token, at all modules of a step together, when `tokens` have been (0: as many as
    the model can take).

    >>> target("2ms at 32768"), str(target("500 us"))
    (Seconds(amount=Fraction(1, 500), tokens=32768), '0.5ms')
    """

    amount: Fraction
    tokens: int = 0

    def __str__(self) -> str:
        unit = "s" if self.amount >= 1 else "ms" if self.amount >= TIMES["us"] * 100 else "us"
        return f"{_plain(self.amount / TIMES[unit])}{unit}" + (f" at {self.tokens}" if self.tokens else "")


def target(text: str) -> Target | None:
    """Read a target as people write it; None for what is none: '200MB', '64kB per token', '95% of mass', '2ms at 32768'."""
    text = text.strip()
    if form := _BYTES.fullmatch(text):
        amount = int(Fraction(form["n"]) * SIZES[form["unit"].replace("KB", "kB")])
        return _some(text, amount >= 1, Bytes(amount, bool(form["each"])))
    if form := _SHARE.fullmatch(text):
        share = Fraction(form["n"]) / 100
        return _some(text, 0 < share <= 1, (Mass if form["what"] == "mass" else Error)(share))
    if form := _TIME.fullmatch(text):
        time = Fraction(form["n"]) * TIMES[form["unit"]]
        return _some(text, time > 0, Seconds(time, int(form["tokens"] or 0)))
    return None


def _some(text: str, possible: bool, found: Target) -> Target:
    if not possible:
        raise ValueError(f"{text!r} is nothing, or more than everything; write '200MB', '95% of mass' or '2ms'")
    return found


def _plain(x: Fraction) -> str:
    return f"{float(x):.9f}".rstrip("0").rstrip(".")
