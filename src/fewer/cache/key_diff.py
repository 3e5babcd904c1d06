"""KeyDiff: a key unlike the others is the one that is read."""

from torch.nn.functional import normalize

from fewer.cache import ByScore, Past, Score
from fewer.core import Paper, method

TITLE = "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained Environments"


@method(Paper("2504.15364", TITLE, 2025))
class KeyDiff(ByScore):
    """Keep the keys whose direction is least like the mean direction: score = -cos(k, mean of k / |k|).

    Differs from the paper: nothing known; its loop over blocks is `cache/block_wise`.

    >>> KeyDiff().score(Past.of(torch.tensor([[[[2.0, 0.0], [3.0, 0.0], [-1.0, 0.0]]]])))
    tensor([[[-1., -1.,  1.]]])
    """

    def score(self, past: Past) -> Score:
        k = normalize(past.k.float(), dim=-1)
        mean = (k * past.real[..., None]).sum(2, keepdim=True)  # its length does not matter
        return -(k * normalize(mean, dim=-1)).sum(-1)
