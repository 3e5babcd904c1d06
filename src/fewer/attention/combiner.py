"""Combiner: what is near word by word, what is far by regions that attend to themselves."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import Mixer, Out, Reading, in_chunks, laid
from fewer.core import Budget, Paper, method
from fewer.kernels._scores import scores, softmax_of

TITLE = "Combiner: Full Attention Transformer with Sparse Computation Cost"


@method(Paper("2107.05768", TITLE, 2021, ledger=173))
class Combiner(Mixer):
    """Read the tokens of one's own region of the text and, as one more key each, all regions before it (Combiner-Fixed).

    A region of `span` tokens says max(k) of its keys, in each dimension, for a key; its value is its own attention to its tokens,
    softmax(scale max(q).k) v. So every token before a query has weight: p(region) p(token | region); with span=1 this is softmax
    attention. Its work is L (L / span + span), least at span = sqrt(L).

    Queries are remembered beside keys, a cache of 1 + group times the keys. With a window, a region that is cut is not read.

    >>> from dataclasses import replace
    >>> r = Reading.of(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1), torch.tensor([[[[1.0], [3.0], [8.0]]]]))
    >>> m = Combiner(span=2)
    >>> m.mix(replace(r, note=m.note(r)), budget("100%")).flatten()  # of the last: (8 + mean(1, 3)) / 2
    tensor([1., 2., 5.])
    """

    sinks = False
    span: int = 64

    def note(self, r: Reading) -> Float[Tensor, "batch kv_heads keys wide"]:
        return r.grouped(r.q).transpose(2, 3).flatten(3)

    def mix(self, r: Reading, budget: Budget) -> Out:
        if self.span < 1:
            raise ValueError(f"{self.name}: span={self.span} makes no regions; write span=64")
        r = laid(r, self)
        keys, values = self._regions(r)
        wide = torch.promote_types(r.q.dtype, torch.float32)
        k, v, region = (
            r.k.to(wide)[:, :, None],
            r.v.to(wide)[:, :, None],
            torch.arange(keys.shape[3], device=r.q.device),
        )

        def part(some: slice) -> Tensor:
            now = r.now[:, some]
            first = max(0, int(now.masked_fill(now < 0, k.shape[3]).min())) // self.span * self.span
            last = min(k.shape[3], int(now.max()) + 1)
            near = slice(min(first, last), last)
            own = now[:, None, None, :, None] // self.span
            may_near = r.may(some)[..., near] & (r.at[:, :, None, None, near] // self.span == own)
            may_far = (region < own) & (region * self.span > now[:, None, None, :, None] - (r.window or 2**30))
            q = r.grouped(r.q[:, :, some]).to(wide)
            score = torch.cat([scores(q, x, r.scale, r.cap) for x in (k[..., near, :], keys)], -1)
            few = v[..., near, :].expand(-1, -1, q.shape[2], -1, -1)
            may = torch.cat([may_near, may_far.expand(*may_near.shape[:-1], -1)], -1)
            return softmax_of(score, may, torch.cat([few, values], 3))[0].flatten(1, 2)

        return in_chunks(r, part).to(r.q.dtype)

    def _regions(self, r: Reading) -> tuple[Tensor, Tensor]:
        """The key and the value of each region, `[batch, kv_heads, 1 or group, regions, dim]`; of one without tokens, zero."""
        assert r.note is not None
        wide = torch.promote_types(r.q.dtype, torch.float32)
        short = -r.k.shape[2] % self.span

        def cut(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x.to(wide), (0, 0, 0, short)).unflatten(2, (-1, self.span))

        real = torch.nn.functional.pad(r.at >= 0, (0, short)).unflatten(2, (-1, self.span))
        k, v, q = cut(r.k), cut(r.v), cut(r.note)

        def highest(x: Tensor) -> Tensor:
            return torch.where(real.any(3)[..., None], x.masked_fill(~real[..., None], -torch.inf).amax(3), 0.0)

        asks = highest(q).unflatten(-1, (-1, r.q.shape[-1])).transpose(2, 3)
        score = scores(asks[..., None, :], k[:, :, None], r.scale, r.cap)
        return highest(k)[:, :, None], softmax_of(score, real[:, :, None, :, None], v[:, :, None])[0][..., 0, :]
