"""A step of a dictionary, by every backend: the same as autograd through dense matrices; who is found is who is largest."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any @triton.jit is met

import fewer.kernels as kernels
from fewer.core import budget
from fewer.features import coded, missed, spoken
from fewer.features._dictionary import Dictionary
from fewer.features.abs_top_k import AbsTopK
from fewer.features.top_k import TopK
from fewer.layout import Codes
from fewer.train.known import Known
from fewer.train.one import One
from fewer.train.pupil import Lesson, Pupil
from fewer.train.rows import RowAdam

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["ref", "gpu"] if DEVICE == "cuda" else ["ref", "cpu", "gpu"]


def normal(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size, k", [(300, 7), (8200, 3), (9001, 130)])
def test_encode_finds_the_largest_of_random_numbers(backend, size, k):
    x, w, b = normal(3, 24), normal(size, 24, seed=1), normal(size, seed=2)
    pre = x.double() @ w.double().mT + b.double()
    for by_size in (False, True):
        with kernels.using(backend):
            index, value = kernels.encode(x, w, b, k, by_size)
        best = (pre.abs() if by_size else pre).topk(k, dim=1)[1].sort(1)[0]
        assert torch.equal(index, best)
        assert torch.allclose(value.double(), pre.gather(1, best), atol=1e-4)


def test_rows_of_very_different_lengths_do_not_mislead_the_threshold():
    """Each row's threshold begins at that of the row before: here a million times too high, then too low, then below 0."""
    x = normal(6, 16) * torch.tensor([[1e-3], [1e3], [1e-3], [0.0], [1e3], [1.0]])
    w = normal(4000, 16, seed=1)
    b = torch.full((4000,), -1.0)
    index, value = kernels.load("encode", "cpu")(x, w, b, 5, False)
    pre = torch.addmm(b, x, w.mT)
    for r in (0, 1, 2, 4, 5):
        assert torch.equal(index[r], pre[r].topk(5)[1].sort()[0]), r
    assert index[3].tolist() == [0, 1, 2, 3, 4] and torch.equal(value[3], b[:5])  # all alike


def test_more_or_less_than_all_are_kept():
    x, w, b = normal(2, 4), normal(3, 4, seed=1), normal(3, seed=2)
    index, value = kernels.encode(x, w, b, 9)
    assert index.tolist() == [[0, 1, 2]] * 2 and torch.allclose(value, x @ w.mT + b)


def dense_gradients(x, y, t, k):
    """The textbook in float64."""
    w, b, d, c = (
        t[name].detach().double().requires_grad_() for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")
    )
    pre = x.double() @ w.mT + b
    z = pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1)[1], 1.0)
    loss = (y.double() - z @ d - c).square().mean()
    loss.backward()
    return loss.item(), {"encoder": w.grad, "encoder_bias": b.grad, "decoder": d.grad, "decoder_bias": c.grad}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_moves_what_dense_autograd_would(backend):
    """k is more than the positive ones of many rows. One step of Adam from nothing is the sign of the gradient, about."""
    known = Known(torch.zeros(20, device=DEVICE), torch.ones(20, device=DEVICE), {"": slice(0, 20)})
    one = One(Pupil(TopK(), budget("9"), 40).at([""]), known, Lesson(steps=1000), 6)
    one.tensors["encoder_bias"].data -= 0.8
    x, t = normal(6, 20), one.tensors
    optimizer = RowAdam(t, one.rows, ["decoder"])
    expected, gradients = dense_gradients(x, x, t, 9)
    with kernels.using(backend):
        loss = one.loss(x, 0.5)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        for name in ("encoder_bias", "decoder_bias"):
            assert torch.allclose(t[name].grad.double(), gradients[name], atol=1e-7), name
        for name in one.rows:
            ((codes, y),) = t[name].owed
            assert torch.allclose(kernels.collect(codes, y).double(), gradients[name], atol=1e-7), name
        before = {name: t[name].detach().clone() for name in gradients}
        optimizer.step()
    used = gradients["encoder"].abs() > 1e-5
    moved = (t["encoder"] - before["encoder"])[used]
    assert torch.allclose(moved, -1e-3 * gradients["encoder"][used].sign().float(), rtol=0.01, atol=1e-6)
    assert torch.allclose(t["decoder"].norm(dim=1), torch.ones(40, device=DEVICE), atol=1e-5)
    assert (t["decoder"] != before["decoder"]).any()


def test_the_order_is_shared_only_among_the_same_places():
    """An index that was changed, or lies where a forgotten one lay, is sorted anew."""
    by_atom = pytest.importorskip("fewer.kernels.collect.gpu").by_atom
    index = torch.tensor([[0, 1], [1, 2]], device=DEVICE)
    kernels.share(index)
    first = by_atom(Codes(index, normal(2, 2), 3))
    again = by_atom(Codes(index, normal(2, 2, seed=1), 3))
    assert first[1] is again[1] and first[0].tolist() == [0, 1, 3, 4]
    index[0, 0] = 2
    assert by_atom(Codes(index, normal(2, 2), 3))[0].tolist() == [0, 0, 2, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_prefixes_and_their_gradients_are_those_of_one_decode_for_each(backend):
    index = torch.tensor([[3, 1, 4], [1, 5, 0]], device=DEVICE)
    value, atoms, y = (t.requires_grad_() for t in (normal(2, 3), normal(6, 10, seed=1), normal(2, 10, seed=2)))
    weight = torch.tensor([0.5, 0.3, 0.2], device=DEVICE)
    with kernels.using(backend):
        parts = [(w.item(), Codes(index[:, j : j + 1], value[:, j : j + 1], 6)) for j, w in enumerate(weight)]
        loss, left = missed(Codes(index, value, 6), parts, atoms, y, y.new_zeros(10))
        loss.backward()
    found = [t.grad.clone() for t in (value, atoms, y)]
    v, a, target = (t.detach().double().requires_grad_() for t in (value, atoms, y))
    truth = sum(
        weight[j].double() * (target - torch.einsum("rk,rkd->rd", v[:, : j + 1], a[index[:, : j + 1]])).square().mean()
        for j in range(3)
    )
    truth.backward()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    assert torch.allclose(left.double(), target - torch.einsum("rk,rkd->rd", v, a[index]), atol=1e-5)
    for got, want in zip(found, (v.grad, a.grad, target.grad), strict=True):
        assert torch.allclose(got.double(), want, atol=1e-6)


def test_a_plain_budget_and_any_other_way_choose_the_same():
    """`50%` of a row goes to the kernel, `50% of 1x2` does not; a dictionary says the same as its rule."""
    x, w, b = normal(5, 8), normal(12, 8, seed=1), normal(12, seed=2)
    for rule in (TopK(), AbsTopK()):
        codes, _ = coded(rule, budget("4"), x, w, b, {})
        assert torch.allclose(codes.dense(), rule.code(x @ w.mT + b, budget("4")), atol=1e-5)
        d = Dictionary(rule, budget("4"), w, b, w, torch.zeros(8, device=DEVICE))
        assert torch.allclose(d.encode(x).dense(), rule.code(x @ w.mT + b, budget("4")), atol=1e-5)
        units, _ = coded(rule, budget("4 of 1x2"), x, w, b, {})
        assert torch.allclose(units.dense(), rule.code(x @ w.mT + b, budget("4 of 1x2")), atol=1e-5)
    assert torch.allclose(spoken(codes, w), codes.dense() @ w, atol=1e-5)


def test_a_rounded_copy_is_not_used_once_its_matrix_was_written_to():
    from fewer.features._sparse import narrowed

    w = normal(3, 4)
    with torch.autocast(DEVICE, torch.bfloat16):
        w.small = (
            torch.zeros(3, 4, dtype=torch.bfloat16, device=DEVICE),
            w._version,
        )  # not what w says, to tell them apart
        assert not narrowed(w).any()
        w.mul_(2)
        assert torch.equal(narrowed(w), w.bfloat16())
    assert narrowed(w) is w


def test_nobody_looks_for_the_dead_before_one_can_have_died():
    known = Known(torch.zeros(4, device=DEVICE), torch.ones(4, device=DEVICE), {"": slice(0, 4)})
    one = One(Pupil(TopK(), budget("1"), 30).at([""]), known, Lesson(dead_after=25), 10)
    seen = []
    for _ in range(4):
        one.loss(normal(10, 4), 0.5)
        seen.append((one.spare, int(one.tensors["silent"].max())))
    assert seen[0] == (15, 10) and seen[1] == (5, 20)  # looked once, and knows that 15 tokens more cannot kill
    assert seen[2][1] == 30 and seen[2][0] < 0  # some are dead now: looked at in each step
