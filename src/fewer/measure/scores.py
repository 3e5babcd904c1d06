"""Small exact scores: variance left unexplained, nDCG, recall."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def fvu(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> float:
    """The fraction of variance unexplained, `sum |x - x_hat|^2 / sum |x - mean(x)|^2`, over the whole set, in float64.

    About the mean (about zero it would flatter every data set with a large mean), over all at once (a mean over batches
    of this quotient is another number), and with the residual as it is (a constant error costs what it costs).

    >>> fvu(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]]))  # 1 / (1 + 1)
    0.5
    """
    x, x_hat = x.double(), x_hat.double()
    spread = (x - x.mean(0)).square().sum()
    if spread == 0:
        raise ValueError("all rows are the same: there is no variance to explain; give more than one distinct row")
    return ((x - x_hat).square().sum() / spread).item()


def ndcg(score: Float[Tensor, "queries n"], gain: Float[Tensor, "queries n"], k: int) -> Float[Tensor, " queries"]:
    """Normalised discounted cumulative gain of the first `k`: `sum gain / log2(rank + 1)` over its best possible value.

    Linear gain, as in trec_eval; ties in the score go to the lower index; a query that nothing answers gets 0.
    Jarvelin and Kekalainen, "Cumulated gain-based evaluation of IR techniques" (2002).

    >>> ndcg(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[0.0, 1.0, 0.0]]), k=3)  # 1 / log2(3)
    tensor([0.6309], dtype=torch.float64)
    """
    rank = score.argsort(dim=-1, descending=True, stable=True)[:, :k]
    gain = gain.double()
    worth = 1 / torch.arange(2, rank.shape[1] + 2, dtype=torch.float64, device=score.device).log2()
    got = (gain.gather(-1, rank) * worth).sum(-1)
    best = (gain.sort(dim=-1, descending=True).values[:, :k] * worth).sum(-1)
    return torch.where(best > 0, got / best.where(best > 0, 1.0), 0.0)


def recall_at(score: Float[Tensor, "queries n"], right: Bool[Tensor, "queries n"], k: int) -> Float[Tensor, " queries"]:
    """The share of the right ones that are among the `k` highest scores; ties as in `ndcg`; 0 where nothing is right.

    >>> recall_at(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[True, False, True]]), k=2)
    tensor([0.5000], dtype=torch.float64)
    """
    rank = score.argsort(dim=-1, descending=True, stable=True)[:, :k]
    return right.gather(-1, rank).sum(-1).double() / right.sum(-1).clamp(min=1)
