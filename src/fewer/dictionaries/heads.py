"""What single attention heads do: whose a latent is, what a score is made of, and heads that tell classes apart."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.features import Dictionary


def by_head(
    dictionary: Dictionary, x: Float[Tensor, "*batch dim"], latents: Int64[Tensor, " some"], heads: int
) -> Float[Tensor, "*batch some heads"]:
    """What each head adds to a latent's pre-activation, x_h . W_enc[i, h]; with the encoder's bias, they sum to it.

    The dictionary reads what the output projection hears, such as `self_attn.o_proj:in`: the heads' outputs side by
    side (Kissane et al. 2024, 2406.17759).

    >>> w, b = torch.tensor([[1.0, 0.0, 2.0, 1.0]]), torch.zeros(1)
    >>> from fewer.core import budget
    >>> from fewer.features.top_k import TopK
    >>> d = Dictionary(TopK(), budget("1"), w, b, w, torch.zeros(4))
    >>> by_head(d, torch.tensor([[3.0, 9.0, 1.0, 2.0]]), torch.tensor([0]), heads=2)
    tensor([[[3., 4.]]])
    """
    dictionary.read_alone("what a head adds to a latent")
    w = _split(dictionary.encoder[latents], heads)
    return torch.einsum("...hd,shd->...sh", _split(x, heads).to(w.dtype), w)


def by_source(
    dictionary: Dictionary,
    pattern: Float[Tensor, "batch heads queries keys"],
    v: Float[Tensor, "batch kv_heads keys dim"],
    latent: int,
) -> Float[Tensor, "batch queries heads keys"]:
    """The same by the position it was taken from: pattern[h, q, k] (v[h, k] . W_enc[i, h]). Sums over k are `by_head`'s."""
    dictionary.read_alone("what a head adds to a latent")
    heads = pattern.shape[1]
    v = v.repeat_interleave(heads // v.shape[1], 1)
    w = _split(dictionary.encoder[latent], heads)
    return torch.einsum("bhqk,bhk->bqhk", pattern, torch.einsum("bhkd,hd->bhk", v.to(w.dtype), w))


def whose(dictionary: Dictionary, heads: int) -> Float[Tensor, "latents heads"]:
    """The share of each head in the length of a latent's direction: |W_dec[i, h]| / sum over h (Kissane et al. 2024).

    >>> from fewer.core import budget
    >>> from fewer.features.top_k import TopK
    >>> w = torch.tensor([[3.0, 4.0, 0.0, 5.0]])
    >>> whose(Dictionary(TopK(), budget("1"), w, torch.zeros(1), w, torch.zeros(4)), heads=2)
    tensor([[0.5000, 0.5000]])
    """
    size = _split(dictionary.decoder, heads).norm(dim=-1)
    return size / size.sum(-1, keepdim=True).clamp(min=1e-12)


def _split(x: Tensor, heads: int) -> Tensor:
    if x.shape[-1] % heads:
        raise ValueError(f"{x.shape[-1]} numbers are not {heads} heads side by side")
    return x.unflatten(-1, (heads, -1))


@dataclass(frozen=True, eq=False)
class Signals:
    """One head's W_q^T W_k = U S V^T: pairs of directions, each of which a key and a query may hold."""

    u: Float[Tensor, "dim rank"]
    s: Float[Tensor, " rank"]
    v: Float[Tensor, "dim rank"]

    @classmethod
    def of(cls, w_q: Float[Tensor, "head dim"], w_k: Float[Tensor, "head dim"], scale: float = 1.0) -> "Signals":
        """From what makes q and k of the residual stream, both as [head's width, dim]; times `scale`, such as width^-1/2.

        For a model that turns q and k by their positions, give weights already turned: one `Signals` for each distance.
        """
        both = scale * w_q.T @ w_k
        u, s, vh = torch.linalg.svd(both, full_matrices=False)
        rank = min(len(w_q), len(s))
        return cls(u[:, :rank], s[:rank], vh[:rank].T)

    def parts(self, x: Float[Tensor, "*batch dim"], y: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch rank"]:
        """What each pair adds to the score of a query at x for a key at y: (x . u_r) s_r (v_r . y). They sum to the score
        (Franco and Crovella 2024, 2410.00340).

        >>> signals = Signals.of(torch.diag(torch.tensor([2.0, 1.0])), torch.eye(2))
        >>> signals.parts(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 4.0]))  # 1 . 2 . 3 and 1 . 1 . 4
        tensor([6., 4.])
        """
        return (x @ self.u) * self.s * (y @ self.v)

    def kept(self, x: Float[Tensor, "*batch dim"], y: Float[Tensor, "*batch dim"], share: float = 0.9) -> Tensor:
        """True for the fewest pairs, largest first, whose sum is at least `share` of the score, where that is positive."""
        parts = self.parts(x, y)
        best, order = parts.sort(dim=-1, descending=True, stable=True)
        before = best.cumsum(-1) - best
        return torch.zeros_like(parts, dtype=torch.bool).scatter(
            -1, order, before < share * parts.sum(-1, keepdim=True)
        )

    def without(self, x: Float[Tensor, "*batch dim"], pairs: Tensor) -> Float[Tensor, "*batch dim"]:
        """x without what it says along u of these pairs: what a query loses when the signal is taken away."""
        u = self.u[:, pairs]
        return x - (x @ u) @ u.T


@dataclass(frozen=True, eq=False)
class HeadVote:
    """A few heads that tell classes apart without training: each votes for the nearest class mean, the majority wins
    (Mitra et al. 2024, Sparse Attention Vectors, 2412.00142)."""

    heads: Int64[Tensor, " some"]
    means: Float[Tensor, "some classes dim"]
    right: Float[Tensor, " heads"]  # each head's share of right answers where it was chosen

    @classmethod
    def fit(
        cls, x: Float[Tensor, "examples heads dim"], labels: Int64[Tensor, " examples"], count: int = 20
    ) -> "HeadVote":
        """The `count` heads whose class means have most examples nearest to their own, by cosine; ties go to the earlier.

        x is what each head says at the last token. ValueError: a class without an example.
        """
        classes = int(labels.max()) + 1
        sizes = torch.bincount(labels, minlength=classes)
        if (sizes == 0).any():
            raise ValueError(f"class {int((sizes == 0).nonzero()[0])} has no example; number the classes from 0 on")
        one = torch.nn.functional.one_hot(labels, classes).to(x.dtype)
        means = torch.einsum("ec,ehd->hcd", one, x) / sizes[:, None].to(x.dtype)
        right = (_nearest(x, means) == labels[:, None]).float().mean(0)
        heads = right.argsort(descending=True, stable=True)[:count]
        return cls(heads, means[heads], right)

    def __call__(self, x: Float[Tensor, "examples heads dim"]) -> Int64[Tensor, " examples"]:
        """The class most of the chosen heads vote for; ties go to the lower one."""
        votes = _nearest(x[:, self.heads], self.means)
        return torch.nn.functional.one_hot(votes, self.means.shape[1]).sum(1).argmax(1)


def code_scores(
    positive: Int64[Tensor, "examples heads"], negative: Int64[Tensor, "others heads"]
) -> Float[Tensor, " heads"]:
    """How much a head does for a task: the share of its codes that only positive examples have. No ablation, few examples
    (O'Neill and Bui 2024, 2405.12522).

    A head's code at an example is the loudest latent of one small dictionary over all heads' outputs. Differs from the
    paper: the scores of heads are not put through a softmax, which changes no ranking.

    >>> code_scores(torch.tensor([[7, 1], [8, 1]]), torch.tensor([[7, 1], [5, 1]]))  # {8} of {5, 7, 8}; none of {1}
    tensor([0.3333, 0.0000])
    """
    scores = []
    for mine, its in zip(positive.T.tolist(), negative.T.tolist(), strict=True):
        scores.append(len(set(mine) - set(its)) / len({*mine, *its}))
    return torch.tensor(scores)


def _nearest(x: Tensor, means: Tensor) -> Tensor:
    x, means = (t / t.norm(dim=-1, keepdim=True).clamp(min=1e-12) for t in (x, means))
    return torch.einsum("ehd,hcd->ehc", x, means).argmax(-1)
