"""SeerAttention: a learnt gate over pooled queries and keys."""

from dataclasses import field

import torch
from torch import Tensor

from fewer.attention import NONE, Digest, Held, Key, Learnt, Mass, Query, Score, Shape, in_blocks, pooled
from fewer.core import Paper, method

from ._dots import dots, means


@method(Paper("2410.13276", "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs", 2024, ledger=193))
class Seer(Learnt):
    """Rank a block by (W_q mean(q)) . (W_k [mean(k), max(k), min(k)]) / sqrt(g), g the width of the gate.

    W_q, a matrix [g, dim] for each head of the keys, and W_k, one [g, 3 dim], are learnt for each layer: the softmax of the
    scores is to be the largest true probability in each block, as shares of their sum (KL). They begin where the gate says
    what the means say, as in `bi_level`; without them, it is the means alone.

    `fewer train attention/seer 10% -o gates.safetensors` learns; `attention/seer(file=gates.safetensors) 10%` reads.

    Differs from the paper: pools what attention sees (rotated) and gives the gate no rotation of its own; a group shares
    a gate.

    >>> gate = Held({"for_queries": torch.ones(1, 1, 1), "for_keys": torch.tensor([[[0.0, 1.0, 1.0]]])})
    >>> m = Seer(parts=gate, rows=1, block=2)
    >>> m.score(torch.tensor([[[[2.0]]]]), m.digest(torch.tensor([[[[1.0], [4.0]]]])))  # 2 * (4 + 1)
    tensor([[[[10.]]]])
    """

    gate: int = 128  # "gate_hidden_size"
    rows: int = 64
    block: int = 64
    file: str = ""
    parts: Held = field(default=NONE, repr=False)

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        w = torch.randn(max(self.gate, shape.dim), max(self.gate, shape.dim), generator=make)
        w = torch.linalg.qr(w).Q[: self.gate, : shape.dim] * (self.gate / shape.dim) ** 0.25
        w = w.expand(shape.kv_heads, -1, -1)
        return {"for_queries": w.clone(), "for_keys": torch.cat([w, w * 0, w * 0], -1)}

    def truth(self, mass: Mass) -> Score:
        return pooled(mass, self)

    def digest(self, k: Key) -> Digest:
        mean = means(k, self.block)
        if not self.parts:
            return (mean,)
        high, low = in_blocks(k, self.block, -torch.inf).amax(3), in_blocks(k, self.block, torch.inf).amin(3)
        return (torch.cat([mean, high, low], -1) @ self._part("for_keys", k, 3).mT,)

    def score(self, q: Query, digest: Digest) -> Score:
        asking, (gate,) = means(q, self.rows), digest
        if self.parts:
            grouped = asking.unflatten(1, (gate.shape[1], -1))
            asking = (grouped @ self._part("for_queries", q, 1)[:, None].mT).flatten(1, 2)
        return dots(asking, gate)

    def _part(self, name: str, x: Key, times: int) -> Tensor:
        w = self.parts[name]
        if w.ndim != 3 or w.shape[2] != times * x.shape[-1]:
            want = f"[kv_heads, gate, {times * x.shape[-1]}]"
            raise ValueError(
                f"{self.name}: a gate of shape {list(w.shape)} does not read blocks here; it must be {want}"
            )
        return w.to(x)
