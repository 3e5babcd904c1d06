"""Essential sparsity: how much can go at once, and where the loss turns up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper
from fewer.measure import Estimate
from fewer.recipe.claims import FAILS, HOLDS, WEAKER, Claim, Finding
from fewer.recipe.frontier import Bench
from fewer.recipe.point import Point
from fewer.recipe.steps import step

from ._study import Found, Study, apart, measured, quality_of, share, with_interval

TITLE = "The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter"
REMOVED = (10, 20, 30, 40, 50, 60, 70)  # percent
DRAWS = 1000  # of windows, for the interval of a knee


def knee(removed: Sequence[float], losses: Float[Tensor, "points windows"], within: float) -> Estimate:
    """The largest share that can be removed before the loss leaves its tangent by `within` nats a token.

    The tangent is the line through the first two points (dense, and the least removal); between points the distance to it
    is taken as linear. It is where the distance first exceeds `within`, the last point if it never does. The interval
    is the 95 % of a bootstrap over windows: windows are drawn again with replacement, the knee is found again.

    Flat to 0.2, then up by 1 nat each 0.1: within 0.5 that is half way from 0.2 to 0.3.

    >>> losses = torch.tensor([[2.0, 2.0], [2.0, 2.0], [2.0, 2.0], [3.0, 3.0]])
    >>> print(knee([0.0, 0.1, 0.2, 0.3], losses, within=0.5))
    0.25 ± 0
    """
    x = torch.tensor(removed, dtype=torch.float64)
    if len(x) < 3 or (x.diff() <= 0).any():
        raise ValueError(f"a knee is seen on at least three removals that rise, from dense on; not on {list(removed)}")
    n = losses.shape[1]
    again = torch.randint(n, (DRAWS, n), generator=torch.Generator().manual_seed(0))
    drawn = torch.stack([losses.double().mean(1), *losses.double()[:, again].mean(-1).unbind(1)])
    found = torch.tensor([_turn(x, curve, within) for curve in drawn], dtype=torch.float64)
    low, high = found[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(found[0].item(), min(low, found[0].item()), max(high, found[0].item()), n)


def _turn(x: Float[Tensor, " points"], loss: Float[Tensor, " points"], within: float) -> float:
    slope = (loss[1] - loss[0]) / (x[1] - x[0])
    above = loss - loss[0] - slope * x
    over = (above > within).nonzero()
    if not len(over):
        return x[-1].item()
    i = int(over[0])
    return (x[i - 1] + (within - above[i - 1]) / (above[i] - above[i - 1]) * (x[i] - x[i - 1])).item()


@dataclass(frozen=True)
class Knee(Study):
    """Remove more and more at once, without retraining, and find where the loss leaves its first slope.

    Two curves: unstructured, ranked over the whole model (the paper's one-shot magnitude pruning), and N of every 8;
    each beside random. The paper's essential sparsity is "a sharp dropping point"; here it is `knee`, with an interval.
    """

    paper = Paper("2306.03805", TITLE, 2023, ledger=179)
    method: str = "weights/magnitude"
    removed: tuple[int, ...] = REMOVED
    within: float = 0.1  # nats a token: 10 % of perplexity

    def curves(self) -> dict[str, list[tuple[float, str]]]:
        """By name: the share removed and the step, from the least on."""
        out: dict[str, list[tuple[float, str]]] = {}
        for method in dict.fromkeys((self.method, "weights/random")):
            short = method.partition("/")[2]
            out[short] = [(r / 100, f"{method} {100 - r}% per model") for r in self.removed]
            out[f"{short} N:8"] = [(1 - n / 8, f"{method} {n}:8") for n in range(7, 1, -1)]
        return out

    def ask(self, bench: Bench) -> Found:
        curves = self.curves()
        wanted = [text for curve in curves.values() for _, text in curve]
        dense, *points = measured(bench, [None, *(step(text) for text in wanted)])
        by_text = dict(zip(wanted, points, strict=True))
        rows, says = [], []
        for name, curve in curves.items():
            there = [(0.0, dense), *((r, by_text[text]) for r, text in curve)]
            found = knee([r for r, _ in there], torch.tensor([p.losses for _, p in there]), self.within)
            if not name.startswith("random"):
                says.append(f"{name} {share(found.value)} [{share(found.low)}, {share(found.high)}]")
            for r, point in there:
                own = {"curve": name, "removed": r, "step": point.step, "perplexity": quality_of(point)}
                rows.append(own | with_interval("worse", apart(point, dense)) | with_interval("knee", found))
        titles = {"curve": "curve", "removed": "share removed", "perplexity": "perplexity"}
        titles |= {"worse": "loss over dense, nats a token", "knee": "knee (share removed)"}
        return Found(
            rows, f"Removable before the loss turns up: {', '.join(says)}", titles, "removed", "worse", "curve"
        )


@dataclass(frozen=True)
class KneeAt(Claim):
    """The unstructured knee of one-shot magnitude pruning lies at `removed` or beyond.

    holds: the interval's lower end does; weaker: it lies earlier; does not hold: even the least removal costs `within`.
    """

    method: str
    claim: str
    removed: float
    why: str = ""
    study: Knee = Knee()

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(text for _, text in self._curve)

    @property
    def _curve(self) -> list[tuple[float, str]]:
        return [(0.0, f"{self.study.method} 100% per model"), *next(iter(self.study.curves().values()))]

    def judge(self, points: Mapping[str, Point]) -> Finding:
        losses = torch.tensor([points[str(step(text))].losses for text in self.steps])
        shares = [r for r, _ in self._curve]
        found = knee(shares, losses, self.study.within)
        least = (losses[1] - losses[0]).mean().item()
        verdict = FAILS if least > self.study.within else HOLDS if found.low >= self.removed else WEAKER
        here = f"knee at {share(found.value)} [{share(found.low)}, {share(found.high)}] removed"
        return Finding(self.method, self.study.paper, self.claim, here, verdict, self.why)
