"""Quantisers that are wrong, each in one way, and the check that must say so."""

from dataclasses import replace

import torch
from broken import broken

from fewer import weights
from fewer.layout import Grid


class Rounder(weights.Quantiser):
    """What a quantiser does; leaves break it."""

    bits: int = 4

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return grid.values(grid.round(pruned.weight)), grid


@broken("weights", "check_mask_is_untouched")
class ForgetsWhatWasPruned(Rounder):
    """Round the dense map."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(w, pruned.keep, self.bits)
        return grid.values(grid.round(w)), grid


@broken("weights", "check_mask_is_untouched")
class DropsTheLowRankPart(Rounder):
    """Start anew from the survivors."""

    def correct(self, w, pruned, stats):
        return replace(super().correct(w, pruned, stats), low_rank=None)


@broken("weights", "check_lies_on_its_grid")
class LeavesItsGrid(Rounder):
    """Say a grid and round to another."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return pruned.weight * 1.0, grid


@broken("weights", "check_lies_on_its_grid")
class TakesMoreBits(Rounder):
    """Lay a grid of one bit more."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits + 1)
        return grid.values(grid.round(pruned.weight)), grid


@broken("weights", "check_lies_on_its_grid")
class SetsAllApart(Rounder):
    """Store every weight as it is."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return pruned.weight.bfloat16().float(), replace(grid, apart=torch.ones_like(pruned.keep))


@broken("weights", "check_more_bits_less_error")
class ShrinksWithBits(Rounder):
    """Divide the codes by their bits."""

    bits: int = 4

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return grid.values(grid.round(pruned.weight) // self.bits), grid


@broken("weights", "check_no_worse_than_rounding")
class RoundsDown(Rounder):
    """Cut off what does not fit."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return grid.values((pruned.weight / grid.scale.float()).trunc().to(torch.int8)), grid


@broken("weights", "check_refuses_a_second_grid")
class RoundsTwice(Rounder):
    """Round what lies on a grid already."""

    def correct(self, w, pruned, stats):
        return super().correct(w, replace(pruned, grid=None), stats)


@broken("weights", "check_refuses_bits_that_cannot_be_stored")
class ClampsBits(Rounder):
    """Take what is nearest to the bits that were asked for."""

    bits: int = 4

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, min(max(self.bits, 2), 8))
        return grid.values(grid.round(pruned.weight)), grid


@broken("weights", "check_corrects_purely")
class WritesTheSurvivors(Rounder):
    """Round in place."""

    def quantise(self, w, pruned, stats):
        grid = Grid.around(pruned.weight, pruned.keep, self.bits)
        return pruned.weight.copy_(grid.values(grid.round(pruned.weight))), grid


@broken("weights", "check_corrected_dtypes")
class StaysWide(Rounder):
    """Return float32 whatever came in."""

    def correct(self, w, pruned, stats):
        weight, grid = self.quantise(w, pruned, stats)
        return replace(pruned, weight=weight, grid=grid)
