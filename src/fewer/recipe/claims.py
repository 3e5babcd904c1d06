"""What papers claim, checked here: a claim is a sentence, what to measure, and what with.

`claims/weights/wanda.py` in a checkout holds the claims of the paper of `weights/wanda`, as a list called `CLAIMS`.
"""

import math
import runpy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewer.core import Paper, find
from fewer.measure import Estimate, paired

from .frontier import Bench
from .point import Point
from .results import folder
from .steps import step

HOLDS, WEAKER, FAILS = "holds", "weaker", "does not hold here"


@dataclass(frozen=True)
class Finding:
    """One row of `docs/claims.md`."""

    method: str
    paper: Paper
    claim: str
    here: str
    verdict: str
    why: str = ""

    def as_dict(self) -> dict[str, str]:
        words = {
            "method": self.method,
            "claim": self.claim,
            "here": self.here,
            "verdict": self.verdict,
            "why": self.why,
        }
        return {**words, "paper": self.paper.title, "url": self.paper.url}


class Claim(ABC):
    """One sentence of a paper that can be checked on the bundled model or one GPU."""

    method: str
    claim: str

    @property
    @abstractmethod
    def steps(self) -> tuple[str, ...]:
        """What must be measured."""

    def prepare(self, model: str, device: str) -> "Claim":
        """The claim, when what its steps read (such as masks that must be learnt first) is there; may take minutes, once."""
        return self

    @abstractmethod
    def judge(self, points: Mapping[str, Point]) -> Finding:
        """What the points, by step, say of the claim. Never tuned until it passes."""


@dataclass(frozen=True)
class Better(Claim):
    """`ours` has a lower perplexity than `baseline` on the same windows.

    holds: the paired 95 % interval of the difference in loss lies below 0, and perplexity falls to `factor` times the
    baseline's or less. weaker: it is lower, but by less, or not surely. `why` is what is known of the reason.
    """

    method: str
    claim: str
    ours: str
    baseline: str
    factor: float = 1.0
    why: str = ""

    @property
    def steps(self) -> tuple[str, ...]:
        return self.ours, self.baseline

    def judge(self, points: Mapping[str, Point]) -> Finding:
        apart, here = _compared(self.method, self.ours, self.baseline, points)
        return Finding(self.method, find(self.method).paper, self.claim, here, verdict(apart, self.factor), self.why)


@dataclass(frozen=True)
class Within(Claim):
    """`ours` has a perplexity that is at most the share `margin` above `baseline`'s, by default the dense model's.

    holds: the paired 95 % interval of the difference in loss ends there or below. weaker: the mean does, not the
    interval.
    """

    method: str
    claim: str
    ours: str
    baseline: str = "weights/magnitude 100%"
    margin: float = 0.01
    why: str = ""

    @property
    def steps(self) -> tuple[str, ...]:
        return self.ours, self.baseline

    def judge(self, points: Mapping[str, Point]) -> Finding:
        apart, here = _compared(self.method, self.ours, self.baseline, points)
        return Finding(self.method, find(self.method).paper, self.claim, here, within(apart, self.margin), self.why)


def within(apart: Estimate, margin: float) -> str:
    """Of a difference in loss that should not be above log(1 + margin).

    >>> within(Estimate(0.004, 0.0, 0.009, 8), 0.01), within(Estimate(0.004, 0.0, 0.02, 8), 0.01)
    ('holds', 'weaker')
    """
    most = math.log1p(margin)
    if apart.value > most:
        return FAILS
    return HOLDS if apart.high <= most else WEAKER


def _compared(method: str, first: str, second: str, points: Mapping[str, Point]) -> tuple[Estimate, str]:
    """The difference in loss of two steps on the same windows, and in words."""
    ours, baseline = (points[str(step(text))] for text in (first, second))
    if ours.perplexity is None or baseline.perplexity is None:
        raise ValueError(f"{method}: could not be measured: {ours.error or baseline.error}")
    apart = paired(torch.tensor(ours.losses), torch.tensor(baseline.losses))
    here = (
        f"{first} {ours.perplexity.value:.3g}, {second} {baseline.perplexity.value:.3g}: "
        f"{_percent(apart.value)} [{_percent(apart.low)}, {_percent(apart.high)}] perplexity"
    )
    return apart, here.replace(str(folder()), "$FEWER_CACHE")


def verdict(apart: Estimate, factor: float = 1.0) -> str:
    """Of a difference in loss that should be below 0.

    >>> verdict(Estimate(-0.2, -0.3, -0.1, 8)), verdict(Estimate(-0.2, -0.5, 0.1, 8)), verdict(Estimate(0.1, 0.0, 0.2, 8))
    ('holds', 'weaker', 'does not hold here')
    """
    if apart.value >= 0:
        return FAILS
    return HOLDS if apart.high < 0 and apart.value <= math.log(factor) else WEAKER


def _percent(difference: float) -> str:
    return f"{math.expm1(difference) * 100:+.1f} %"


def read(folder: str | Path) -> list[Claim]:
    """The claims of a directory's files, in the order of their names; `ValueError` if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no directory {folder}: claims live in the repository, run this in a checkout or name their directory"
        )
    claims = [claim for file in sorted(folder.rglob("*.py")) for claim in _of(file)]
    if not claims:
        raise ValueError(f"no claims in {folder}: a file there has a list CLAIMS")
    return claims


def _of(file: Path) -> Iterator[Claim]:
    found = runpy.run_path(str(file)).get("CLAIMS")
    if not isinstance(found, list) or not all(isinstance(c, Claim) for c in found):
        raise ValueError(f"{file} has no list CLAIMS of claims; see fewer.recipe.claims")
    yield from found


def check(claims: Sequence[Claim], bench: Bench) -> list[Finding]:
    """Measure what the claims ask for, each step once, and judge."""
    claims = [claim.prepare(bench.base.model, bench.base.device) for claim in claims]
    steps = dict.fromkeys(str(step(text)) for claim in claims for text in claim.steps)
    points = dict(zip(steps, bench.points([step(text) for text in steps]), strict=True))
    return [claim.judge(points) for claim in claims]


def markdown(findings: Sequence[Finding], about: Mapping[str, str]) -> str:
    """The page `docs/claims.md`."""
    held = sum(f.verdict == HOLDS for f in findings)
    head = f"# Claims\n\nWhat papers claim, measured here by `fewer claims`: {held} of {len(findings)} hold. A claim that does not is a result too.\n"
    told = "".join(f"- {k}: {v}\n" for k, v in about.items())
    rows = [
        f"| [{f.paper.title}]({f.paper.url}) | {f.claim} | {f.here} | **{f.verdict}**{': ' + f.why if f.why else ''} |"
        for f in findings
    ]
    return "\n".join([head, told, "| paper | claim | here | verdict |", "|---|---|---|---|", *rows, ""])
