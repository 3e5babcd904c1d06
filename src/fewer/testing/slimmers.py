"""What every slimmer must do. The toys: a gated MLP and attention heads whose units differ in size and in use."""

import dataclasses

import torch
from torch import Tensor

from fewer.calibrate import observe
from fewer.core import find
from fewer.core.budget import budget
from fewer.testing import unchanged
from fewer.weights import Coupled, Part, Share, Slimmer

TOKENS, HIDDEN = 256, 20
WIDTHS = {
    "down": (24, {"gate": 1, "up": 1}),
    "o": (8, {"q": 6, "k": 3, "v": 3}),
}  # units, and rows of one in each writer


def coupled(m, role: str = "down", seed: int = 0, order: Tensor | None = None):
    """A group, and what its reader hears, `[tokens, in]`. `order` gives the units other places."""
    make = torch.Generator().manual_seed(seed)
    units, rows = WIDTHS[role]
    order = torch.arange(units) if order is None else order
    wide = 6 if role == "o" else 1
    scale = torch.randn(units, generator=make).exp()
    heard = torch.randn(TOKENS, HIDDEN, generator=make)
    maps = {r: torch.randn(units, n, HIDDEN, generator=make) * scale[:, None, None] ** 0.5 for r, n in rows.items()}
    down = torch.randn(units, wide, HIDDEN, generator=make) * scale[:, None, None] ** 0.5
    said = torch.randn(TOKENS, units, wide, generator=make) * scale[:, None]
    said[..., 1::2, :] += 0.5 * said[..., 0::2, :]  # neighbours say in part the same
    w, x = down[order].flatten(0, 1).mT.contiguous(), said[:, order].flatten(1)
    parts = [_part(m, r, v[order].flatten(0, 1), heard, reads=False) for r, v in maps.items()]
    return Coupled(units, tuple(parts), _part(m, role, w, x, reads=True)), x


def _part(m, role: str, w: Tensor, x: Tensor, reads: bool) -> Part:
    """What `m` needs of a map: inputs at the reader alone; the gradient is that of half the squared output."""
    needs = tuple(kind for kind in m.needs if reads or not kind.of_input)
    return Part(role, w, observe(needs, w, x, (w @ x.mT @ x / len(x))[None] if reads else 0.01 * w[None]))


def fine(m) -> Slimmer:
    """The method without its rounding of widths, if it has one."""
    rounds = "multiple" in {f.name for f in dataclasses.fields(m)}
    return dataclasses.replace(m, multiple=1) if rounds else m


def check_count(m):
    """Exactly as many units stay as were asked for, and the columns of the others are zero."""
    for role in m.readers:
        group, _ = coupled(m, role)
        for count in (1, 3, group.units // 2, group.units - 1):
            keep, new = m.slim(group, count)
            assert keep.shape == (group.units,) and keep.dtype == torch.bool, (
                "`slim` says of each unit whether it stays"
            )
            assert keep.sum() == count, f"{int(keep.sum())} units stay, not {count}"
            assert new.shape == group.reader.weight.shape and new.dtype == group.reader.weight.dtype
            assert (new[:, ~group.columns(keep)] == 0).all(), "a column of a unit that left is not zero"


def check_width(m):
    """What stays is a share rounded down, or to the nearest multiple; never nothing, never more than there is."""
    assert [fine(m).width(budget("50%"), n) for n in (1, 7, 24)] == [1, 3, 12]
    for units in (5, 24, 1000):
        n = m.width(budget("50%"), units)
        assert 0 < n <= units and (n % m.multiple == 0 or n == units), f"{n} of {units} is no multiple of {m.multiple}"


def check_all_stay_is_identity(m):
    for role in m.readers:
        group, _ = coupled(m, role)
        keep, new = m.slim(group, group.units)
        assert keep.all() and torch.equal(new, group.reader.weight), "a group that loses nothing is changed"


def check_slims_purely(m):
    """Same in, same out; arguments stay as they are."""
    group, _ = coupled(m)
    stats = [getattr(s, f.name) for p in group.parts for s in p.stats.values() for f in dataclasses.fields(s)]
    same = unchanged(*(p.weight for p in group.parts), *(t for t in stats if isinstance(t, Tensor)))
    a, b = (m.slim(group, 12) for _ in range(2))
    same()
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]), "two calls differ"


def check_units_are_whole(m):
    """Units that change places in all their maps are chosen as before: no map is read in another order."""
    if m.name == "weights/channel_random":
        return
    for role in m.readers:
        units = WIDTHS[role][0]
        order = torch.randperm(units, generator=torch.Generator().manual_seed(1))
        here, there = (m.slim(coupled(m, role, order=o)[0], units // 2)[0] for o in (None, order))
        assert torch.equal(here[order], there), f"{role}: units in other places are chosen differently"


def check_silent_unit(m):
    """A unit that is zero everywhere breaks nothing, and leaves first."""
    group, x = coupled(m)
    x[:, 5] = 0
    for part in group.writers:
        part.weight[5] = 0
    w = group.reader.weight.clone()
    w[:, 5] = 0
    group = dataclasses.replace(group, reader=_part(m, "down", w, x, reads=True))
    keep, new = m.slim(group, 23)
    assert new.isfinite().all()
    assert m.name == "weights/channel_random" or not keep[5], "a unit that does nothing stays before others"


def check_beats_random_units(m):
    """The reader says more nearly what it said than with units kept at random."""
    control = find("weights/channel_random")
    for role in m.readers if m.name != "weights/channel_random" else ():
        lost = {True: 0.0, False: 0.0}
        for seed in range(5):
            group, x = coupled(m, role, seed)
            for ours in lost:
                _, new = (m if ours else control(seed)).slim(group, group.units // 2)
                lost[ours] += ((new - group.reader.weight) @ x.mT).square().mean().item()
        assert lost[True] < lost[False], f"{role}: error {lost[True]:.4g}, random units' is {lost[False]:.4g}"


def check_group_budgets(m):
    """All groups together keep what one budget keeps of all, and none keeps nothing."""
    sizes = (24, 24, 40, 24, 16, 24, 24, 24)
    turns = torch.rand(len(sizes), generator=torch.Generator().manual_seed(0)) / 4
    shares = [Share(f"blocks.{i}.mlp", (1, n), i, turns[i]) for i, n in enumerate(sizes)]
    for text in ("50%", "75%", "100%"):
        kept = [fine(m).width(b, n) for b, n in zip(m.allocate(budget(text), shares), sizes, strict=True)]
        assert sum(kept) == budget(text).of(sum(sizes)), f"{text}: {sum(kept)} of {sum(sizes)} units stay"
        assert all(0 < k <= n for k, n in zip(kept, sizes, strict=True)), f"{text}: out of bounds: {kept}"
    assert [b.of(24) for b in m.allocate(budget("5"), shares)] == [5] * len(sizes), "a count is the same everywhere"


CHECKS = (
    check_count,
    check_width,
    check_all_stay_is_identity,
    check_slims_purely,
    check_units_are_whole,
    check_silent_unit,
    check_beats_random_units,
    check_group_budgets,
)
