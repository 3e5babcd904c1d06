"""Scores that look at gradients or at rows and columns: against loops, autograd, and what removing a weight really does."""

import pytest
import torch

from fewer.calibrate import GradMean, InputSquares, observe
from fewer.core import budget
from fewer.core.method import find
from fewer.testing.heard import heard
from fewer.weights.fisher import Fisher
from fewer.weights.grasp import Grasp
from fewer.weights.movement import Movement
from fewer.weights.ria import Ria
from fewer.weights.snip import Snip
from fewer.weights.taylor import Taylor

WINDOWS = 6


def classes(w, x, answers):
    """Each window's mean loss: a classifier whose hidden layer is `w`."""
    out = torch.tanh(x.double() @ w.double().T)
    return torch.stack([torch.nn.functional.cross_entropy(o, a) for o, a in zip(out, answers, strict=True)])


def learner(seed=0):
    make = torch.Generator().manual_seed(seed)
    w, x = torch.randn(5, 7, generator=make), torch.randn(WINDOWS, 4, 7, generator=make)
    return w, x, torch.randint(5, (WINDOWS, 4), generator=make)


def gradients(w, x, answers):
    """One gradient a window, by autograd."""
    v = w.double().requires_grad_()
    return torch.stack([torch.autograd.grad(classes(v, x, answers)[i], v)[0] for i in range(WINDOWS)])


def scores(m, w, x, answers):
    return m.score(w, observe(m.needs, w, x, gradients(w, x, answers)))


def test_ria_is_the_formula():
    w, x = torch.randn(4, 6), torch.randn(30, 6)
    w[2], w[:, 1], x[:, 4] = 0, 0, 0  # an empty row, an empty column, a dead input
    rms = x.double().square().mean(0).sqrt()
    found = Ria(power=0.7).score(w, observe(Ria.needs, w, x))
    for i in range(4):
        for j in range(6):
            size = abs(w[i, j].item())
            row, column = w[i].double().abs().sum().item(), w[:, j].double().abs().sum().item()
            expected = (size / row + size / column) * rms[j].item() ** 0.7 if size else 0.0
            assert found[i, j].item() == pytest.approx(expected, rel=1e-5)


def test_ria_keeps_the_one_weight_through_which_an_input_is_heard():
    w = torch.ones(8, 8) + torch.rand(8, 8)
    w[:, 3] = 0.01
    w[5, 3] = 0.3
    stats = observe((InputSquares,), w, torch.ones(2, 8))
    lost, held = (find(f"weights/{name}")().prune(w, budget("25% per tensor"), stats)[1] for name in ("wanda", "ria"))
    assert not lost[:, 3].any() and held[5, 3]


def test_snip_is_what_the_loss_feels_of_scaling_each_weight():
    w, x, answers = learner()
    scale = torch.ones(5, 7, dtype=torch.double, requires_grad=True)
    (felt,) = torch.autograd.grad(classes(w.double() * scale, x, answers).mean(), scale)
    torch.testing.assert_close(scores(Snip(), w, x, answers), felt.abs().float())


def test_taylor_and_fisher_average_over_windows_what_snip_averages_before():
    w, x, answers = learner(1)
    each = gradients(w, x, answers) * w.double()
    torch.testing.assert_close(scores(Taylor(), w, x, answers), each.abs().mean(0).float())
    torch.testing.assert_close(scores(Fisher(), w, x, answers), each.square().mean(0).float() / 2)
    ranks = [scores(m, w, x, answers).flatten().argsort().tolist() for m in (Snip(), Taylor(), Fisher())]
    assert len({tuple(r) for r in ranks}) == 3  # three rules, not one under three names


def test_movement_tells_who_grows_in_a_step_of_gradient_descent():
    w, x, answers = learner(2)
    after = w.double() - 1e-5 * gradients(w, x, answers).mean(0)
    grown = (after.square() - w.double().square()) / 2e-5
    torch.testing.assert_close(scores(Movement(), w, x, answers), grown.float(), rtol=1e-3, atol=1e-4)


def test_grasp_is_what_the_squared_gradient_loses_with_each_weight():
    w, x, answers = learner(3)
    v = w.double().requires_grad_()

    def flow(v):
        return torch.autograd.grad(classes(v, x, answers).mean(), v, create_graph=True)[0].square().sum()

    (twice,) = torch.autograd.grad(flow(v), v)  # the gradient of |g|^2 is 2 H g
    found = Grasp().score(w, observe(Grasp.needs, w, x, curve=twice / 2))
    for i, j in ((0, 0), (2, 5), (4, 6)):
        less = w.double().clone()
        less[i, j] *= 1 - 1e-5  # the score is first order: a little less of the weight
        lost = (flow(v) - flow(less.requires_grad_())).item() / 2e-5
        assert found[i, j].item() == pytest.approx(lost, rel=1e-3, abs=1e-6)


def test_fisher_is_the_rise_of_the_loss_where_the_model_says_how_sure_it_is():
    """Gaussian answers at the truth: the mean squared gradient of one token is the curvature, and h w^2 / 2 the rise."""
    make = torch.Generator().manual_seed(0)
    w, x = (
        torch.randn(3, 4, generator=make),
        torch.randn(20_000, 4, generator=make) * torch.tensor([3.0, 1.0, 0.3, 0.1]),
    )
    noise = torch.randn(20_000, 3, generator=make)
    grads = -noise[:, :, None] * x[:, None, :]  # of |y - w x|^2 / 2 with y = w x + noise
    found = Fisher().score(w, observe(Fisher.needs, w, x, grads))
    rise = w.square() * x.square().mean(0) / 2  # of the mean of |w x - w' x|^2 / 2 without one weight
    torch.testing.assert_close(found, rise, rtol=0.1, atol=1e-4)


@pytest.mark.parametrize("name", ["snip", "movement", "fisher", "taylor", "grasp"])
def test_half_precision_weights_are_scored_in_single(name):
    w, x = torch.randn(8, 8).bfloat16(), torch.randn(64, 8)
    m = find(f"weights/{name}")()
    assert m.score(w, heard(m, w, x)).dtype == torch.float32


def test_a_gradient_that_was_not_collected_is_named():
    with pytest.raises(KeyError, match="GradMean was not collected"):
        Snip().score(torch.ones(1, 1), observe((InputSquares,), torch.ones(1, 1), torch.ones(1, 1)))
    assert GradMean in Snip.needs
