"""What every quantiser of weights must do, after whatever pruner."""

import dataclasses

import torch

from fewer.calibrate import Gram, observe
from fewer.core.budget import budget
from fewer.layout import smallest
from fewer.testing import unchanged

from ._toys import pruned_toy, refuses, tensors_of


def check_corrects_purely(m):
    w, _, stats, before = pruned_toy(m)
    same = unchanged(w, before.weight, before.keep, *tensors_of(stats))
    a, b, c = (m.correct(v, before, stats) for v in (w, w, w.mT.contiguous().mT))
    same()
    assert torch.equal(a.dense(), b.dense()) and torch.equal(a.keep, b.keep), "two calls differ"
    assert torch.equal(a.keep, c.keep), "a transposed view is corrected differently"


def check_corrected_dtypes(m):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        w, _, stats, before = pruned_toy(m, dtype=dtype)
        after = m.correct(w, before, stats)
        parts = (after.weight, *after.beside)
        assert all(p.dtype == dtype and p.isfinite().all() for p in parts)


def check_mask_is_untouched(m):
    """What was pruned stays 0, what was kept stays kept, whatever the structure; and the low-rank part."""
    for text in ("50%", "2:4", "30% per tensor", "25% per column", "25% of 4x1", "100%"):
        w, _, stats, before = pruned_toy(m, text)
        before = dataclasses.replace(before, low_rank=(w[:, :1], w[:1]))
        after = m.correct(w, before, stats)
        assert torch.equal(after.keep, before.keep) and after.budget == before.budget, f"{text}: the mask has moved"
        assert (after.weight[~after.keep] == 0).all(), f"{text}: a pruned weight is not zero"
        assert after.low_rank is before.low_rank, f"{text}: the low-rank part is gone"


def check_lies_on_its_grid(m):
    """The survivors are stored in `bits` bits each and come back bit for bit; a group has no more than 2^bits values."""
    for text in ("50%", "2:4", "100%"):
        w, _, stats, before = pruned_toy(m, text)
        after = m.correct(w, before, stats)
        assert after.grid is not None and after.grid.bits == m.bits, f"the grid is not one of {m.bits} bits"
        try:
            stored = smallest(after.weight, after.keep, budget(text), after.grid)
        except ValueError as error:
            raise AssertionError(f"{text}: {error}") from error
        assert torch.equal(stored.dense(), after.weight), f"{text}: what is stored is not what was said"
        odd = torch.zeros_like(after.keep) if after.grid.apart is None else after.grid.apart
        assert odd.sum() <= 0.1 * odd.numel(), "more than a tenth of the weights is not on the grid"
        for row, out in zip(after.weight, odd, strict=True):
            per_group = [v[~o].unique().numel() for v, o in zip(row.split(16), out.split(16), strict=True)]
            assert max(per_group) <= 2**m.bits, f"{text}: {max(per_group)} values in a group"


def check_more_bits_less_error(m):
    for text in ("50%", "100%"):
        w, _, stats, before = pruned_toy(m, text)
        gram, errors = observe((Gram,), *pruned_toy(m, text)[:2])[Gram], []
        for bits in (2, 4, 6, 8):
            after = dataclasses.replace(m, bits=bits).correct(w, before, stats)
            errors.append(gram.energy(after.weight - before.weight))
        assert errors == sorted(errors, reverse=True), f"{text}: errors with 2, 4, 6 and 8 bits: {errors}"


def check_no_worse_than_rounding(m):
    """On the calibration inputs, than each survivor rounded to the nearest point of its row's symmetric grid."""
    for text in ("50%", "2:4", "100%"):
        for seed in range(5):
            w, x, stats, before = pruned_toy(m, text, seed)
            gram = observe((Gram,), w, x)[Gram]
            step = before.weight.abs().amax(1, keepdim=True) / (2 ** (m.bits - 1) - 1)
            step = (step.view(torch.int32) + 0xFFFF & ~0xFFFF).view(torch.float32)  # up to bfloat16, as scales are
            nearest = (before.weight / step).round() * step
            ours = gram.energy(m.correct(w, before, stats).weight - before.weight)
            plain = gram.energy(nearest - before.weight)
            assert ours <= 1.0001 * plain, f"{text}, seed {seed}: error {ours:.4g}, rounding to nearest {plain:.4g}"


def check_refuses_a_second_grid(m):
    w, _, stats, before = pruned_toy(m)
    refuses("a grid already", lambda: m.correct(w, m.correct(w, before, stats), stats))


def check_refuses_bits_that_cannot_be_stored(m):
    w, _, stats, before = pruned_toy(m)
    for bits in (1, 9):
        refuses(f"{bits} bits", lambda bits=bits: dataclasses.replace(m, bits=bits).correct(w, before, stats))


QUANTISER = (
    check_mask_is_untouched,
    check_lies_on_its_grid,
    check_more_bits_less_error,
    check_no_worse_than_rounding,
    check_corrects_purely,
    check_corrected_dtypes,
    check_refuses_a_second_grid,
    check_refuses_bits_that_cannot_be_stored,
)
