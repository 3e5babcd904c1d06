"""Boosted: several dictionaries as one, each coding by its own rule; what they say adds up."""

import re
from collections.abc import Iterator
from itertools import accumulate

import torch

from fewer.core import Budget, Paper, budget, method
from fewer.core.spell import method_of
from fewer.features import NOTHING, Own, Pre, Sparsifier

_PART = re.compile(r"(?P<rule>\S+(?:\(.*\))?) (?P<budget>.+) of (?P<latents>\d+)")


@method(Paper("2507.12990", "Teach Old SAEs New Domain Tricks with Boosting", 2025, ledger=394))
class Boosted(Sparsifier):
    """Latents are those of several dictionaries, one after another; each codes its own by its own rule and budget.

    x_hat = x_hat_1 + x_hat_2 + ..., and the number of latents that speak is the sum of theirs: what `fewer.train.learn_boost`
    gives. `parts` says who they are: "features/top_k 32 of 4096 + features/batch_top_k 5 of 512". Without, there are two
    TopK of equal size with half the budget each. What a part has learnt itself is called `0.threshold`, `1.threshold`.

    >>> m = Boosted("features/top_k 1 of 2 + features/top_k 2 of 3")
    >>> m.code(torch.tensor([[3.0, 2.0, 1.0, 4.0, 5.0]]), budget("3"))
    tensor([[3., 0., 0., 4., 5.]])
    """

    parts: str = ""

    def begin(self, latents: int, budget: Budget) -> dict[str, torch.Tensor]:
        each = enumerate(self._each(latents, budget))
        return {f"{i}.{name}": t for i, (m, b, n) in each for name, t in m.begin(n, b).items()}

    def code(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return torch.cat([m.code(p, b, o) for m, b, p, o in self._dealt(pre, budget, own)], 1)

    def serve(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return torch.cat([m.serve(p, b, o) for m, b, p, o in self._dealt(pre, budget, own)], 1)

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, torch.Tensor]:
        each = enumerate(self._dealt(pre, budget, own))
        return {f"{i}.{name}": t for i, (m, b, p, o) in each for name, t in m.settle(p, b, o).items()}

    def _dealt(self, pre: Pre, budget: Budget, own: Own) -> Iterator[tuple[Sparsifier, Budget, Pre, Own]]:
        """Each part's rule, budget, pre-activations and what it has learnt."""
        each = self._each(pre.shape[1], budget)
        ends = [0, *accumulate(n for _, _, n in each)]
        for i, (m, b, n) in enumerate(each):
            mine = {name.partition(".")[2]: t for name, t in own.items() if name.startswith(f"{i}.")}
            yield m, b, pre[:, ends[i] : ends[i] + n], mine

    def _each(self, latents: int, whole: Budget) -> list[tuple[Sparsifier, Budget, int]]:
        """ValueError: a part that is no rule of this axis, or looks at the input; another number of latents than there are."""
        if not self.parts:
            half, k = latents // 2, whole.of(latents)
            sizes = [(half, k // 2), (latents - half, k - k // 2)]
            return [(_rule("features/top_k"), budget(str(max(1, min(k, n)))), n) for n, k in sizes]
        found = []
        for part in self.parts.split(" + "):
            if not (said := _PART.fullmatch(part)):
                raise ValueError(f"not a part: {part!r}; write 'features/top_k 32 of 4096'")
            found.append((_rule(said["rule"]), budget(said["budget"]), int(said["latents"])))
        if (total := sum(n for _, _, n in found)) != latents:
            raise ValueError(f"{self.parts!r} says {total} latents, there are {latents}")
        return found


def _rule(text: str) -> Sparsifier:
    rule = method_of(text, "features")
    if not isinstance(rule, Sparsifier) or rule.looks:
        raise ValueError(f"{text}: a part chooses by pre-activations alone, as features/top_k does")
    return rule
