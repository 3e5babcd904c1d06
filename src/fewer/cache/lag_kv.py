"""LagKV: a token that stands out against the span after its own."""

import torch

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import protect
from fewer.core import Paper, method

TITLE = "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important"


@method(Paper("2504.04704", TITLE, 2025, equation="eqs. 3-8"))
class LagKv(ByScore):
    """Keep the tokens whose key and value spread most over channels, each measured in the next span's range of the channel.

    After `sinks` tokens come spans of `lag`. Of a span P and the next one N, per channel: x = (P - min N) / (max N - min N);
    score = softmax over the span of the deviation of x over channels, the mean of keys' and values', as a rank in its span
    unless `across`. The sinks stay first, then the span and the rest that have no whole span after them.

    Differs from the paper: kvpress' form and numbers (sinks 4, lag 128). A channel that is constant over a span counts 0.

    Spans of two with one sink: of (0, 8) and (4, 4), in units of the next span's (0, 4) and (0, 8), the first spreads more.

    >>> k = torch.tensor([[[[9.0, 9.0], [0.0, 8.0], [4.0, 4.0], [0.0, 0.0], [4.0, 8.0]]]])
    >>> LagKv(sinks=1, lag=2).score(Past.of(k))
    tensor([[[3.5000, 0.5000, 0.0000, 2.2500, 2.5000]]])
    """

    sinks: int = 4
    lag: int = 128
    across: bool = False

    def score(self, past: Past) -> Score:
        n = past.k.shape[2]
        whole, spans = n - self.sinks, -(-max(n - self.sinks, 0) // self.lag)
        score = past.k.new_zeros(past.at.shape, dtype=torch.float32)
        rest = past.real.clone()
        if spans > 1:
            real = torch.nn.functional.pad(past.real[..., self.sinks :], (0, spans * self.lag - whole))
            full = real.unflatten(-1, (spans, self.lag)).all(-1)
            judged = (full[..., :-1] & full[..., 1:])[..., None].expand(-1, -1, -1, self.lag).flatten(-2)
            part = (self._spread(past.k, spans) + self._spread(past.v, spans)) / 2
            if not self.across:
                part = part.argsort(dim=-1, stable=True).argsort(-1) / self.lag
            m = min(judged.shape[-1], whole)
            score[..., self.sinks : self.sinks + m] = part.flatten(-2)[..., :m]
            rest[..., self.sinks : self.sinks + m] &= ~judged[..., :m]
        score = protect(past, rest, score)
        return protect(past, past.real & (past.rank < self.sinks), score)

    def _spread(self, x: torch.Tensor, spans: int) -> torch.Tensor:
        """[batch, kv_heads, spans - 1, lag]"""
        x = x[:, :, self.sinks :].float()
        x = torch.nn.functional.pad(x, (0, 0, 0, spans * self.lag - x.shape[2])).unflatten(2, (spans, self.lag))
        low, high = x[:, :, 1:].amin(3, keepdim=True), x[:, :, 1:].amax(3, keepdim=True)
        scaled = torch.where(high > low, (x[:, :, :-1] - low) / (high - low), 0.0)
        return scaled.std(-1).softmax(-1)
