"""TOVA: what the newest token does not read goes."""

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import protect
from fewer.core import Paper, method


@method(Paper("2401.06104", "Transformers are Multi-State RNNs", 2024))
class Tova(ByScore):
    """Keep what the newest query reads most, the mean over all heads of the layer.

    Differs from the paper: the newest token always stays, as in kvpress. Heads that hold different tokens (by other
    methods, or `by` an allocator) each get the mean over the heads that still hold the token.

    Two heads read the older token 1/2 and 1/5.

    >>> k = torch.tensor([[[[1.0], [1.0]], [[1.0], [4.0]]]]).log()
    >>> Tova().score(Past.of(k, q=torch.ones(1, 2, 1, 1))).round(decimals=2)
    tensor([[[0.3500, 2.6500],
             [0.3500, 2.6500]]])
    """

    def score(self, past: Past) -> Score:
        read = past.grouped(past.attention()[:, :, -1]).mean(2)
        return protect(past, past.at == past.last, over_heads(past, read))


def over_heads(past: Past, score: Score) -> Score:
    """A token's mean over the heads that hold it."""
    at = past.at.long().clamp(min=0)
    total = score.new_zeros(len(at), int(at.max()) + 1)
    held = total.clone()
    real = past.real
    total.scatter_add_(1, at.flatten(1), (score * real).flatten(1))
    held.scatter_add_(1, at.flatten(1), real.to(score).flatten(1))
    return (total / held.clamp(min=1)).gather(1, at.flatten(1)).view_as(score)
