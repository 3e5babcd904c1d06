"""ARMOR: an N:M core between two block-diagonal matrices, which turn it towards the map that it stands for."""

from dataclasses import dataclass, replace
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import InputSquares, Stats
from fewer.core import Paper, method
from fewer.layout import blockwise, put_around
from fewer.weights import Corrector, Pruned, Weight

TITLE = "ARMOR: High-Performance Semi-Structured Pruning via Adaptive Matrix Factorization"
MASKS = 100  # ways to keep N of M that are all tried


@method(Paper("2510.05528", TITLE, 2025, ledger=519))
class Armor(Corrector):
    """Store A S B in place of w: S the N:M survivors, A and B block-diagonal, for the least of sum_ij h_j e_ij^2.

    e = (w - A S B)_ij / (r_i c_j) is measured as NoWag does, c the lengths of w's columns, r those of its rows after
    that, and h = E[x^2]. From A = B = I and the S that was pruned, each round solves A, then B, takes `steps`
    conjugate steps in the values of S, and tries all places and values of the `groups` groups of each pair of blocks
    that gain most. Nothing of this ever makes the sum larger. What is run is A (S (B x)); a plain checkpoint holds
    the product, which is not sparse.

    Differs from the paper: A and B are solved exactly, S moved along conjugate gradients, where it takes thousands of
    steps of Adam; groups are those of most gain, not drawn by their gradient. Blocks are the largest up to `block`
    that divide the map. Other budgets than N:M keep their places. It is `nowag 2:4 + armor` there; any pruner may
    come before.

    Rows 1 and 2 share what they lost, so that one core weight and a column of A hold both:

    >>> w = torch.tensor([[2.0, 1.0], [4.0, 2.0]])
    >>> keep = torch.tensor([[True, False], [True, False]])
    >>> after = Armor().correct(w, Pruned(w * keep, keep, budget("1:2")), observe(Armor.needs, w, torch.ones(1, 2)))
    >>> after.dense().round(decimals=3)
    tensor([[2., 1.],
            [4., 2.]])
    """

    needs = (InputSquares,)
    quick = False
    needs_whole = True  # the parts of a fused map would each need a B of their own, where the module has one input
    block: int = 128  # the paper's d_block
    rounds: int = 30
    steps: int = 4
    groups: int = 64

    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        if pruned.low_rank or pruned.around:
            raise ValueError("armor puts two matrices around what a pruner left: do it right after pruning")
        if torch.equal(pruned.dense(), w):
            return pruned
        factors = Factors.start(w, pruned, stats[InputSquares].value, self.block)
        last = factors.loss()
        for _ in range(self.rounds):
            factors.solve_outer()
            factors.solve_inner()
            factors.move_values(self.steps)
            factors.move_groups(self.groups)
            now, last = last, factors.loss()
            if last > now * (1 - 1e-4):
                break
        return factors.give(pruned, w.dtype)


def size_of(n: int, most: int, group: int = 1) -> int:
    """The largest block up to `most` that divides `n` and is made of whole groups.

    >>> size_of(768, 128), size_of(96, 128), size_of(36, 16, 4)
    (128, 96, 12)
    """
    return max(b for b in range(group, max(most, group) + 1, group) if n % b == 0)


@dataclass
class Factors:
    """A S B and what it stands for, w / (r c), all in float64."""

    target: Float[Tensor, "out in"]
    core: Float[Tensor, "out in"]
    keep: Tensor
    outer: Float[Tensor, "n b b"]
    inner: Float[Tensor, "m c c"]
    h: Float[Tensor, " in"]
    rows: Float[Tensor, "out 1"]
    cols: Float[Tensor, " in"]
    group: int

    @classmethod
    def start(cls, w: Weight, pruned: Pruned, h: Float[Tensor, " in"], block: int) -> "Factors":
        target = w.double()
        cols = _length(target, 0)
        rows = _length(target / cols, 1, keepdim=True)
        group = pruned.budget.group if pruned.budget.unit == (1, 1) else 0
        b, c = size_of(len(w), block), size_of(w.shape[1], block, group or 1)
        outer, inner = (torch.eye(s, dtype=torch.float64, device=w.device) for s in (b, c))
        return cls(
            target / cols / rows,
            pruned.weight.double() / cols / rows,
            pruned.keep.clone(),
            outer.repeat(len(w) // b, 1, 1),
            inner.repeat(w.shape[1] // c, 1, 1),
            h.double(),
            rows,
            cols,
            group,
        )

    def give(self, pruned: Pruned, dtype: torch.dtype) -> Pruned:
        """Back to the scale of w, so that A = B = I where nothing has moved."""
        r, c = self.rows.view(len(self.outer), -1), self.cols.view(len(self.inner), -1)
        outer = self.outer * r[:, :, None] / r[:, None]
        inner = self.inner / c[:, :, None] * c[:, None]
        weight = (self.core * self.rows * self.cols).to(dtype)
        return replace(pruned, weight=weight, keep=self.keep, around=(outer.to(dtype), inner.to(dtype)))

    def residual(self) -> Float[Tensor, "out in"]:
        return self.target - put_around(self.core, self.outer, self.inner)

    def loss(self) -> float:
        """The sum that nothing here may increase."""
        return (self.residual().square() @ self.h).sum().item()

    def solve_outer(self) -> None:
        """A: least squares in each block of rows, held by a millionth to where it was."""
        made = blockwise(self.core, self.inner.mT).unflatten(0, (len(self.outer), -1))
        goal = self.target.unflatten(0, (len(self.outer), -1))
        self.outer = _fit(made * self.h @ made.mT, made * self.h @ goal.mT, self.outer.mT).mT

    def solve_inner(self) -> None:
        """B: least squares in each block of columns; h weighs columns, each of which is solved by itself."""
        made = blockwise(self.core.mT, self.outer).unflatten(0, (len(self.inner), -1))  # [m, c, out]
        goal = self.target.mT.unflatten(0, (len(self.inner), -1))
        self.inner = _fit(made @ made.mT, made @ goal.mT, self.inner)

    def slope(self) -> Float[Tensor, "out in"]:
        """Half of what the loss falls by as each entry of S grows, kept or not."""
        return put_around(self.residual() * self.h, self.outer.mT, self.inner.mT)

    def move_values(self, steps: int) -> None:
        """Conjugate gradients on the survivors."""
        r = self.slope() * self.keep
        p, size = r, r.square().sum()
        for _ in range(steps):
            made = put_around(p, self.outer, self.inner)
            curve = (made.square() @ self.h).sum()
            if not curve > 0:
                return
            self.core = self.core + size / curve * p
            r = r - size / curve * put_around(made * self.h, self.outer.mT, self.inner.mT) * self.keep
            size, before = r.square().sum(), size
            p = r + size / before.clamp(min=torch.finfo(r.dtype).tiny) * p

    def move_groups(self, count: int) -> None:
        """Of each pair of blocks, those groups of M that gain most: the best places and values, one after the other."""
        kept = int(self.keep[0, : self.group].sum())
        ways = list(combinations(range(self.group), kept)) if self.group else []
        if 1 < len(ways) <= MASKS:
            _Groups(self, torch.tensor(ways, device=self.core.device)).move(count)


class _Groups:
    """The groups of all pairs of blocks side by side: `[n, m, row of the block, group of the block]`.

    Changing the group of core row k by d changes the block's loss by -2 d s + |A_k|^2 d K d^T, with s the slope there and K
    the group's part of B diag(h) B^T. So the best values at places P are c_P K_PP^-1 / |A_k|^2 with c = s + |A_k|^2 old K.
    """

    def __init__(self, factors: Factors, ways: Tensor):
        self.f, self.ways, self.wide = factors, ways, factors.group
        h = factors.h.view(len(factors.inner), -1)
        self.rows = factors.outer.mT @ factors.outer  # [n, b, b]
        self.cols = factors.inner * h[:, None] @ factors.inner.mT  # [m, c, c]
        m, c, _ = self.cols.shape
        tiles = self.cols.view(m, c // self.wide, self.wide, c // self.wide, self.wide)
        self.curve = tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # [m, groups, M, M]
        part = self.curve[..., ways[:, :, None], ways[:, None, :]]  # [m, groups, ways, N, N]
        ridge = 1e-9 * part.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        eye = torch.eye(ways.shape[1], dtype=part.dtype, device=part.device)
        self.inverse = torch.linalg.inv(part + (ridge + torch.finfo(part.dtype).tiny ** 0.5) * eye)

    def move(self, count: int) -> None:
        f, (n, b, _), (m, c, _) = self.f, self.rows.shape, self.cols.shape
        slope, core = (t.view(n, b, m, c).transpose(1, 2).reshape(n, m, b, -1, self.wide) for t in (f.slope(), f.core))
        keep = f.keep.view(n, b, m, c).transpose(1, 2).reshape(core.shape).clone()
        i, j = torch.arange(n, device=core.device)[:, None], torch.arange(m, device=core.device)[None]
        groups = torch.arange(slope.shape[3], device=core.device)
        size = self.rows.diagonal(dim1=1, dim2=2)  # [n, b]
        gain = self._best(slope, core, size[:, None, :, None], j[..., None, None], groups)[0]
        for place in gain.flatten(2).topk(min(count, gain[0, 0].numel()), -1).indices.unbind(-1):  # [n, m]
            k, g = place // slope.shape[3], place % slope.shape[3]
            old = core[i, j, k, g]
            gain, new, way = self._best(slope[i, j, k, g], old, size[i, k], j, g)
            change = torch.where(gain[..., None] > 0, new - old, 0)
            core[i, j, k, g] = old + change
            chosen = torch.zeros_like(keep[i, j, k, g]).scatter_(-1, self.ways[way], True)
            keep[i, j, k, g] = torch.where(gain[..., None] > 0, chosen, keep[i, j, k, g])
            across = (change[..., None, :] @ self.cols.view(m, -1, self.wide, c)[j, g])[..., 0, :]  # [n, m, c]
            slope -= (self.rows[i, k][..., None] * across[..., None, :]).view(slope.shape)
        f.core, f.keep = (t.view(n, m, b, c).transpose(1, 2).reshape(f.core.shape) for t in (core, keep))

    def _best(self, slope: Tensor, old: Tensor, size: Tensor, j: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a group gains at most, with which values, in which way."""
        curve, inverse = self.curve[j, g], self.inverse[j, g]
        linear = slope + size[..., None] * (old[..., None, :] @ curve)[..., 0, :]
        part = linear[..., self.ways]  # [..., ways, N]
        values = (part[..., None, :] @ inverse)[..., 0, :]
        way = (part * values).sum(-1).argmax(-1)
        values = values.gather(-2, way[..., None, None].expand(*way.shape, 1, self.ways.shape[1]))[..., 0, :]
        new = torch.zeros_like(old).scatter_(-1, self.ways[way], values / size.clamp(min=1e-300)[..., None])
        change = new - old
        gain = 2 * (change * slope).sum(-1) - size * ((change[..., None, :] @ curve)[..., 0, :] * change).sum(-1)
        return gain, new, way


def _length(w: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Lengths; 1 where there is nothing."""
    size = w.norm(dim=dim, keepdim=keepdim)
    return torch.where(size > 0, size, 1)


def _fit(gram: Tensor, product: Tensor, last: Tensor) -> Tensor:
    """The x of least |goal - made x|^2 + ridge |x - last|^2 in each block: never worse than `last`."""
    ridge = 1e-6 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] + torch.finfo(gram.dtype).tiny ** 0.5
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge * eye, product + ridge * last)
