"""Large and sparse against small and dense, at equal stored bytes."""

from dataclasses import dataclass

import torch

from fewer.core import Paper
from fewer.recipe.frontier import Bench
from fewer.recipe.steps import step

from ._study import Found, Study, apart, measured, quality_of, with_interval

TITLE = "To prune, or not to prune: exploring the efficacy of pruning for model compression"


@dataclass(frozen=True)
class LargeSmall(Study):
    """Prune a large model until it is stored in as many bytes as a small dense one, and compare on the same text.

    Of the budgets, the best that fits the bytes of the small model counts: whole models as stored, indices, embeddings
    and all. The paper prunes while it trains; here the large model is pruned once, which asks more of it.
    """

    paper = Paper("1710.01878", TITLE, 2017, ledger=388)
    small: Bench
    method: str = "weights/sparse_gpt"
    budgets: tuple[str, ...] = ("60%", "50%", "40%", "30%", "20%", "10%")

    def ask(self, bench: Bench) -> Found:
        if not torch.equal(bench.base.test, self.small.base.test):
            raise ValueError(
                f"{bench.base.model} and {self.small.base.model} read text as different tokens: perplexities a token of two "
                "tokenizers cannot be compared; give models that share one"
            )
        (dense,) = measured(self.small, [None])
        whole, *points = measured(bench, [None, *(step(f"{self.method} {b}") for b in self.budgets)])
        bytes_of = dense.bytes_after or 0
        fits = [p for p in points if (p.bytes_after or 0) <= bytes_of]
        rows = []
        for name, point in [("small", dense), *(("large", p) for p in (whole, *points))]:
            own = {
                "model": name,
                "step": point.step,
                "megabytes": (point.bytes_after or 0) / 1e6,
                "fits": point in fits,
            }
            rows.append(own | {"perplexity": quality_of(point)} | with_interval("worse", apart(point, dense)))
        titles = {"model": "model", "step": "step", "megabytes": "megabytes stored", "perplexity": "perplexity"}
        titles |= {"worse": "loss over the small dense model, nats a token"}
        return Found(rows, self._says(fits, points, dense, bytes_of), titles, "megabytes", "worse", "model")

    def _says(self, fits: list, points: list, dense: object, bytes_of: int) -> str:
        room = f"{bytes_of / 1e6:.1f} MB"
        if not fits:
            least = min(p.bytes_after for p in points) / 1e6
            return f"No budget brings the large model to the small one's {room}: the least is {least:.1f} MB; write lower ones"
        best = min(fits, key=quality_of)
        found = apart(best, dense)  # type: ignore[arg-type]
        verdict = "better than" if found.high < 0 else "worse than" if found.low > 0 else "as good as"
        return (
            f"In {room}, the large model by {best.step} is {verdict} the small dense one: "
            f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] nats a token"
        )
