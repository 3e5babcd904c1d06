"""Slimmers that are wrong, each in one way, and the check that must say so."""

from broken import broken

from fewer import weights
from fewer.calibrate import InputSquares


@broken("weights", "check_count")
class KeepsOneUnitMore(weights.ByUnit):
    """Count from zero, in units."""

    def score(self, group):
        return group.total(lambda part: part.weight.abs())

    def slim(self, group, count):
        return super().slim(group, min(count + 1, group.units))


@broken("weights", "check_count")
class ForgetsTheReader(weights.ByUnit):
    """Leave the columns of a unit that left as they were."""

    def score(self, group):
        return group.total(lambda part: part.weight.abs())

    def slim(self, group, count):
        return super().slim(group, count)[0], group.reader.weight


@broken("weights", "check_width")
class RoundsUp(weights.ByUnit):
    """Give a multiple that is more than there is."""

    multiple: int = 16

    def score(self, group):
        return group.total(lambda part: part.weight.abs())

    def width(self, budget, units):
        return -(-budget.of(units) // self.multiple) * self.multiple


@broken("weights", "check_all_stay_is_identity")
class RefitsWhatIsWhole(weights.ByUnit):
    """Shrink the reader, even if nothing leaves."""

    def score(self, group):
        return group.total(lambda part: part.weight.abs())

    def slim(self, group, count):
        keep, new = super().slim(group, count)
        return keep, new * 0.999


@broken("weights", "check_slims_purely")
class SlimsInPlace(weights.ByUnit):
    """Write zeros into the map it was given."""

    def score(self, group):
        return group.total(lambda part: part.weight.abs())

    def slim(self, group, count):
        keep, _ = super().slim(group, count)
        return keep, group.reader.weight.mul_(group.columns(keep))


@broken("weights", "check_units_are_whole")
class ReadsColumnsAsRows(weights.ByUnit):
    """Take units for neighbours in the wrong dimension."""

    def score(self, group):
        return group.reader.weight.abs().flatten().unflatten(0, (group.units, -1)).sum(1)


@broken("weights", "check_silent_unit")
class DividesByLoudness(weights.ByUnit):
    """Rank by weight over input."""

    needs = (InputSquares,)

    def score(self, group):
        return group.by_unit(group.reader, 1 / group.reader.stats[InputSquares].rms.expand_as(group.reader.weight)).sum(
            1
        )


@broken("weights", "check_beats_random_units")
class KeepsTheWorstUnits(weights.ByUnit):
    """Rank units upside down."""

    def score(self, group):
        return -group.total(lambda part: part.weight.abs())


@broken("weights", "check_group_budgets")
class FirstGroupsKeepAll(weights.ByUnit):
    """Take nothing from the first half, and the same as ever from the second."""

    def score(self, group):
        return group.total(lambda part: part.weight.abs())

    def allocate(self, budget, shares):
        half = len(shares) // 2
        return [budget.with_count(s.shape[1]) for s in shares[:half]] + [budget] * (len(shares) - half)
