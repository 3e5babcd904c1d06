"""SEA: attention is estimated from random features, small, and only its largest part is worked out."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fewer.attention import Mixer, Out, Parts, Reading, Shape, in_chunks, laid
from fewer.attention.scatterbrain import directions, feature_logs
from fewer.core import Budget, Paper, method
from fewer.kernels import top_k
from fewer.kernels._scores import softmax_of

LOOK = 4  # rows back that each of the two convolutions sees


@method(Paper("2310.01777", "SEA: Sparse Linear Attention with Estimated Attention Mask", 2023, ledger=185))
class Sea(Mixer):
    """Estimate each query's attention in `width` columns over its text, and read the tokens of the highest, as the budget says.

    Random features (Performer's) give each query a mean of the values before it and of what names their places; with its own
    value, an encoder and two convolutions over columns and earlier queries make `width` scores of it. Column c of the query
    at place t stands for the tokens j with floor(j width / (t + 1)) = c. What is read is softmax attention, times s, plus 1 - s times the mean of all
    values before, s = sigmoid of the encoding. The choice has no gradient: `penalty`, the KL of the true attention to the
    estimate, is what the estimator learns from, best on a frozen model. Queries are remembered beside keys.

    Differs from the paper: sines and cosines name places, not a learnt table of 2048; each head chooses for itself, not all
    of a query together; a budget is met exactly, so that the last column may be read in part. Estimates and choice
    are worked out for all keys, some queries at a time.

    >>> from dataclasses import replace
    >>> m, shape = Sea(width=8), Shape(heads=2, kv_heads=1, dim=4, hidden=8)
    >>> r = Reading.of(torch.zeros(1, 2, 5, 4), torch.zeros(1, 1, 5, 4), torch.ones(1, 1, 5, 4), m.begin(shape, torch.Generator()))
    >>> m.mix(replace(r, note=m.note(r)), budget("2"))[0, 0, 4]  # a mean of ones, whichever are read
    tensor([1., 1., 1., 1.])
    """

    chooses, sinks = True, False
    width: int = 64
    seed: int = 0
    file: str = ""

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        if self.width < 4 or self.width % 4:
            raise ValueError(f"{self.name}: width={self.width} is made of quarters; write width=64")
        heads, dim, small = shape.heads, shape.dim, self.width // 4

        def drawn(*size: int) -> Tensor:
            return torch.randn(*size, generator=make) * math.prod(size[1:]) ** -0.5

        return {
            "encode": drawn(2 * dim, 3 * dim), "encode_bias": torch.zeros(2 * dim), "encode_gain": torch.ones(2 * dim),
            "row": drawn(2 * small, 2 * dim), "row_bias": torch.zeros(2 * small), "row_gain": torch.ones(small),
            "first": drawn(2 * heads, 2 * heads, 3, 3), "second": drawn(2 * heads, 2 * heads, 3, 3),
            "last": drawn(heads, 2 * heads, 1, 1), "column_gain": torch.ones(self.width),
            "share": drawn(1, 2 * dim), "share_bias": torch.full((1,), 4.0),
        }  # fmt: skip

    def note(self, r: Reading) -> Float[Tensor, "batch kv_heads keys wide"]:
        return r.grouped(r.q).transpose(2, 3).flatten(3)

    def mix(self, r: Reading, budget: Budget) -> Out:
        r = laid(r, self)
        values = r.v.to(torch.promote_types(r.v.dtype, torch.float32))[:, :, None]

        def part(some: slice) -> Tensor:
            may = r.may(some)
            score, share = self._estimate(r, some)
            with torch.no_grad():
                count = r.counts(budget, some)[..., 0].expand(score.shape[:-1])
                keep = top_k(score.masked_fill(~may, -torch.inf), count.minimum(may.sum(-1))) & may
            near = softmax_of(r.scores(some), keep, values)[0]
            mean = softmax_of(torch.zeros_like(score), may, values)[0]
            return (share * near + (1 - share) * mean).flatten(1, 2)

        return in_chunks(r, part).to(r.q.dtype)

    def penalty(self, r: Reading) -> Float[Tensor, ""]:
        r = laid(r, self)

        def part(some: slice) -> Tensor:
            may = r.may(some)
            true = r.scores(some).detach().masked_fill(~may, -torch.inf)
            true = torch.where(may.any(-1, keepdim=True), true, 0.0).softmax(-1) * may
            said = self._estimate(r, some)[0].masked_fill(~may, -torch.inf)
            said = torch.where(may.any(-1, keepdim=True), said, 0.0).log_softmax(-1).masked_fill(~may, 0.0)
            return (torch.special.xlogy(true, true) - true * said).sum(-1).flatten(1, 2)

        return in_chunks(r, part).mean()

    def _estimate(self, r: Reading, some: slice) -> tuple[Tensor, Tensor]:
        """A score of each token for each of some queries, `[batch, kv_heads, group, queries, keys]`; and the share of what is read."""
        now = r.now[:, some]
        low, high = int(now.masked_fill(now < 0, r.k.shape[2]).min()), int(now.max()) + 1
        low = min(low, max(high - 1, 0))
        row = torch.arange(
            low - 2 * LOOK, max(high, low + 1), device=now.device
        )  # places; before the text there is nothing
        code = self._encoded(r, row)
        columns = self._columns(r.parts, code.flatten(1, 2), row).unflatten(1, code.shape[1:3])
        share = (F.linear(code, r.parts["share"].to(code), r.parts["share_bias"].to(code))).sigmoid()[
            ..., 2 * LOOK :, :
        ]
        mine = (now - low).clamp(min=0).long()[:, None, None, :, None]
        columns, share = (x.gather(3, mine.expand(*x.shape[:3], -1, x.shape[4])) for x in (columns, share))
        place = torch.arange(r.k.shape[2], device=now.device)
        column = place * self.width // (now[..., None] + 1).clamp(min=1)
        column = column.clamp(max=self.width - 1)[:, None, None].expand(*columns.shape[:4], -1)
        return columns.gather(-1, column), share

    def _encoded(self, r: Reading, row: Int[Tensor, " rows"]) -> Tensor:
        """What is known of the query at each of these places: `[batch, kv_heads, group, rows, 2 dim]`, zero before the text."""
        assert r.note is not None
        wide, dim, there = torch.promote_types(r.q.dtype, torch.float32), r.q.shape[-1], row >= 0
        at = row.clamp(min=0)
        q = r.note[:, :, at].to(wide).unflatten(-1, (-1, dim)).transpose(2, 3)
        along = directions(2 * dim, dim, self.seed).to(q)
        keys, asks = (feature_logs(x * r.scale**0.5, along) for x in (r.k.to(wide)[:, :, None], q))
        keys = (keys - keys.detach().amax((-1, -2), keepdim=True)).exp()
        asks = (asks - asks.detach().amax(-1, keepdim=True)).exp()
        before = (r.at[:, :, None, None] >= 0) & (r.at[:, :, None, None] <= row[:, None])
        if r.window:
            before = before & (r.at[:, :, None, None] > row[:, None] - r.window)
        weight = asks @ keys.mT * before
        v = r.v.to(wide)[:, :, None]
        known = torch.cat([_named(r.k.shape[2], dim, v), v], -1)
        mean = weight @ known / weight.sum(-1, keepdim=True).clamp(min=1e-20)
        own = v[..., at, :].expand(*mean.shape[:-1], -1)
        part = {name: t.to(wide) for name, t in r.parts.items()}
        code = F.linear(torch.cat([mean, own], -1), part["encode"], part["encode_bias"])
        return F.gelu(F.layer_norm(code, code.shape[-1:], part["encode_gain"])) * there[:, None]

    def _columns(self, parts: Parts, code: Tensor, row: Int[Tensor, " rows"]) -> Tensor:
        """The scores of the columns, `[batch, heads, rows, width]`, of all rows but the first 2 LOOK."""
        part = {name: t.to(code.dtype) for name, t in parts.items()}
        there = (row >= 0)[:, None]
        x = F.linear(code, part["row"], part["row_bias"]).unflatten(-1, (2, -1))  # two channels of each head
        x = F.layer_norm(x, x.shape[-1:], part["row_gain"]).transpose(2, 3).flatten(1, 2) * there
        x = F.conv2d(x, part["first"], dilation=2, padding=(0, 2)).relu() * there[LOOK:]
        x = F.conv2d(x, part["second"], dilation=2, padding=(0, 2)).relu()
        x = F.conv2d(x.repeat_interleave(4, -1), part["last"])
        return F.layer_norm(x, x.shape[-1:], part["column_gain"])


def _named(places: int, dim: int, like: Tensor) -> Float[Tensor, "one two three places dim"]:
    """Sines and cosines of each place."""
    half = torch.arange(-(-dim // 2), device=like.device)
    angle = torch.arange(places, device=like.device)[:, None] * 10000.0 ** (-2 * half / dim)
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :dim].to(like.dtype).expand(*like.shape[:3], -1, -1)
