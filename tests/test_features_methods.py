"""The selections of learnt dictionaries against their formulas, in float64 where a formula is the truth."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewer.core import budget, find
from fewer.features import Pass
from fewer.features.adaptive_k import AdaptiveK
from fewer.features.feature_choice import FeatureChoice
from fewer.features.gated import Gated
from fewer.features.gradient_pursuit import GradientPursuit
from fewer.features.hierarchical_top_k import HierarchicalTopK
from fewer.features.jump_relu import JumpRelu
from fewer.features.matching_pursuit import MatchingPursuit
from fewer.features.matryoshka import Matryoshka
from fewer.features.mutual_choice import MutualChoice
from fewer.features.orthogonal_matching_pursuit import OrthogonalMatchingPursuit
from fewer.features.prox import Prox
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_afa import TopAfa
from fewer.layout import Codes

ROWS, LATENTS, DIM = 12, 20, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(seed=1):
    return F.normalize(draw(LATENTS, DIM, seed=seed), dim=1)


@pytest.mark.parametrize("name", ["batch_top_k", "mutual_choice", "matryoshka"])
@pytest.mark.parametrize("text, k", [("3", 3), ("25%", 5), ("1:4", 5), ("100%", 20)])
def test_a_batch_keeps_its_k_largest_of_all_exactly(name, text, k):
    m, pre = find(f"features/{name}")(), draw(ROWS, LATENTS)
    best = sorted((-pre[i, j].item(), i, j) for i in range(ROWS) for j in range(LATENTS))[: ROWS * k]
    keep = m.keep(pre, budget(text))
    assert {(i, j) for i, j in keep.nonzero().tolist()} == {(i, j) for _, i, j in best}


@pytest.mark.parametrize("k", [1, 2, 3, 7, 20])
def test_each_latent_chooses_equally_many_inputs_and_all_places_are_used(k):
    pre = draw(ROWS, LATENTS, seed=k)
    keep = FeatureChoice().keep(pre, budget(str(k)))
    each, left = divmod(ROWS * k, LATENTS)
    counts = keep.sum(0)
    assert keep.sum() == ROWS * k and (counts == each + 1).sum() == left and (counts == each).sum() == LATENTS - left
    for j in range(LATENTS):  # its best, and no others
        assert pre[keep[:, j], j].sort().values.tolist() == pre[:, j].sort().values[ROWS - counts[j] :].tolist()
    after = [pre[:, j].sort().values[ROWS - each - 1].item() if each < ROWS else -9 for j in range(LATENTS)]
    assert {j for j in range(LATENTS) if counts[j] > each} == set(np.argsort(after)[::-1][:left].tolist())


def test_who_lies_below_zipfs_law_is_underused_even_if_not_dead():
    share = 0.5 / torch.arange(1, 101.0)
    share[90:] /= 100
    silent = torch.zeros(100)
    silent[3] = 6
    idle = MutualChoice().idle(silent, share, 5)
    assert idle.nonzero()[:, 0].tolist() == [3, *range(90, 100)]
    assert not MutualChoice().idle(torch.zeros(100), 0.5 / torch.arange(1, 101.0), 5).any()


def left_after(parts, x, atoms):
    errors, rest = [], x
    for weight, part in parts:
        rest = rest - part.dense() @ atoms
        errors.append(weight * rest.square().mean())
    return errors


def test_every_prefix_of_the_sorted_codes_explains_the_input():
    pre, x, atoms = draw(ROWS, LATENTS), draw(ROWS, DIM), unit()
    m, k = HierarchicalTopK(), 5
    z = m.code(pre, budget(str(k)))
    ours = left_after(m.views(Codes.pack(z, z != 0)), x, atoms)
    for j in range(1, k + 1):
        alone = find("features/top_k")().code(pre, budget(str(j)))  # TopK anew at this k
        assert torch.allclose(ours[j - 1], (x - alone @ atoms).square().mean() / k)
    some = left_after(HierarchicalTopK((0.4, 1.0)).views(Codes.pack(z, z != 0)), x, atoms)
    assert torch.allclose(torch.stack(some), torch.stack([ours[1], ours[4]]) * k / 2)


def test_every_width_explains_the_input():
    pre, x, atoms = draw(ROWS, LATENTS), draw(ROWS, DIM), unit()
    m = Matryoshka((0.1, 0.5, 1.0))
    z = m.code(pre, budget("4"))
    ours = left_after(m.views(Codes.pack(z, z != 0)), x, atoms)
    for error, width in zip(ours, (2, 10, 20), strict=True):
        assert torch.allclose(error, (x - z[:, :width] @ atoms[:width]).square().mean() / 3)


@pytest.mark.parametrize("what", ["number", "error"])
def test_jump_relus_thresholds_learn_the_slope_of_the_expected_loss(what):
    """On smooth data the expectation has a derivative: the estimate, on pre-activations, is that of finite differences."""
    pre = draw(400_000, 1, seed=3) + 0.3
    y = 0.7 * pre + 0.1
    theta, h = 0.8, 0.05

    def loss(theta):
        z = torch.where(pre > theta, pre, 0.0)
        return (z != 0).double().mean() if what == "number" else (y - z).square().mean()

    own = {"threshold": torch.tensor([theta], dtype=torch.float64, requires_grad=True)}
    m = JumpRelu(bandwidth=0.1, price=1.0)
    if what == "number":
        seen = Pass(y, y, pre, m.code(pre, budget("1"), own), torch.ones(1, 1), torch.zeros(1), 0.0)
        m.cost(seen, budget("1"), own).backward()
    else:
        (y - m.code(pre, budget("1"), own)).square().mean().backward()
    expected = ((loss(theta + h) - loss(theta - h)) / (2 * h)).item()
    assert own["threshold"].grad.item() == pytest.approx(expected, rel=0.05)


def test_jump_relus_cost_says_nothing_to_the_encoder():
    pre = draw(ROWS, LATENTS).requires_grad_()
    m = JumpRelu()
    own = {n: t.requires_grad_() for n, t in m.begin(LATENTS, budget("4")).items()}
    x = draw(ROWS, DIM)
    seen = Pass(x, x, pre, m.code(pre, budget("4"), own), unit(), torch.zeros(DIM), 0.0)
    grads = torch.autograd.grad(m.cost(seen, budget("4"), own), [pre, own["threshold"]], allow_unused=True)
    assert grads[0] is None or not grads[0].any()
    assert grads[1].any()


def test_thresholds_begin_where_normal_pre_activations_meet_the_budget():
    m = JumpRelu()
    z = m.code(draw(2000, 100).float(), budget("7"), m.begin(100, budget("7")))
    assert (z != 0).sum(1).double().mean().item() == pytest.approx(7, rel=0.03)


def test_a_price_rises_while_too_many_speak():
    m, pre, x = ReluL1(), draw(ROWS, LATENTS), draw(ROWS, DIM)
    for k, way in ((2, -1), (19, 1)):  # about half of 20 speak
        own = {"price": torch.zeros((), dtype=torch.float64, requires_grad=True)}
        found = m.penalty(Pass(x, x, pre, pre.relu(), unit(), torch.zeros(DIM), 0.0), budget(str(k)), own)
        found.backward()
        over = max(-1, min(1, math.log((pre > 0).sum().item() / (ROWS * k))))
        assert own["price"].grad.item() == pytest.approx(-2 * over) and own["price"].grad.sign() == way
        assert found.item() == pytest.approx(math.exp(over) * pre.relu().sum().item() / ROWS / DIM)


def test_gated_is_the_papers_two_paths():
    """With W_mag = exp(r) W_gate and b_mag, the same functions: eqs. 6 and 7; the loss is eq. 8 without its weights."""
    x, w, b_gate, r, b_mag = (
        draw(ROWS, DIM),
        unit(),
        draw(LATENTS, seed=4),
        draw(LATENTS, seed=5),
        draw(LATENTS, seed=6),
    )
    gate = x @ w.T + b_gate
    paper = (gate > 0) * (x @ (r.exp()[:, None] * w).T + b_mag).relu()
    own = {"scale": r, "shift": b_mag - r.exp() * b_gate, "price": torch.zeros((), dtype=torch.float64)}
    assert torch.allclose(Gated().code(gate, budget("3"), own), paper)
    atoms, bias = unit(7).requires_grad_(), draw(DIM, seed=8).requires_grad_()
    seen = Pass(x, x, gate, paper, atoms, bias, 0.0)
    k = max(1, round((paper != 0).sum().item() / ROWS))
    paid = math.exp(math.log((paper != 0).sum().item() / (ROWS * k))) * gate.relu().sum(1).mean() / DIM
    expected = paid + (x - gate.relu() @ atoms - bias).square().mean()
    found = Gated().penalty(seen, budget(str(k)), own)
    assert torch.allclose(found, expected)
    assert not found.requires_grad, "the auxiliary decoder is held fast"


def test_adaptive_k_is_top_k_if_the_probe_says_the_same_of_all():
    pre, m = draw(ROWS, LATENTS), AdaptiveK()
    for k in (1, 3, 8):
        own = {n: t.double() for n, t in m.begin(LATENTS, budget(str(k))).items()}
        same = find("features/top_k")().code(pre, budget(str(k)))
        assert torch.equal(m.code(pre, budget(str(k)), own), same)
        assert torch.equal(m.serve(pre, budget(str(k)), {**own, **m.settle(pre, budget(str(k)), own)}), same)


def test_adaptive_k_gives_more_to_whom_the_probe_points_and_stays_in_the_budget():
    pre, m = draw(ROWS, LATENTS), AdaptiveK()
    own = {"probe": draw(LATENTS, seed=2), "offset": torch.zeros((), dtype=torch.float64)}
    counts = m.keep(pre, budget("4"), own).sum(1)
    said = pre @ own["probe"]
    assert counts[said.argsort()].diff().min() >= 0 and 1 <= counts.min() < counts.max() <= 16
    assert 4 * ROWS - ROWS < counts.sum() <= 4 * ROWS
    for row, keep, count in zip(pre, m.keep(pre, budget("4"), own), counts, strict=True):
        assert set(keep.nonzero()[:, 0].tolist()) == set(row.topk(count).indices.tolist())


def test_top_afa_takes_what_comes_nearest_to_the_length_of_the_input():
    pre, m = draw(ROWS, LATENTS), TopAfa()
    own = {"length": draw(ROWS, seed=5).abs() * 2 + 0.1}
    keep = m.keep(pre, budget("20"), own)  # no budget to speak of: factor 1
    for row, chosen, length in zip(pre, keep, own["length"], strict=True):
        best = row.relu().sort(descending=True).values
        gaps = [abs(best[:j].norm() - length) for j in range(1, int((row > 0).sum()) + 1)]
        assert chosen.sum() == 1 + int(np.argmin(gaps))
    few = m.keep(pre, budget("2"), {"length": own["length"] * 5})
    assert few.sum() == 2 * ROWS


def test_top_afa_is_exact_on_orthonormal_atoms():
    z = draw(ROWS, DIM).abs() * (torch.rand(ROWS, DIM, generator=torch.Generator().manual_seed(0)) < 0.6)
    z[:, 0] = 1.0
    atoms = torch.linalg.qr(draw(DIM, DIM, seed=3)).Q
    x = z @ atoms
    own = TopAfa().look(3 * x, 3 * atoms)  # the scale of the data folded in
    assert torch.allclose(own["length"], x.norm(dim=1))
    assert torch.allclose(TopAfa().code(x @ atoms.T, budget("6"), own), z)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 2 / 3, 1.0])
def test_prox_is_the_minimiser_of_its_penalty(q):
    pre = draw(ROWS, LATENTS)
    z = Prox(q).code(pre, budget("6"))
    grid = np.linspace(0, 4, 400_001)
    for row, ours in zip(pre, z, strict=True):
        threshold = row.abs().sort(descending=True).values[6].item()
        landing = threshold * 2 * (1 - q) / (2 - q)  # tau = (2 - q) / (2 (1 - q)) (2 lambda (1 - q)) ^ (1 / (2 - q))
        price = threshold if q == 1 else landing ** (2 - q) / (2 * (1 - q))
        cost = price * np.where(grid > 0, grid**q if q else 1.0, 0.0)
        for v, said in zip(row.tolist(), ours.tolist(), strict=True):
            best = grid[np.argmin((grid - abs(v)) ** 2 / 2 + cost)]
            if abs(abs(v) - threshold) > 1e-4:  # at the threshold itself, zero and the landing are as good
                assert said == pytest.approx(math.copysign(best, v) if best else 0.0, abs=2e-5)


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_prox_has_the_slope_of_its_values(q):
    pre, h, threshold = draw(ROWS, LATENTS), 1e-6, torch.tensor(0.7, dtype=torch.float64)
    x = pre.clone().requires_grad_()
    m, above = Prox(q), pre.abs() > 0.701
    m.shrunk(x, threshold)[above].sum().backward()
    slope = (m.shrunk(pre + h, threshold) - m.shrunk(pre - h, threshold)) / (2 * h)
    assert torch.allclose(x.grad[above], slope[above], atol=1e-4)


def pursued(m, x, atoms, k):
    return m.code(torch.zeros(len(x), len(atoms), dtype=x.dtype), budget(str(k)), m.look(x, atoms))


@pytest.mark.parametrize("cls", [MatchingPursuit, GradientPursuit, OrthogonalMatchingPursuit])
def test_what_a_pursuit_leaves_never_grows(cls):
    x, atoms = draw(ROWS, DIM), unit()
    left = torch.stack([(x - pursued(cls(), x, atoms, k) @ atoms).norm(dim=1) for k in range(1, DIM)])
    assert (left.diff(dim=0) <= 1e-9).all()
    assert ((pursued(cls(), x, atoms, 4) != 0).sum(1) <= 4).all()


def test_matching_pursuit_in_loops():
    x, atoms = draw(ROWS, DIM), unit()
    z = torch.zeros(ROWS, LATENTS, dtype=torch.float64)
    for i in range(ROWS):
        rest = x[i].clone()
        for _ in range(4):
            j = int((atoms @ rest).argmax())
            c = max(0.0, (atoms[j] @ rest).item())
            z[i, j] += c
            rest -= c * atoms[j]
    assert torch.allclose(pursued(MatchingPursuit(), x, atoms, 4), z)
    assert torch.allclose(pursued(MatchingPursuit(), 5 * x, 5 * atoms, 4), z)  # the scale of the data folded in


def test_orthogonal_pursuit_fits_its_atoms_by_least_squares_and_gradient_pursuit_comes_near():
    x, atoms = draw(ROWS, DIM), unit()
    z = pursued(OrthogonalMatchingPursuit(), x, atoms, 3)
    for row, code in zip(x, z, strict=True):
        on = code != 0
        fit = np.linalg.lstsq(atoms[on].T.numpy(), row.numpy(), rcond=None)[0]
        assert np.allclose(code[on].numpy(), fit, atol=1e-4)
    by_steps = [(x - pursued(m, x, atoms, 3) @ atoms).square().mean() for m in (GradientPursuit(), MatchingPursuit())]
    assert (x - z @ atoms).square().mean() <= by_steps[0] + 1e-6 and by_steps[0] <= by_steps[1]


@pytest.mark.parametrize("cls", [MatchingPursuit, GradientPursuit, OrthogonalMatchingPursuit])
def test_a_pursuits_gradient_is_that_of_finite_differences(cls):
    x, atoms, way, h = draw(ROWS, DIM), unit(), draw(LATENTS, DIM, seed=9), 1e-6

    def loss(atoms):
        return (x - pursued(cls(), x, atoms, 3) @ atoms).square().sum()

    atoms.requires_grad_()
    loss(atoms).backward()
    ours, atoms = (atoms.grad * way).sum().item(), atoms.detach()
    assert ours == pytest.approx(((loss(atoms + h * way) - loss(atoms - h * way)) / (2 * h)).item(), rel=1e-4)


def test_a_pursuit_without_its_input_says_what_it_needs():
    with pytest.raises(ValueError, match="look"):
        MatchingPursuit().code(torch.zeros(2, 3), budget("1"))
    with pytest.raises(ValueError, match="q=2"):
        replace(Prox(), q=2.0)
