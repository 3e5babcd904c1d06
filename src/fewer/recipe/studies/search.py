"""Random search of masks: does the best of many random masks beat a random mask?"""

from dataclasses import dataclass

import torch

from fewer.core import Paper
from fewer.measure import mean
from fewer.recipe.frontier import Bench
from fewer.recipe.steps import step

from ._study import Found, Study, measured, with_interval

TITLE = "Random Search as a Baseline for Sparse Neural Network Architecture Search"


@dataclass(frozen=True)
class Search(Study):
    """Draw `masks` random masks of equal density, keep the one of lowest loss, and compare it with the first one drawn.

    The mask is chosen on every other window and judged on the rest, so that luck in choosing is not counted as gain.
    That is done `repeats` times with masks of their own; the interval is Student's over the repeats. The paper trains what
    was chosen, here nothing is trained: what is asked is whether masks differ at all in what a search could find.
    """

    paper = Paper("2403.08265", TITLE, 2024, ledger=102)
    budgets: tuple[str, ...] = ("90%", "50%", "2:4")
    masks: int = 8
    repeats: int = 8

    def ask(self, bench: Bench) -> Found:
        if self.masks < 2 or self.repeats < 2:
            raise ValueError(f"{self.masks} masks, {self.repeats} times: a search needs at least 2 of each")
        seeds = range(self.masks * self.repeats)
        steps = [step(f"weights/random(seed={s}) {budget}") for budget in self.budgets for s in seeds]
        points = measured(bench, steps)
        if len(points[0].losses) < 2:
            raise ValueError(
                "a search chooses on one half of the windows and is judged on the other: write --test 2 or more"
            )
        rows, says = [], []
        for i, budget in enumerate(self.budgets):
            own = points[i * len(seeds) : (i + 1) * len(seeds)]
            losses = torch.tensor([p.losses for p in own]).double().unflatten(0, (self.repeats, self.masks))
            chosen, judged = losses[..., ::2].mean(-1), losses[..., 1::2].mean(-1)
            best = judged.gather(1, chosen.argmin(1, keepdim=True))[:, 0]
            gain = mean(best - judged[:, 0])
            spread = {"spread": judged.std().item(), "first": judged[:, 0].mean().item(), "best": best.mean().item()}
            count = {"masks": self.masks, "repeats": self.repeats}
            rows.append({"budget": budget, **spread, **count, **with_interval("gain", gain)})
            sure = "lower" if gain.high < 0 else "higher" if gain.low > 0 else "no different"
            says.append(f"at {budget} {sure}, {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
        titles = {"budget": "budget", "first": "loss of a random mask", "best": f"of the best of {self.masks}"}
        titles |= {"gain": "difference, nats a token", "spread": "std over masks", "repeats": "repeats"}
        says_all = f"The best of {self.masks} random masks against a random mask: {'; '.join(says)} nats"
        return Found(rows, says_all, titles, "budget", "gain", "budget")
