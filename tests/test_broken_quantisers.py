"""The checks of quantisers are checked: each broken one must be caught, and by the check that is named."""

from dataclasses import replace

import pytest
import torch

from fewer import weights
from fewer.core import Paper, method
from fewer.layout import Grid
from fewer.testing import checks_of
from fewer.testing._quantisers import QUANTISER

PAPER = Paper("0000.00000", "Nowhere", 2026)
BROKEN: list = []


def broken(by):
    """Mark a quantiser as broken and say which check must say so."""

    def wrap(cls):
        cls.__module__ = "fewer.weights.broken"
        BROKEN.append(pytest.param(method(PAPER)(cls), by, id=f"{cls.__name__}-{by}"))
        return cls

    return wrap


class Rounder(weights.Quantiser):
    """What a quantiser does; leaves break it."""

    bits: int = 4

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return grid.values(grid.round(pruned.weight)), grid


@broken("check_mask_is_untouched")
class ForgetsWhatWasPruned(Rounder):
    """Round the dense map."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(w, pruned.keep, self.bits)
        return grid.values(grid.round(w)), grid


@broken("check_mask_is_untouched")
class DropsTheLowRankPart(Rounder):
    """Start anew from the survivors."""

    def correct(self, w, pruned, stats):
        return replace(super().correct(w, pruned, stats), low_rank=None)


@broken("check_lies_on_its_grid")
class LeavesItsGrid(Rounder):
    """Say a grid and round to another."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return pruned.weight * 1.0, grid


@broken("check_lies_on_its_grid")
class TakesMoreBits(Rounder):
    """Lay a grid of one bit more."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits + 1)
        return grid.values(grid.round(pruned.weight)), grid


@broken("check_lies_on_its_grid")
class SetsAllApart(Rounder):
    """Store every weight as it is."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return pruned.weight.bfloat16().float(), replace(grid, apart=torch.ones_like(pruned.keep))


@broken("check_more_bits_less_error")
class ShrinksWithBits(Rounder):
    """Divide the codes by their bits."""

    bits: int = 4

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return grid.values(grid.round(pruned.weight) // self.bits), grid


@broken("check_no_worse_than_rounding")
class RoundsDown(Rounder):
    """Cut off what does not fit."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return grid.values((pruned.weight / grid.scale.float()).trunc().to(torch.int8)), grid


@broken("check_refuses_a_second_grid")
class RoundsTwice(Rounder):
    """Round what lies on a grid already."""

    def correct(self, w, pruned, stats):
        return super().correct(w, replace(pruned, grid=None), stats)


@broken("check_refuses_bits_that_cannot_be_stored")
class ClampsBits(Rounder):
    """Take what is nearest to the bits that were asked for."""

    bits: int = 4

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, min(max(self.bits, 2), 8))
        return grid.values(grid.round(pruned.weight)), grid


@broken("check_corrects_purely")
class WritesTheSurvivors(Rounder):
    """Round in place."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return pruned.weight.copy_(grid.values(grid.round(pruned.weight))), grid


@broken("check_corrected_dtypes")
class StaysWide(Rounder):
    """Return float32 whatever came in."""

    def correct(self, w, pruned, stats):
        weight, grid = self.quantise(w, pruned, stats)
        return replace(pruned, weight=weight, grid=grid)


@pytest.mark.parametrize("cls, by", BROKEN)
def test_caught(cls, by):
    check = {c.__name__: c for c in checks_of(cls)}[by]
    with pytest.raises(AssertionError):
        check(cls())


def test_every_check_of_quantisers_catches_something():
    assert {by for _, by in (p.values for p in BROKEN)} == {check.__name__ for check in QUANTISER}
