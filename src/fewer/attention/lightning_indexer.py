"""DeepSeek's lightning indexer: small heads of their own say which tokens are read."""

from dataclasses import field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewer.attention import NONE, Digest, Held, Key, Learnt, Mass, Query, Score, Seen, Shape
from fewer.core import Paper, method

from ._dots import best, dots

TITLE = "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models"
PARTS = ("wq_b.weight", "wk.weight", "k_norm.weight", "k_norm.bias", "weights_proj.weight")


@method(Paper("2512.02556", TITLE, 2025, equation="eq. 1 and 3"))
class LightningIndexer(Learnt):
    """Rank a token by sum_j w_j ReLU(q_j.k / sqrt(dim)): `heads` index queries q_j and one index key k, of hidden states.

    Of a hidden state x, q = W_q x and k = LayerNorm(W_k x), their first `rope` channels rotated by place in halves, and
    w = W_w x / sqrt(heads). All heads of attention read what the sum ranks first; `index_topk: 2048` is the budget 2048. Learnt
    with the model frozen: the softmax of the ranks is to be attention's own, its heads' mean (KL). With nothing learnt,
    q and k are attention's, and w is 1 / sqrt(heads).

    `fewer train attention/lightning_indexer 2048 -o indexer.safetensors` learns. Tensors have the names and shapes of
    DeepSeek's checkpoints, `indexer.wq_b.weight` and so on, for each attention module.

    Differs from the paper: W_q reads x where it reads MLA's query latent; no Hadamard rotation and no FP8, which leave the
    products as they are; the second stage (KL over what is read, while the model learns too) is not here.

    >>> m = LightningIndexer()
    >>> q, k = torch.tensor([[[[1.0]], [[-2.0]]]]), torch.tensor([[[[3.0], [-4.0]]]])
    >>> m.score(q, m.digest(k)) * 2**0.5  # 3 + 0, 0 + 8
    tensor([[[[3.0000, 8.0000]]]])
    """

    hears = True

    heads: int = 64  # "index_n_heads"
    dim: int = 128  # "index_head_dim"
    rope: int = 64  # "qk_rope_head_dim"
    theta: float = 10000.0
    rows: int = 1
    block: int = 1
    file: str = ""
    parts: Held = field(default=NONE, repr=False)

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        if not 0 <= self.rope <= self.dim or self.rope % 2:
            raise ValueError(
                f"{self.name}: rope={self.rope} channels of {self.dim} are rotated: write an even number up to it"
            )
        sizes = (self.heads * self.dim, self.dim, self.heads)
        q, k, w = (torch.randn(n, shape.hidden, generator=make) * shape.hidden**-0.5 for n in sizes)
        found = q, k, torch.ones(self.dim), torch.zeros(self.dim), w
        return {f"indexer.{name}": t for name, t in zip(PARTS, found, strict=True)}

    def truth(self, mass: Mass) -> Score:
        return mass.mean(1, keepdim=True)

    def sees(
        self, q: Query, k: Key, x: Float[Tensor, "batch queries hidden"], now: Int[Tensor, "batch queries"]
    ) -> tuple[Seen, Seen]:
        if not self.parts:
            return q, k
        w_q, w_k, scale, shift, w = (self.parts[f"indexer.{name}"].to(x) for name in PARTS)
        if w_q.shape != (self.heads * self.dim, x.shape[-1]):
            raise ValueError(
                f"{self.name}: indexer.wq_b of shape {list(w_q.shape)} does not read {x.shape[-1]} numbers for {self.heads} "
                f"heads of {self.dim}; with MLA it reads the query's latent, which is not here"
            )
        asks = (x @ w_q.mT).unflatten(-1, (self.heads, self.dim)).transpose(1, 2)
        key = torch.nn.functional.layer_norm(x @ w_k.mT, (self.dim,), scale, shift, 1e-6)[:, None]
        weight = (x @ w.mT).transpose(1, 2)[..., None]
        key = torch.nn.functional.pad(
            self._turned(key, now), (0, 1)
        )  # as wide as what asks, whose last channel is its weight
        return torch.cat([self._turned(asks, now), weight], -1), key

    def digest(self, k: Key) -> Digest:
        return (k,)

    def score(self, q: Query, digest: Digest) -> Score:
        k, weight = digest[0].to(q.dtype), 1.0
        if self.parts:
            q, k, weight = q[..., :-1], k[..., :-1], q[..., -1:]
        each = (dots(q, k).relu() * weight).unflatten(1, (k.shape[1], -1))
        return best(each.sum(2) * each.shape[2] ** -0.5, self.rows)

    def _turned(self, x: Key, now: Int[Tensor, "batch queries"]) -> Key:
        half = self.rope // 2
        speed = self.theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / max(half, 1))
        angle = now[:, None, :, None].clamp(min=0) * speed
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half : self.rope]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., self.rope :]], -1)
