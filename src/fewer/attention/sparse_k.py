"""SparseK: a small network says which tokens matter, and its choice has a slope."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import Mixer, Out, Reading, Shape, allowed
from fewer.core import Budget, Paper, method
from fewer.kernels._scores import scores
from fewer.select import sparse_k

TITLE = "Sparser is Faster and Less is More: Efficient Sparse Attention for Long-Range Transformers"


@method(Paper("2406.16747", TITLE, 2024, ledger=208, equation="eq. 5 to 8"))
class SparseK(Mixer):
    """Read the k tokens of the past whose learnt scores are highest, softly: each key and value times m = SparseK(u, k).

    u = w.x of a token's hidden state x, for each head of the keys, is made once and remembered beside the key. For each query m is
    the point of {0 <= m <= 1, sum m = k} that is nearest to the u of what it may read (`select.sparse_k`): most of it is 0 or 1,
    and between both it has a gradient, by which w learns what to keep. Attention is softmax(q.(m k)) (m v) over m > 0.
    Where no more than k may be read, m is 1: the full budget is dense attention. Scores that differ by more than 1 choose as a
    hard top-k does; they begin small, so at first m spreads.

    Differs from the paper: it adds a sliding window (a step of its own layers' choice there); it evaluates m incrementally, in
    linear time, where this sorts for each query: it says what is learnt, not how fast.

    >>> from dataclasses import replace
    >>> r = Reading.of(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 3, 1), torch.tensor([[[[1.0], [2.0], [6.0]]]]))
    >>> r = replace(r, note=torch.tensor([[[[2.0], [0.5], [0.0]]]]))
    >>> round(SparseK().mix(r, budget("2")).item(), 2)  # m is 1, 0.75, 0.25: (1 + 1.5 + 1.5) / 3
    1.33
    """

    chooses = True
    sinks = False

    block: ClassVar[int] = 1
    file: str = ""

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        w = torch.randn(shape.kv_heads, shape.hidden, generator=make) * shape.hidden**-0.5
        return {"w": w}

    def note(self, r: Reading) -> Float[Tensor, "batch kv_heads keys wide"]:
        assert r.x is not None
        wide = torch.promote_types(r.x.dtype, torch.float32)
        return (r.x.to(wide) @ r.parts["w"].to(wide).mT).transpose(1, 2)[..., None]

    def mix(self, r: Reading, budget: Budget) -> Out:
        assert r.note is not None
        outs = [self._some(r, some, budget) for some in r.chunks()]
        return torch.cat(outs, 2).to(r.q.dtype)

    def _some(self, r: Reading, some: slice, budget: Budget) -> Tensor:
        assert r.note is not None
        may, u = r.may(some), r.note[:, :, None, None, :, 0]
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        there = may.sum(-1, keepdim=True)
        k = allowed(there, budget, self).clamp(min=1)
        low = u.detach().amin() - 4  # as good as nothing: more than 1 below all
        m = sparse_k(torch.where(may, u, low), k.clamp(max=may.shape[-1]))
        m = torch.where(there > k, m, 1.0) * may
        q, keys, values = r.grouped(r.q[:, :, some]), r.k[:, :, None], r.v[:, :, None]
        score = scores(q.to(m.dtype), keys.to(m.dtype), r.scale) * m
        score = r.cap * torch.tanh(score / r.cap) if r.cap else score
        read = m > 0
        score = torch.where(read.any(-1, keepdim=True), score.masked_fill(~read, -torch.inf), 0.0)
        return (score.softmax(-1) * m @ values.to(m.dtype)).flatten(1, 2)
