"""Models that learn to compute less: gradients, prices, schedules against formulas; full budgets, files, killed runs."""

import copy
import itertools
import math

import pytest
import torch
from tiny import build
from transformers import AutoModelForCausalLM

import fewer
from fewer.activations.deft import Deft
from fewer.activations.pro_sparse import ProSparse
from fewer.activations.q_sparse import QSparse
from fewer.activations.random import Random
from fewer.calibrate import Stats
from fewer.core.budget import budget
from fewer.core.spell import method_of
from fewer.models.activation import put_activation
from fewer.models.tap import Tap, activations
from fewer.recipe import apply
from fewer.train import Flat, Training, Tuned, next_token, train

HOW = Training(3, Flat(1e-2))


def words(seed=0):
    return [torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(seed + i)) for i in range(2)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(f, x, i, h=1e-6):
    step = torch.zeros_like(x)
    step.view(-1)[i] = h
    return ((f(x + step) - f(x - step)) / (2 * h)).item()


def test_what_q_sparse_hears_is_as_long_as_x_and_its_gradient_passes_to_all():
    x, w = draw(5, 8).requires_grad_(), draw(5, 8, seed=1)
    keep = QSparse().gate(x, budget("3"), Stats())
    heard = QSparse().heard(x, keep)
    (heard * w).sum().backward()
    by_hand = torch.zeros_like(x)
    for row in range(5):
        top = sorted(range(8), key=lambda i: -abs(x[row, i].item()))[:3]
        left = math.sqrt(sum(x[row, i].item() ** 2 for i in top))
        factor = math.sqrt(sum(v.item() ** 2 for v in x[row])) / left
        for i in top:
            by_hand[row, i] = x[row, i].item() * factor
        assert torch.allclose(x.grad[row], w[row] * factor, rtol=1e-5)  # lengths are float32
    assert torch.allclose(heard, by_hand, rtol=1e-5) and ((heard != 0).sum(-1) == 3).all()
    assert torch.allclose(heard.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


def test_other_gates_teach_what_is_kept_alone():
    x = draw(4, 6).requires_grad_()
    keep = Random().gate(x, budget("2"), Stats())
    Random().heard(x, keep).sum().backward()
    assert torch.equal(x.grad, keep.to(x))


def test_q_sparse_of_zeros_is_zeros():
    x = torch.zeros(2, 4, requires_grad=True)
    QSparse().heard(x, QSparse().gate(x, budget("1"), Stats())).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("m", [ProSparse(peak=2.0), Deft(weight=2.0, beta=3.0)], ids=lambda m: m.name)
def test_prices_have_the_gradient_of_their_formula(m):
    h = draw(3, 4).requires_grad_()

    def price(h):
        if isinstance(m, ProSparse):
            return 2.0 * h.abs().mean()
        return 2.0 * ((1 - (-6 * h.abs()).exp()) / (1 + (-6 * h.abs()).exp())).mean()

    said = m.penalty(h, 1.0)
    said.backward()
    assert said.item() == pytest.approx(price(h).item(), rel=1e-5)
    for i in range(h.numel()):
        assert h.grad.view(-1)[i].item() == pytest.approx(slope(price, h.detach(), i), rel=1e-4, abs=1e-7)


def test_the_factor_climbs_from_a_constant_first_stage_without_jumps():
    m = ProSparse(peak=0.9, stages=3, growth=3.0)
    at = [m.factor(i / 300) for i in range(301)]
    assert (
        all(a == pytest.approx(0.1) for a in at[:100])
        and at[200] == pytest.approx(0.3)
        and at[300] == pytest.approx(0.9)
    )
    assert all(-1e-12 < b - a < 0.01 for a, b in itertools.pairwise(at))
    assert at[150] == pytest.approx(0.2) and at[250] == pytest.approx(0.6)  # halfway along a sine


def learn(tmp_path, text, family="llama", model=None, how=HOW, told=None, name="out"):
    model = model if model is not None else build(family)
    method, share = text.split()
    job = Tuned(model, tmp_path / name, apply, "mlp", how, weights=True, told=told)
    job.fit(method_of(method, "activations"), budget(share), words())
    return AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()


def test_a_full_budget_is_plain_fine_tuning(tmp_path):
    dense = build("llama")
    learnt = learn(tmp_path, "activations/q_sparse 100%", model=dense)
    twin = copy.deepcopy(dense).requires_grad_(True)
    parameters = dict(twin.named_parameters())
    train(parameters, lambda batch, _: next_token(twin, batch), words(), HOW)
    for name, p in learnt.named_parameters():
        assert torch.equal(p, parameters[name]), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("text", ["activations/q_sparse 50%", "activations/cats 50%", "activations/pro_sparse 100%"])
def test_what_was_learnt_opens_as_an_ordinary_model_that_loses_less_so(tmp_path, text, family):
    dense = build(family)
    learnt = learn(tmp_path, text, model=dense)
    losses = []
    for model in (dense, learnt):
        with torch.no_grad(), fewer.apply(model, f"{text} @ mlp"):
            losses.append(sum(next_token(model, batch).item() for batch in words()))
    assert losses[1] < losses[0]


def test_a_price_makes_hidden_neurons_smaller(tmp_path):
    """Beside the same training without one; tiny steps, so that only the price differs."""
    size = []
    for text in ("activations/pro_sparse(peak=0.0) 100%", "activations/pro_sparse(peak=50.0) 100%"):
        learnt = learn(tmp_path, text, name=f"out{len(size)}")
        taps = [Tap(f"model.layers.{i}.mlp.down_proj", hears=True) for i in range(2)]
        size.append(activations(learnt, taps, words()[0]).abs().mean().item())
    assert size[1] < 0.9 * size[0]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    def stop(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    whole = learn(tmp_path, "activations/q_sparse 50%", name="whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, "activations/q_sparse 50%", told=stop, name="cut")
    again = learn(tmp_path, "activations/q_sparse 50%", name="cut")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_another_activation_is_saved_with_the_model(tmp_path, family):
    model, x = build(family), draw(4)
    put_activation(model, "relu2")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    acts = [m for m in again.modules() if type(m).__name__ == "ReLUSquaredActivation"]
    assert len(acts) == 2 and torch.equal(acts[0](x), x.clamp(min=0) ** 2)
    with torch.no_grad():
        assert torch.equal(model(words()[0]).logits, again(words()[0]).logits)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="'relu3': transformers knows"):
        put_activation(build("llama"), "relu3")
