"""Selections with a slope and selections by chance: against peers, float64 arithmetic and frequencies."""

import itertools

import entmax as peer
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from fewer.core.budget import budget
from fewer.select import (
    entmax,
    entmax15,
    gumbel_top_k,
    inclusion,
    jump,
    masked,
    revivable,
    sample,
    select,
    sparse_k,
    sparsemax,
    step,
    straight_through,
)

HALVES = [torch.float16, torch.bfloat16]
rows = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


# projections


@settings(deadline=None, max_examples=60)
@given(rows)
def test_sparsemax_and_entmax_meet_the_conditions_that_define_them(z):
    """p = max((a - 1) z - tau, 0)^(1 / (a - 1)) with one tau for the row, and p sums to 1."""
    z = torch.tensor(z, dtype=torch.float64)
    for alpha, p in ((2.0, sparsemax(z)), (1.5, entmax15(z)), (1.3, entmax(z, 1.3)), (3.0, entmax(z, 3.0))):
        tau = (alpha - 1) * z - p ** (alpha - 1)
        assert abs(float(p.sum()) - 1) < 1e-9 and (p >= 0).all()
        held = tau[p > 0].mean()
        assert torch.allclose(tau[p > 0], held, atol=1e-7)
        assert ((alpha - 1) * z[p == 0] <= held + 1e-7).all()


@pytest.mark.parametrize("shape", [(7,), (5, 9), (2, 3, 33)], ids=str)
def test_values_are_those_of_the_package_entmax(shape):
    z = noise(*shape)
    assert torch.allclose(sparsemax(z), peer.sparsemax(z, dim=-1), atol=1e-12)
    assert torch.allclose(entmax15(z), peer.entmax15(z, dim=-1), atol=1e-12)
    for alpha in (1.05, 1.25, 1.5, 2.0, 3.5):
        assert torch.allclose(entmax(z, alpha), peer.entmax_bisect(z, alpha, dim=-1, n_iter=80), atol=1e-10)
        flat = z / 100  # near the other end of the bisection
        assert torch.allclose(entmax(flat, alpha), peer.entmax_bisect(flat, alpha, dim=-1, n_iter=80), atol=1e-10)


def test_alpha_may_differ_from_row_to_row():
    z, alpha = noise(3, 6), torch.tensor([[1.2], [1.5], [2.0]], dtype=torch.float64)
    each = torch.stack([entmax(row, float(a)) for row, a in zip(z, alpha, strict=True)])
    assert torch.allclose(entmax(z, alpha), each, atol=1e-14)
    for bad in (1.0, 0.5, float("nan"), torch.tensor([[1.5], [1.0], [2.0]])):
        with pytest.raises(ValueError, match="alpha above 1"):
            entmax(z, bad)


@settings(deadline=None, max_examples=60)
@given(rows, st.floats(0.05, 1))
def test_sparse_k_is_the_nearest_point_with_that_sum(z, share):
    """Against bisection: p = clip(z - tau, 0, 1), whose sum falls in tau."""
    z = torch.tensor(z, dtype=torch.float64)
    k = share * len(z)
    low, high = float(z.min()) - 1, float(z.max())
    for _ in range(100):
        tau = (low + high) / 2
        low, high = (tau, high) if float((z - tau).clamp(0, 1).sum()) >= k else (low, tau)
    assert torch.allclose(sparse_k(z, k), (z - low).clamp(0, 1), atol=1e-9)
    assert abs(float(sparse_k(z, k).sum()) - k) < 1e-9


def test_sparse_k_becomes_top_k_where_scores_are_far_apart_and_sparsemax_for_one():
    z = noise(6, 12)
    assert torch.equal(sparse_k(z * 1e4, 5), select(z, budget("5")).double())
    near = noise(6, 12) / 10  # every p below 1: the upper bound does not bind
    assert torch.allclose(sparse_k(near, 1), sparsemax(near), atol=1e-12)
    for k in (0, 13):
        with pytest.raises(ValueError, match="above 0 and at most 12"):
            sparse_k(z, k)


def test_large_scores_and_scores_far_below_do_not_blur_the_rest():
    z, near = torch.tensor([2.0**22 + 0.5, 2.0**22, -1e9]), torch.tensor([0.5, 0.0], dtype=torch.float64)
    for soft, truth in (
        (sparsemax, peer.sparsemax(near)),
        (entmax15, peer.entmax15(near)),
        (lambda z: entmax(z, 1.5), peer.entmax15(near)),
        (lambda z: sparse_k(z, 1), peer.sparsemax(near)),
    ):
        assert torch.allclose(soft(z).double(), torch.cat([truth, torch.zeros(1)]), atol=1e-6)
    far = torch.tensor([1e9, 0.5, 0.0, -torch.inf])
    assert torch.allclose(sparse_k(far, 2), torch.tensor([1.0, 0.75, 0.25, 0.0]))
    assert torch.allclose(sparse_k(-far, 2.5), torch.tensor([0.0, 0.5, 1.0, 1.0]))


def test_all_of_a_row_stays_if_k_is_its_length():
    for z in (torch.tensor([3.0, 1.0, 1.0]), torch.tensor([7.0])):
        assert (sparse_k(z, len(z)) == 1).all()


def test_large_rows_sum_to_what_they_should_in_float32():
    z = noise(4, 5000, seed=3).float()
    for p, total in ((sparsemax(z), 1), (entmax15(z), 1), (entmax(z, 1.3), 1), (sparse_k(z, 700), 700)):
        assert torch.allclose(p.double().sum(-1), torch.full((4,), float(total), dtype=torch.float64), rtol=1e-5)


SOFT = [
    sparsemax,
    entmax15,
    lambda z: entmax(z, 1.3),
    lambda z: entmax(z, 2.5),
    lambda z: sparse_k(z, 3),
    lambda z: sparse_k(z, 2.6),
]
NAMES = ["sparsemax", "entmax15", "entmax 1.3", "entmax 2.5", "sparse_k 3", "sparse_k 2.6"]


@pytest.mark.parametrize("soft", SOFT, ids=NAMES)
def test_gradients_are_exact(soft):
    assert gradcheck(soft, noise(4, 7).requires_grad_())
    assert gradcheck(soft, noise(2, 3, 5, seed=1).requires_grad_())


@pytest.mark.parametrize("alpha", [1.1, 1.5, 1.8, 2.5])
def test_alpha_learns_by_its_exact_gradient(alpha):
    z, power = noise(4, 6), torch.full((4, 1), alpha, dtype=torch.float64)
    assert gradcheck(entmax, (z.requires_grad_(), power.requires_grad_()))
    assert gradcheck(entmax, (z, torch.tensor(alpha, dtype=torch.float64, requires_grad=True)))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("soft", SOFT, ids=NAMES)
def test_halves_are_computed_in_float32_and_stay_halves(soft, dtype):
    z = noise(3, 8).to(dtype).requires_grad_()
    p = soft(z)
    wide = z.detach().float().requires_grad_()
    assert p.dtype == dtype and torch.equal(p, soft(wide).to(dtype))
    weight = torch.arange(8.0)
    (p * weight.to(dtype)).sum().backward()
    (soft(wide) * weight).sum().backward()
    assert z.grad.dtype == dtype and torch.allclose(z.grad.float(), wide.grad, rtol=1e-2, atol=5e-2)


# gradients past a hard selection


def test_straight_through_hands_the_gradient_to_the_scores_and_masked_to_survivors_only():
    score, g = noise(4, 6).requires_grad_(), noise(4, 6, seed=1)
    keep = select(score, budget("2"))
    for f, value, grad in (
        (straight_through, keep.double(), g),
        (masked, score.detach() * keep, g * keep),
        (revivable, score.detach() * keep, g),
    ):
        out = f(score, keep)
        assert torch.equal(out, value)
        assert torch.equal(torch.autograd.grad(out, score, g)[0], grad)


def test_a_jump_learns_its_threshold_as_the_paper_writes_it():
    z, theta, width = noise(50, 8).requires_grad_(), (noise(8, seed=1).abs() + 0.1).requires_grad_(), 1.5
    g = noise(50, 8, seed=2)
    h = lambda x: (x > 0).double()  # noqa: E731
    rectangle = h((z - theta) / width + 0.5) - h((z - theta) / width - 0.5)
    for f, value, dz, dtheta in (
        (jump, z * h(z - theta), h(z - theta), -theta / width * rectangle),
        (step, h(z - theta), None, -1 / width * rectangle),
    ):
        out = f(z, theta, width)
        assert torch.equal(out, value)
        got_z, got_theta = torch.autograd.grad(out, (z, theta), g, allow_unused=True)
        assert torch.equal(got_z, g * dz) if dz is not None else got_z is None or not got_z.any()
        assert torch.allclose(got_theta, (g * dtheta).sum(0))
    assert rectangle.any() and not rectangle.all()


def test_a_jump_is_above_its_threshold_and_its_rectangle_is_open():
    theta = torch.tensor(1.0, requires_grad=True)
    z = torch.tensor([0.75, 1.0, 1.125, 1.25], requires_grad=True)  # at -1/2, 0, 1/4 and 1/2 of the width
    for f, value, dz, dtheta in ((jump, [0, 0, 1.125, 1.25], [0, 0, 1, 1], -4), (step, [0, 0, 1, 1], None, -4)):
        out = f(z, theta, 0.5)
        assert out.tolist() == value
        got_z, got_theta = torch.autograd.grad(out.sum(), (z, theta), allow_unused=True)
        assert got_theta == dtheta and (got_z is None or dz is None or got_z.tolist() == dz)


def test_a_jump_is_a_thousandth_wide_if_not_told():
    for f in (jump, step):
        theta = torch.tensor(1.0, requires_grad=True, dtype=torch.float64)
        f(torch.tensor([0.9994, 0.9996, 1.0004, 1.0006], dtype=torch.float64), theta).sum().backward()
        assert abs(float(theta.grad) + 2000) < 1e-6


def test_the_pseudo_derivative_of_a_count_is_the_true_one_on_average():
    """E[d step / d theta] is minus the density at theta: uniform scores have density 1."""
    z = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor(0.5, requires_grad=True)
    step(z, theta, 0.1).mean().backward()
    assert abs(float(theta.grad) + 1) < 0.02


# chance


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 8))
def test_inclusion_probabilities_are_proportional_until_certain(weights, k):
    k = min(k, len(weights))
    prob = inclusion(torch.tensor(weights, dtype=torch.float64), k)
    assert abs(float(prob.sum()) - k) < 1e-9 and (prob <= 1).all()
    low, high = 0.0, float(k * sum(weights))
    for _ in range(100):  # the c of min(c w, 1)
        c = (low + high) / 2
        low, high = (c, high) if sum(min(c * w, 1) for w in weights) < k else (low, c)
    assert torch.allclose(prob, torch.tensor([min(high * w, 1.0) for w in weights], dtype=torch.float64), atol=1e-9)


def test_samples_are_drawn_as_often_as_they_say():
    weight, draws = torch.tensor([4.0, 1.0, 1.0, 2.0, 0.5, 3.0, 0.0]), 40_000
    keep, prob = sample(weight.expand(draws, 7), 3, torch.Generator().manual_seed(0))
    assert (keep.sum(-1) == 3).all()
    error = (prob[0] * (1 - prob[0]) / draws).sqrt()
    assert ((keep.float().mean(0) - prob[0]).abs() <= 4 * error).all()  # 0 and 1 exactly
    pairs = keep.float().T @ keep.float()
    assert (pairs[:6, :6] > 0).all()  # any two that can be drawn can be drawn together


def test_gumbel_draws_one_after_another_by_softmax_and_weighs_without_bias():
    weight, k, draws = [4.0, 1.0, 2.0, 0.5, 3.0], 3, 40_000
    logits = torch.tensor(weight).log().expand(draws, 5)
    keep, prob = gumbel_top_k(logits, k, torch.Generator().manual_seed(0))
    truth = [0.0] * 5
    for order in itertools.permutations(range(5), k):  # the probability of each way to draw three
        chance, left = 1.0, sum(weight)
        for i in order:
            chance, left = chance * weight[i] / left, left - weight[i]
        for i in order:
            truth[i] += chance
    frequency = keep.double().mean(0)
    assert (keep.sum(-1) == k).all()
    assert ((frequency - torch.tensor(truth)).abs() < 4 * 0.5 / draws**0.5).all()
    estimates = torch.where(keep, 1 / prob.double(), 0.0)  # of 1, for each
    assert ((estimates.mean(0) - 1).abs() < 5 * estimates.std(0) / draws**0.5).all()


@pytest.mark.parametrize("draw", [sample, gumbel_top_k], ids=["sample", "gumbel_top_k"])
def test_the_same_seed_draws_the_same(draw):
    weight = noise(9, 20).exp()
    once, again, other = (draw(weight, 4, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_all_can_be_drawn_and_too_many_cannot():
    g = torch.Generator().manual_seed(0)
    keep, prob = sample(torch.tensor([5.0, 1.0]), 2, g)
    assert keep.all() and (prob == 1).all()
    keep, prob = gumbel_top_k(torch.tensor([5.0, 1.0, 2.0]), 3, g)
    assert keep.all() and (prob == 1).all()
    for bad in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, -1.0]), torch.tensor([1.0, torch.inf])):
        with pytest.raises(ValueError):
            sample(bad, 2, g)
    for k in (0, 3):
        with pytest.raises(ValueError, match="write 1 to 2"):
            gumbel_top_k(torch.zeros(2), k, g)
        with pytest.raises(ValueError, match="cannot be drawn"):
            inclusion(torch.ones(2), k)
    with pytest.raises(ValueError, match="k = 2 of a row in which 1 have weight"):
        inclusion(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), 2)


def test_what_has_no_weight_is_never_certain():
    assert inclusion(torch.tensor([0.0, 1.0, 1.0, 0.0]), 2).tolist() == [0, 1, 1, 0]
    assert inclusion(torch.tensor([3.0, 0.0]), 1).tolist() == [1, 0]


def test_chances_are_drawn_to_the_last_bit_of_float64():
    """A float32 has 24 bits after the point, so that one draw in 16 million would be exactly 0."""
    from fewer.select.sample import _uniform

    draws = _uniform(torch.zeros(100), torch.Generator().manual_seed(0))
    assert draws.dtype is torch.float64 and (draws * 2**24 % 1 != 0).all()


def test_k_are_drawn_however_the_probabilities_round(monkeypatch):
    """Ten times 0.3 is 2.9999999999999996 in float64; the start that is 1 must still reach the third."""
    import sys

    monkeypatch.setattr(sys.modules["fewer.select.sample"], "_uniform", lambda like, _: torch.zeros_like(like))
    assert sample(torch.ones(10), 3, torch.Generator())[0].sum() == 3
