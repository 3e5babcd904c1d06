"""What every mixer must do, on a toy of two rows, four heads and two key-value heads."""

from dataclasses import replace

import torch

from fewer.attention import Mixer, Reading, Shape
from fewer.core.budget import budget
from fewer.testing import unchanged

HEADS, FEW, DIM, HIDDEN, LENGTH = 4, 2, 8, 12, 21


def asked(m, seed=0, batch=2, length=LENGTH):
    """Queries, keys, values and hidden states of a text, and the mixer's first parts."""
    make = torch.Generator().manual_seed(seed)
    shapes = ((HEADS, DIM), (FEW, DIM), (FEW, DIM))
    q, k, v = (torch.randn(batch, h, length, d, generator=make) for h, d in shapes)
    x = torch.randn(batch, length, HIDDEN, generator=make)
    return q, k, v, x, m.begin(Shape(HEADS, FEW, DIM, HIDDEN), make)


def reading(m, q, k, v, x, parts):
    """As the engine has it: with what the mixer wants to be remembered of each token."""
    r = replace(Reading.of(q, k, v, parts), x=x)
    return replace(r, note=m.note(r))


def small(m):
    """The same for a text of a few tokens, if it makes one key of several."""
    sizes = {"length": 4, "stride": 2, "block": 4, "window": 6}
    return replace(m, **sizes) if sizes.keys() <= m.__dataclass_fields__.keys() else m


def some(m):
    """Half of what there is, for who is told how much to read."""
    return budget("50%" if m.chooses else "100%")


def last(r, count):
    """The same with the last queries alone."""
    return replace(r, q=r.q[:, :, -count:], now=r.now[:, -count:], x=r.x[:, -count:])


def same(a, b):
    return torch.allclose(a, b, atol=1e-5)


def check_parts_are_the_same_each_time(m):
    first, again = (m.begin(Shape(HEADS, FEW, DIM, HIDDEN, 1), torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.keys() == again.keys() and all(torch.equal(t, again[name]) for name, t in first.items())
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in first.values())


def check_rows_and_padding(m):
    """A row beside a longer one, behind empty slots, gives what it gives alone."""
    q, k, v, x, parts = asked(m)
    r, empty = reading(m, q, k, v, x, parts), 5
    at, now = r.at.clone(), r.now.clone()
    at[1, :, :empty], now[1, :empty] = -1, -1
    at[1, :, empty:] = torch.arange(LENGTH - empty)
    now[1, empty:] = torch.arange(LENGTH - empty)
    both = m.mix(replace(r, at=at, now=now), some(m))
    for row, skip in ((0, 0), (1, empty)):
        alone = reading(m, *(t[row : row + 1, :, skip:] for t in (q, k, v)), x[row : row + 1, skip:], parts)
        assert same(both[row : row + 1, :, skip:], m.mix(alone, some(m))), "a row hears of its neighbours"
    assert not both[1, :, :empty].any(), "a query that may read nothing gives something"


def check_chunks(m):
    """The last queries, asked alone, give what they give among all."""
    r = reading(m, *asked(m))
    whole = m.mix(r, some(m))
    for count in (1, 9):
        assert same(m.mix(last(r, count), some(m)), whole[:, :, -count:])


def check_causal(m):
    q, k, v, x, parts = asked(m)
    before = m.mix(reading(m, q, k, v, x, parts), some(m))
    for t in (q, k, v):
        t[:, :, 13:] += 3
    x[:, 13:] -= 2
    after = m.mix(reading(m, q, k, v, x, parts), some(m))
    assert same(before[:, :, :13], after[:, :, :13]), "the future changes the past"
    assert not same(before[:, :, 13:], after[:, :, 13:])


def check_window(m):
    """What lies before a window is not read."""
    r = replace(reading(m, *asked(m)), window=6)
    before = m.mix(last(r, 1), some(m))
    r.k[:, :, : LENGTH - 6] += 3
    r.v[:, :, : LENGTH - 6] -= 3
    assert same(before, m.mix(last(r, 1), some(m)))


def check_gradient(m):
    """Finite everywhere, where there is nothing to read too; no part is left without one, away from where it begins."""
    m = small(m)
    q, k, v, x, parts = asked(m)
    make = torch.Generator().manual_seed(1)
    parts = {n: (t + 0.3 * torch.randn(t.shape, generator=make)).requires_grad_() for n, t in parts.items()}
    leaves = [t.requires_grad_() for t in (q, k, v)]
    r = reading(m, q, k, v, x, parts)
    now = r.now.clone()
    now[0, :3] = -1
    out = m.mix(replace(r, now=now), some(m))
    also = m.penalty(r)
    (out.square().sum() + (0.0 if also is None else also)).backward()
    for name, t in [*zip("qkv", leaves, strict=True), *parts.items()]:
        assert t.grad is not None and t.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert t.grad.any(), f"nothing is learnt of {name}"


def check_pure(m):
    r = reading(m, *asked(m))
    intact = unchanged(r.q, r.k, r.v, r.at, r.now, *r.parts.values())
    assert torch.equal(m.mix(r, some(m)), m.mix(r, some(m)))
    intact()


def check_dtype(m):
    """Halves in, halves out, near what whole numbers give."""
    q, k, v, x, parts = asked(m)
    whole = m.mix(reading(m, q, k, v, x, parts), some(m))
    half = m.mix(reading(m, *(t.bfloat16() for t in (q, k, v, x)), parts), some(m))
    assert half.dtype == torch.bfloat16 and (half - whole).square().mean() < 0.05 * whole.square().mean()


MIXER = (
    check_parts_are_the_same_each_time,
    check_rows_and_padding,
    check_chunks,
    check_causal,
    check_window,
    check_gradient,
    check_pure,
    check_dtype,
)
CHECKS = {Mixer: MIXER}
