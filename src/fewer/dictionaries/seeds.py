"""Dictionaries that differ in nothing but their seed: what is true of the method, and what of one run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from fewer.features import Dictionary
from fewer.measure import Score, over_seeds
from fewer.measure.matching import stability

from .judge import judge, row


def alike(several: Sequence[Dictionary]) -> bool:
    """Whether there are several, learnt alike but for the seed: method, budget, widths, sites, and what `about` says of text."""
    first = several[0]

    def what(d: Dictionary) -> tuple:
        said = {name: value for name, value in d.about.items() if name not in ("seed", "dead")}
        return d.sparsifier, str(d.budget), d.encoder.shape, d.decoder.shape, d.skip is None, d.reads, d.writes, said

    seeds = [d.about.get("seed", i) for i, d in enumerate(several)]
    return len(several) > 1 and len({*map(str, seeds)}) == len(seeds) and all(what(d) == what(first) for d in several)


def judge_seeds(
    several: Mapping[str, Dictionary],
    model: nn.Module,
    windows: Int[Tensor, "count length"],
    leave: frozenset[int] = frozenset(),
    batch: int = 4,
    told: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """A row of `judge` for each by its name, one of their means, `mean`, and the controls of the first.

    In the row `mean` an interval is Student's over seeds: of what another run would come to; elsewhere it is over windows. It also
    says `stability`: the share of latents that another seed finds too, by Hungarian matching of what they write (see
    `measure.matching.stability`). `told` hears how many are judged.
    """
    stable = stability([d.decoder for d in several.values()])  # first: what it lacks is said before the work
    rows, controls = [], []
    for name, d in several.items():
        first, *rest = judge(d, model, windows, leave, batch, controls=not rows)
        controls = controls or rest
        rows.append(first | {"name": name})
        if told:
            told(len(rows), len(several))
    return [*rows, of_seeds(rows, stable), *controls]


def of_seeds(rows: Sequence[Mapping[str, Any]], *more: Score) -> dict[str, Any]:
    """The mean of rows, with intervals over them; a number that one of them lacks is left out.

    >>> rows = [{"name": "a", "l0": 2.0, "better": {"l0": "lower"}}, {"name": "b", "l0": 4.0, "better": {"l0": "lower"}}]
    >>> of_seeds(rows)  # 3 +- 12.7 * sqrt(2) / sqrt(2)
    {'name': 'mean', 'l0': 3.0, 'l0_low': -9.70..., 'l0_high': 15.70..., 'better': {'l0': 'lower'}, 'seeds': 2}
    """
    known = {n: way for n, way in rows[0]["better"].items() if all(n in one for one in rows)}
    scores = [over_seeds([one[name] for one in rows], name, way == "higher") for name, way in known.items()]
    same = {n: v for n, v in rows[0].items() if n in ("tokens", "mask", "missing")}
    return row("mean", (*scores, *more)) | {"seeds": len(rows)} | same
