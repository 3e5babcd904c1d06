"""The harness that watches kernels: each planted mistake is named, and what is right passes."""

import os

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("the interpreter's harness is for machines without a GPU", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"

import triton
import triton.language as tl

from fewer.testing.interpret import KernelError, poisoned, watch


@triton.jit
def right(x, y, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def reads_past_the_end(x, y, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(y + i, tl.load(x + i), mask=i < n)


@triton.jit
def reads_before_the_begin(x, y, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE) - 1
    tl.store(y + i + 1, tl.load(x + i, mask=i < n), mask=i + 1 < n)


@triton.jit
def writes_past_the_end(x, y, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(y + i, tl.load(x + i, mask=i < n))


@triton.jit
def two_write_one(x, y, n, TILE: tl.constexpr):
    i = tl.arange(0, TILE)
    tl.store(y + i, tl.load(x + i, mask=i < n) + tl.program_id(0), mask=i < n)


@triton.jit
def reads_what_another_wrote(x, y, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(y + i, tl.load(y + (i + TILE) % n, mask=i < n), mask=i < n)


@triton.jit
def counts_atomically(x, y, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.atomic_add(y + i * 0, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def counts_past_the_end(x, y, n, TILE: tl.constexpr):
    tl.atomic_add(y + n + tl.arange(0, TILE), 1.0)


@triton.jit
def leaves_a_hole(x, y, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n - 1)


def part_of_something_larger(n=7):
    """Neighbours exist, so without `watch` nothing would be seen."""
    return torch.arange(64.0)[10 : 10 + n], torch.zeros(64)[20 : 20 + n]


@pytest.mark.parametrize(
    "kernel, says",
    [
        (reads_past_the_end, "reads outside every tensor: 4 bytes past the end of the nearest, float32"),
        (reads_before_the_begin, "reads outside every tensor: 4 bytes before the begin"),
        (writes_past_the_end, "writes outside every tensor: 4 bytes past the end"),
        (two_write_one, "write the same element"),
        (reads_what_another_wrote, "meet: one"),
        (counts_past_the_end, "writes outside"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_planted_mistake_is_named(kernel, says):
    x, y = part_of_something_larger()
    kernel[(2,)](x, y, 7, TILE=4)  # silent
    with pytest.raises(Exception, match=says) as caught, watch(x, y):
        kernel[(2,)](x, y, 7, TILE=4)
    assert isinstance(caught.value.__cause__, KernelError)


@pytest.mark.parametrize("kernel", [right, counts_atomically], ids=lambda k: k.__name__)
def test_what_is_right_passes(kernel):
    x, y = part_of_something_larger()
    with watch(x, y):
        kernel[(2,)](x, y, 7, TILE=4)


def test_a_later_launch_may_read_and_write_what_an_earlier_one_wrote():
    x, y = part_of_something_larger()
    with watch(x, y):
        right[(2,)](x, y, 7, TILE=4)
        right[(4,)](y, x, 7, TILE=2)
        right[(4,)](x, y, 7, TILE=2)


def test_what_torch_makes_meanwhile_may_be_used_and_is_poisoned():
    x, _ = part_of_something_larger(4)
    with watch(x):
        y, twice = torch.empty(4), torch.cat([x, x])
        leaves_a_hole[(1,)](twice, y, 4, TILE=4)
    assert y[:3].equal(x[:3]) and y.isnan().tolist() == [False, False, False, True]
    with watch(x):
        assert x.new_empty(2).isnan().all() and torch.empty_like(x).isnan().all()


def test_poison_is_loud_in_every_dtype():
    assert poisoned(2, dtype=torch.float16).isnan().all()
    assert (poisoned(2, dtype=torch.int32) == 2**31 - 1).all()
    assert poisoned(2, dtype=torch.bool).all()


def test_afterwards_nothing_is_watched_even_after_a_failure():
    x, y = part_of_something_larger()
    with pytest.raises(RuntimeError), watch(x, y):
        raise RuntimeError
    reads_past_the_end[(2,)](x, y, 7, TILE=4)
    assert not torch.empty(10_007).isnan().all()
