"""Orders of rows and columns in which a budget of tiles or N:M loses less.

A 16x1 tile stays or goes as a whole, so rows that need the same inputs should share tiles; N:M keeps N of M neighbours,
so columns that matter should be spread over groups. Neither order changes what a map computes: rows may stand in any
order if the outputs are put back, columns if the inputs are read in the same order.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewer.core import Budget

from ._select import select
from .balance import balanced


def row_order(score: Float[Tensor, "rows cols"], budget: Budget, rounds: int = 10) -> Int[Tensor, " rows"]:
    """An order of rows, `score[order]`, in which the tiles that `budget` keeps (`50% of 16x1`) hold more of the score.

    Rows are split in two along their first principal direction, again and again, down to blocks of a tile's height.
    Then, in turn: each block keeps its best columns, and rows move to the blocks whose columns they need most, all
    blocks staying full, for `rounds` or until nothing is gained. What the tiles hold never falls below what
    they hold in the order given. Blocks, and rows within a block, stand by their first row.

    ValueError: a shape that does not divide into tiles.

    >>> from fewer.core.budget import budget
    >>> score = torch.tensor([[9.0, 0.0], [0.0, 5.0], [8.0, 1.0], [1.0, 6.0]])
    >>> row_order(score, budget("50% of 2x1"))
    tensor([0, 2, 1, 3])
    """
    rows, _ = score.shape
    height = budget.unit[0]
    budget.check(*score.shape)
    plain = torch.arange(rows, device=score.device)
    if height == 1 or rows == height:
        return plain
    wide = score.detach().float()
    order = _bisected(wide, height)
    reached = held(wide, budget, order)
    for _ in range(rounds):
        moved = _regrouped(wide, budget, order)
        if not (now := held(wide, budget, moved)) > reached:
            break
        order, reached = moved, now
    if not reached > held(wide, budget, plain):
        return plain
    blocks = order.reshape(-1, height).sort(1).values
    return blocks[blocks[:, 0].argsort()].flatten()


def channel_order(score: Float[Tensor, "rows cols"], budget: Budget, rounds: int = 1) -> Int[Tensor, " cols"]:
    """An order of columns, `score[:, order]`, in which N:M keeps more of the score.

    Columns are dealt into groups by their sums, there and back, so that large ones are spread; then, for each place in
    the groups in turn, the columns that stand there change groups for the best total (`balanced`). Channel permutation
    of RIA (Zhang et al., ICLR 2024, section 4.2: heuristic allocation and linear sum assignment). The total never falls
    below that of the order given. ValueError: a budget that is not N:M of single weights, or does not divide.

    >>> from fewer.core.budget import budget
    >>> score = torch.tensor([[9.0, 8.0, 1.0, 0.0]])
    >>> channel_order(score, budget("1:2"))  # 9 and 8 no longer compete
    tensor([0, 3, 1, 2])
    """
    if not budget.group or budget.unit != (1, 1):
        raise ValueError(f"budget '{budget}': channels are permuted for N:M, such as '2:4'")
    budget.check(*score.shape)
    wide, size, n = score.detach().float(), budget.group, budget.of(budget.group)
    cols = score.shape[1]
    plain = torch.arange(cols, device=score.device)
    if n == size or cols == size:
        return plain
    rank = wide.sum(0).argsort(descending=True, stable=True).reshape(size, -1)
    rank[1::2] = rank[1::2].flip(1)
    groups = rank.mT.contiguous()  # one group a row
    for place in list(range(size)) * rounds:
        groups[:, place] = groups[_matched(wide, groups, place, n), place]
    order = groups.sort(1).values
    order = order[order[:, 0].argsort()].flatten()
    kept = [wide[:, o].unflatten(1, (-1, size)).topk(n).values.double().sum() for o in (plain, order)]
    return order if kept[1] > kept[0] else plain


def select_in_order(
    score: Float[Tensor, "rows cols"],
    budget: Budget,
    rows: Int[Tensor, " rows"] | None = None,
    columns: Int[Tensor, " cols"] | None = None,
) -> Bool[Tensor, "rows cols"]:
    """What `select` keeps of the score in another order of rows and columns, put back into the order given.

    >>> from fewer.core.budget import budget
    >>> score = torch.tensor([[9.0, 0.0], [0.0, 5.0], [8.0, 1.0], [1.0, 6.0]])
    >>> select_in_order(score, budget("50% of 2x1"), rows=torch.tensor([0, 2, 1, 3])).int()
    tensor([[1, 0],
            [0, 1],
            [1, 0],
            [0, 1]], dtype=torch.int32)
    """
    ordered = score if rows is None else score[rows]
    keep = select(ordered if columns is None else ordered[:, columns], budget)
    keep = keep if rows is None else keep[rows.argsort()]
    return keep if columns is None else keep[:, columns.argsort()]


def held(score: Float[Tensor, "rows cols"], budget: Budget, rows: Int[Tensor, " rows"]) -> float:
    """How much of the score is kept in this order of rows.

    >>> from fewer.core.budget import budget
    >>> held(torch.tensor([[9.0, 0.0], [0.0, 5.0]]), budget("50% of 2x1"), torch.tensor([0, 1]))
    9.0
    """
    ordered = score[rows]
    return (ordered * select(ordered, budget)).sum(dtype=torch.float64).item()


def _bisected(score: Tensor, height: int) -> Tensor:
    """Rows that look alike side by side: halves by the first principal direction, halved again."""
    parts = [torch.arange(len(score), device=score.device)]
    while any(len(p) > height for p in parts):
        halves = []
        for part in parts:
            cut = len(part) // height // 2 * height
            halves += [part] if not cut else [*_sorted(score, part).split([cut, len(part) - cut])]
        parts = halves
    return torch.cat(parts)


def _sorted(score: Tensor, part: Tensor) -> Tensor:
    """By the first principal direction of the rows, their sizes apart."""
    rows = score[part].double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    rows = rows - rows.mean(0)
    along = rows[rows.square().sum(1).argmax()]
    for _ in range(16):  # the power method; a rough direction is enough
        along = torch.nn.functional.normalize(rows.mT @ (rows @ along), dim=0)
    return part[(rows @ along).argsort(stable=True)]


def _regrouped(score: Tensor, budget: Budget, order: Tensor) -> Tensor:
    """Each row to the block whose kept columns it needs most, every block as full as before."""
    height = budget.unit[0]
    columns = select(score[order], budget)[::height].float()  # a block's first row is kept where the block is
    need = score @ columns.mT
    return _dealt(need, height).argsort(stable=True)


def _dealt(need: Tensor, height: int) -> Tensor:
    """A block for each row, `height` rows to each: who would lose most by the second best choice is served first."""
    rows, blocks = need.shape
    home, room = need.new_full((rows,), -1, dtype=torch.long), need.new_full((blocks,), height, dtype=torch.long)
    while (free := (home < 0).nonzero().squeeze(1)).numel():
        worth, choice = need[free].masked_fill(room == 0, -torch.inf).topk(min(2, blocks))
        regret = (worth[:, 0] - worth[:, -1]).nan_to_num(posinf=torch.finfo(need.dtype).max)
        by_regret = regret.argsort(descending=True, stable=True)
        wish = choice[by_regret, 0]
        queue = wish.argsort(stable=True)  # for each block in turn, those who want it, in the order of their regret
        asked = torch.bincount(wish, minlength=blocks)
        place = torch.arange(len(free), device=need.device) - (asked.cumsum(0) - asked)[wish[queue]]
        served = queue[place < room[wish[queue]]]
        home[free[by_regret[served]]] = wish[served]
        room -= torch.bincount(wish[served], minlength=blocks)
    return home


def _matched(score: Tensor, groups: Tensor, place: int, n: int) -> Tensor:
    """Which group's column at `place` each group should have instead, for the largest sum of n kept in each row.

    A column c adds relu(c - t) to a group whose other columns' n-th largest score in that row is t.
    """
    others = torch.cat([groups[:, :place], groups[:, place + 1 :]], 1)
    bar = score[:, others].topk(n).values[..., -1]  # [rows, groups]
    column = score[:, groups[:, place]]
    gain = torch.stack([(column - t[:, None]).relu().sum(0) for t in bar.mT])  # [groups, columns]
    slack = float(gain.max() - gain.min()) * 1e-2
    if not slack:
        return torch.arange(len(groups), device=score.device)
    found = balanced(gain, slack).int().argmax(1)
    now = gain.diagonal().double().sum()
    better = gain.gather(1, found[:, None]).double().sum() > now
    return found if better else torch.arange(len(groups), device=score.device)
