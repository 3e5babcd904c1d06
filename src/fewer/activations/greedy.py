"""Greedy: within a block, the map that can best do without goes on doing with less."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

from fewer.activations import Allocator, Share
from fewer.core import Budget, Paper, method


@method(Paper("2408.14690", "Training-Free Activation Sparsity in Large Language Models", 2024, equation="algorithm 1"))
class Greedy(Allocator):
    """From everything kept, again and again take `step` of the block's weights away from the place where the block's error grows least.

    A place i that holds a share f_i of the block's weights loses `step / f_i` of its inputs at a time. This goes on until the
    block reads no more than the budget; the last piece is as small as it has to be.

    >>> shares = [Share("a", 0, 10, 10), Share("b", 0, 10, 10)]
    >>> wrong = lambda budgets: 4 * (1 - budgets[0].keep) + (1 - budgets[1].keep)  # a matters more
    >>> [str(b) for b in Greedy(step=0.1).allocate(budget("60%"), shares, wrong)]
    ['100%', '20%']
    """

    step: float = 0.05

    def allocate(
        self, budget: Budget, shares: Sequence[Share], error: Callable[[Sequence[Budget]], float]
    ) -> list[Budget]:
        every = sum(s.weights for s in shares)
        goal = sum(Fraction(s.weights * budget.of(s.cols), s.cols) for s in shares) / every
        kept, least = [Fraction(1)] * len(shares), [Fraction(1, s.cols) for s in shares]
        step = Fraction(str(self.step))
        while (read := sum(k * s.weights for k, s in zip(kept, shares, strict=True)) / every) > goal:
            tries = []
            for i, s in enumerate(shares):
                less = max(least[i], kept[i] - min(step, read - goal) * every / s.weights)
                if less < kept[i]:
                    trial = [*kept[:i], less, *kept[i + 1 :]]
                    tries.append((error([replace(budget, keep=k) for k in trial]), trial))
            if not tries:
                break
            kept = min(tries, key=lambda t: t[0])[1]
        return [replace(budget, keep=k) for k in kept]
