"""Cur: keys and values that are long among their neighbours."""

from torch import Tensor
from torch.nn.functional import pad

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import protect
from fewer.core import Paper, method


@method(Paper("2509.15038", "Value-Guided KV Compression for LLMs via Approximated CUR Decomposition", 2025))
class Cur(ByScore):
    """Keep the tokens whose key and value have the largest share of the squared lengths of their neighbourhood.

    In spans of `near` slots: score = |k|^2 / sum |k|^2 x |v|^2 / sum |v|^2; the first `sinks` tokens stay.

    Differs from the paper: no random projection before the lengths are taken, as in kvpress by default, whose numbers these are.

    Keys 1 and 3 of 10, values 4 and 4 of 8, squared; no sinks.

    >>> k, v = torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[[[2.0], [2.0]]]])
    >>> Cur(sinks=0).score(Past.of(k, v))
    tensor([[[0.0500, 0.4500]]])
    """

    sinks: int = 4
    near: int = 16

    def score(self, past: Past) -> Score:
        score = self._share(past.k, past) * self._share(past.v, past)
        return protect(past, past.real & (past.rank < self.sinks), score)

    def _share(self, x: Tensor, past: Past) -> Score:
        square, n = x.float().square().sum(-1) * past.real, x.shape[2]
        spans = pad(square, (0, -n % self.near)).unflatten(-1, (-1, self.near))
        return (spans / spans.sum(-1, keepdim=True).clamp(min=1e-30)).flatten(-2)[..., :n]
