"""DSnoT: move the mask until the mean output is right again."""

from dataclasses import replace

import torch
from torch import Tensor

from fewer.calibrate import InputMean, InputSquares, InputVariance, Stats
from fewer.core import Paper, method
from fewer.weights import Corrector, Pruned, Weight

TITLE = "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs"


@method(Paper("2310.08915", TITLE, 2023, ledger=180, equation="Algorithm 1, eq. 4 and 5"))
class Dsnot(Corrector):
    """Swap kept and pruned weights of a row until E[(w - w') x] is near zero; values are those of the dense map.

    With e = E[(w - w') x] of a row: the pruned weight of largest sign(e) w_k E[x_k] / Var[x_k] comes back, and of
    the kept ones that pull the other way, sign(e) w_k E[x_k] < 0, the one of smallest |w_k| rms(x_k) goes. For N:M
    both lie in the same group. The number kept in each row (group) stays what it was.

    Differs from the paper: a row ends as soon as |e| <= threshold, also before its first swap, and at a swap that
    would not make |e| smaller, so that |e| never grows. Weights that a pruner had changed (SparseGPT) are dense
    again. The authors' code skips MLP maps unless told otherwise (`@ attention` here), has its threshold on sums over
    a window of 2048 tokens, lets |e| grow, and in N:M gives up the cheapest of a group whichever way it pulls, until
    e changes its sign.

    An input of mean 1 is lost and one of mean -1/2 kept: e = 1. They change places, and e = -1/2:

    >>> w, x = torch.tensor([[1.0, 1.0, 3.0]]), torch.tensor([[2.0, -1.0, 3.0], [0.0, 0.0, -3.0]])
    >>> before = Pruned(w * torch.tensor([0.0, 1.0, 1.0]), torch.tensor([[False, True, True]]), budget("2"))
    >>> Dsnot().correct(w, before, observe(Dsnot.needs, w, x)).weight
    tensor([[1., 0., 3.]])
    """

    needs = (InputMean, InputVariance, InputSquares)
    cycles: int = 50  # swaps a row at most
    threshold: float = 0.1  # of |e|, in units of the output

    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        budget, cols = pruned.budget, w.shape[1]
        if budget.unit != (1, 1) or budget.scope == "column" or pruned.low_rank or pruned.around:
            raise ValueError(
                f"dsnot swaps single weights of a row, right after pruning; '{budget}' leaves no room for it"
            )
        pull = w.float() * stats[InputMean].value  # what each weight adds to the mean output
        worth = pull / stats[InputVariance].value.clamp(min=torch.finfo(torch.float32).tiny)
        price = w.float().abs() * stats[InputSquares].rms
        keep, error = pruned.keep.clone(), (pull * ~pruned.keep).sum(1, keepdim=True)
        wide = budget.group or cols
        group = torch.arange(cols, device=w.device) // wide
        going = torch.ones_like(error, dtype=torch.bool)
        for _ in range(self.cycles):
            may_go = keep & (error.sign() * pull < 0)
            partner = may_go.unflatten(1, (-1, wide)).any(-1).repeat_interleave(wide, 1)
            _, back = _best(error.sign() * worth, ~keep & partner)
            loss, away = _best(-price, may_go & (group == group[back]))  # none in the whole row: -inf
            after = error - pull.gather(1, back) + pull.gather(1, away)
            going &= loss.isfinite() & (error.abs() > self.threshold) & (after.abs() < error.abs())
            if not going.any():
                break
            keep.scatter_(1, back, keep.gather(1, back) | going).scatter_(1, away, keep.gather(1, away) & ~going)
            error = torch.where(going, after, error)
        return replace(pruned, weight=w * keep, keep=keep)


def _best(score: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The highest score of each row and its place; -inf if there is none to choose from."""
    best = score.masked_fill(~among, -torch.inf).max(1, keepdim=True)
    return best.values, best.indices
