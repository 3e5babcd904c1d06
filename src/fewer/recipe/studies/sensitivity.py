"""Which part of a model bears pruning: one block, or one role, at a time."""

from dataclasses import dataclass

from fewer.core import Paper
from fewer.models import blocks, sites
from fewer.recipe.frontier import Bench
from fewer.recipe.steps import step

from ._study import Found, Study, apart, measured, quality_of, with_interval

TITLE = "Learning both Weights and Connections for Efficient Neural Networks"


@dataclass(frozen=True)
class Sensitivity(Study):
    """Prune one part at a time, all else dense, and see what it costs in loss and in KL to dense.

    Parts are the blocks of the model, or the roles of its maps. `each` is the loss a million weights removed, so that a
    large part is not called sensitive for its size. Pruning all at once is the last row; the parts need not add up to it.
    """

    paper = Paper("1506.02626", TITLE, 2015, equation="Figure 6")
    method: str = "weights/wanda"
    budgets: tuple[str, ...] = ("50%", "30%")
    by: str = "block"

    def places(self, bench: Bench) -> dict[str, str]:
        """The parts by name, and the pattern that finds each."""
        kinds = {
            "block": {str(i): f"{name}.*" for i, (name, _) in enumerate(blocks(bench.shape))},
            "role": {s.role: s.role for s in sites(bench.shape)},
        }
        if self.by not in kinds:
            raise ValueError(f"no parts by {self.by!r}; write --by {' or --by '.join(kinds)}")
        return kinds[self.by]

    def ask(self, bench: Bench) -> Found:
        places = {**self.places(bench), "all": "*"}
        asked = [(part, budget) for budget in self.budgets for part in places]
        steps = [step(f"{self.method} {budget} @ {places[part]}") for part, budget in asked]
        dense, *points = measured(bench, [None, *steps])
        sizes = {part: sum(s.shape[0] * s.shape[1] for s in sites(bench.shape, at)) for part, at in places.items()}
        rows = []
        for (part, budget), point in zip(asked, points, strict=True):
            assert point.kept is not None and point.kl is not None
            gone = sizes[part] * (1 - point.kept) / 1e6
            worse = apart(point, dense)
            own = {"part": part, "budget": budget, "weights": sizes[part], "perplexity": quality_of(point)}
            rows.append(own | {"kl": point.kl.value, "each": worse.value / gone} | with_interval("worse", worse))
        worst = max((r for r in rows if r["part"] != "all"), key=lambda r: r["worse"])
        least = min((r for r in rows if r["budget"] == worst["budget"]), key=lambda r: r["worse"])
        says = f"At {worst['budget']}, {self.by} {worst['part']} costs {worst['worse']:+.3f} nats a token, "
        says += f"{self.by} {least['part']} {least['worse']:+.3f}"
        titles = {"part": self.by, "budget": "budget", "worse": "loss over dense, nats a token", "kl": "KL to dense"}
        titles |= {"each": "loss a million weights removed", "weights": "weights", "perplexity": "perplexity"}
        return Found(rows, says, titles, "part", "worse", "budget")
