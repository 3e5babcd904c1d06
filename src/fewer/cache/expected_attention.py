"""ExpectedAttention: what queries to come will read, if they are like those that were."""

import torch

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import protect, without_turn
from fewer.core import Paper, method

TITLE = "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution"


@method(Paper("2510.00636", TITLE, 2025))
class ExpectedAttention(ByScore):
    """Keep the tokens to which normally distributed future queries would pay most attention, times their value's length.

    With m and S the mean and covariance of the queries before their rotation, and R the mean rotation over the next
    `future` positions: z = scale m'R'k + 1/2 scale^2 k'R S R'k; score = (mean over the group of softmax z + `floor`) |v|.

    Differs from the paper: nothing known; the first `sinks` tokens stay and are left out of moments and softmax, and
    floor is 0, as in kvpress. Queries are those since it was last asked: all of a prompt, few while decoding.

    All queries are 1, so the variance is 0; keys log 1 and log 3: softmax 1/4 and 3/4, times values 2 and 1.

    >>> k, v = torch.tensor([[[[1.0], [3.0]]]]).log(), torch.tensor([[[[2.0], [1.0]]]])
    >>> ExpectedAttention(sinks=0).score(Past.of(k, v, torch.ones(1, 1, 2, 1)))
    tensor([[[0.5000, 0.7500]]])
    """

    window = 0
    future: int = 512
    sinks: int = 4
    covariance: bool = True
    values: bool = True
    floor: float = 0.0

    def score(self, past: Past) -> Score:
        past = past.text
        sink = past.rank < self.sinks
        k = past.grouped(self._logits(past)).masked_fill((sink | ~past.real)[:, :, None], -torch.inf)
        score = torch.where(k.isinf(), 0.0, k.softmax(-1)).mean(2)
        if self.values:
            score = (score + self.floor) * past.v.float().norm(dim=-1)
        return protect(past, past.real & sink, score)

    def _logits(self, past: Past) -> torch.Tensor:
        """z, [batch, heads, keys]; moments are taken of queries turned to where the next token will stand."""
        use = (past.now >= self.sinks) if (past.now >= self.sinks).any() else past.now >= 0
        use = use[:, None, :, None].float()
        q = without_turn(past, past.q, (past.now - past.seen[:, None])[:, None])
        n = use.sum(2, keepdim=True).clamp(min=1)
        mean = (q * use).sum(2, keepdim=True) / n
        turn = torch.eye(q.shape[-1], device=q.device)
        if past.rope is not None:
            ahead = torch.arange(self.future, device=q.device)[:, None]
            turn = past.rope.turn(turn.expand(self.future, -1, -1), ahead).mean(0)
        k = past.k.float().repeat_interleave(q.shape[1] // past.k.shape[1], 1)
        z = past.scale * (k @ (mean @ turn).mT)[..., 0]
        if self.covariance:
            spread = ((q - mean) * use) @ turn  # [batch, heads, window, dim]
            z = z + past.scale**2 / 2 * (k @ (spread.mT @ spread / n) * k).sum(-1)
        return z
