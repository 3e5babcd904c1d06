"""Dictionaries learnt through the model: what its predictions need is found, nothing else moves, and a kill changes nothing."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import build
from torch import nn

from fewer import kernels
from fewer.core import budget, find
from fewer.dictionaries import spliced
from fewer.features import Dictionary
from fewer.features.batch_top_k import BatchTopK
from fewer.features.top_k import TopK
from fewer.measure import kl
from fewer.models import Tap, find_taps, tapped
from fewer.train import Ce, Downstream, Kl, Lesson, Live, Pupil, Windows, learn, learn_through
from fewer.train.end_to_end import _loss, begin_from
from fewer.train.known import Known
from fewer.train.one import One
from fewer.train.rows import RowAdam, together

SITE = "model.layers.0"
IDS = torch.randint(3, 99, (24, 8), generator=torch.Generator().manual_seed(0))
TEN = Lesson(10, rate=1e-2, dead_after=100, aux=0.0)


class Planted(nn.Module):
    """Half of what the site says is loud and says nothing of the next token; the quiet half says all of it."""

    def __init__(self):
        super().__init__()
        make = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(40, 16)
        self.embed.weight.data = torch.randn(40, 16, generator=make) * torch.tensor([10.0] * 8 + [1.0] * 8)
        self.site, self.head = nn.Identity(), nn.Linear(16, 40, bias=False)
        self.head.weight.data = torch.randn(40, 16, generator=make) * torch.tensor([0.0] * 8 + [1.0] * 8)

    def forward(self, input_ids, use_cache=False):
        return SimpleNamespace(logits=self.head(self.site(self.embed(input_ids))))


def identity(dim, site):
    """x = relu(x) - relu(-x): every number by two latents."""
    both = torch.cat([torch.eye(dim), -torch.eye(dim)])
    return Dictionary(
        TopK(), budget(str(2 * dim)), both, torch.zeros(2 * dim), both, torch.zeros(dim), reads=(site,), writes=(site,)
    )


def one_of(model, pupil, known=None, **lesson):
    (tap,) = find_taps(model, pupil.reads)
    with torch.no_grad(), tapped(model, [tap]) as heard:
        model(input_ids=IDS)
        x = heard[tap].flatten(0, 1)
    return One(pupil.at(pupil.reads), known or Known.of(x, {pupil.reads[0]: x.shape[1]}), Lesson(**lesson), 64), tap


def test_what_predictions_need_is_learnt_and_what_is_loud_is_not():
    model, pupil = Planted(), Pupil(TopK(), budget("3"), 24, 0, ("site",))
    ids = torch.randint(0, 40, (64, 16), generator=torch.Generator().manual_seed(1))
    lesson = Lesson(120, rate=1e-2)
    (local,) = learn([pupil], Live(model, [Tap("site")], ids, 128), lesson, {"site": 16})
    through = learn_through(pupil, model, Windows(ids, 8), lesson=lesson)
    costs, missed = [], []
    for d in (local, through):
        with spliced(model, d):
            costs.append(kl(model, Planted(), ids).value)
        x = model.embed(ids).flatten(0, 1).detach()
        missed.append(((d(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item())
    assert costs[1] < costs[0] / 4 and missed[1] > 2 * missed[0]


def test_of_the_model_nothing_moves_and_no_gradient_stays():
    model = build("llama").requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = learn_through(
        Pupil(TopK(), budget("4"), 40, 0, (SITE,)), model, Windows(IDS, 8), lesson=Lesson(1, rate=1e-9)
    )
    after = learn_through(Pupil(TopK(), budget("4"), 40, 0, (SITE,)), model, Windows(IDS, 8), lesson=TEN)
    assert not torch.allclose(first.decoder, after.decoder)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None and p.requires_grad, name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_identity_changes_nothing():
    model, d = build("llama"), identity(32, SITE)
    with torch.no_grad():
        own = model(IDS).logits
        with spliced(model, d):
            assert torch.allclose(model(IDS).logits, own, atol=1e-5)
    one, tap = one_of(model, Pupil(TopK(), budget("64"), 64, 0, (SITE,)))
    begin_from(one, d)
    found = _loss(one, model, [tap], {}, Kl(), IDS, torch.ones_like(IDS, dtype=torch.bool), 0.0)
    assert abs(found.item()) < 1e-6


@pytest.mark.parametrize("leave", [frozenset(), frozenset(range(3, 30))], ids=["all", "some"])
@pytest.mark.parametrize(
    "aim", [Kl(), Ce(), Downstream(("model.layers.1",), weight=0.5)], ids=lambda a: type(a).__name__
)
def test_gradients_are_those_of_the_formula_in_float64(aim, leave):
    model, k = build("llama"), 4
    one, tap = one_of(model, Pupil(TopK(), budget(str(k)), 40, 0, (SITE,)), aux=0.0)
    RowAdam(one.tensors, one.rows, ["decoder"])
    real = ~torch.isin(IDS, torch.tensor(sorted(leave), dtype=torch.long))
    later = dict(zip(aim.sites, find_taps(model, aim.sites), strict=True))
    ours = _loss(one, model, [tap], later, aim, IDS, real, 0.0)
    ours.backward()

    wide, t = build("llama").double(), {n: x.detach().double().requires_grad_() for n, x in one.tensors.items()}
    mean, scale, heard = one.known.mean.double(), one.known.scale.double(), []

    def put(module, args, out):
        x = (out - mean) / scale
        pre = x @ t["encoder"].T + t["encoder_bias"]
        keep = torch.zeros_like(pre).scatter(-1, pre.topk(k).indices, 1.0)
        said = (pre.relu() * keep) @ t["decoder"] + t["decoder_bias"]
        return torch.where(real[..., None], said * scale + mean, out)

    late = wide.model.layers[1].register_forward_hook(lambda m, a, out: heard.append(out))
    own = wide(IDS).logits
    hook = wide.model.layers[0].register_forward_hook(put)
    logits = wide(IDS).logits
    hook.remove()
    late.remove()
    p, q = (F.log_softmax(x[:, :-1], -1) for x in (own, logits))
    truth = (p.exp() * (p - q)).sum(-1).mean()
    if aim == Ce():
        truth = -q.gather(-1, IDS[:, 1:, None]).mean()
    if isinstance(aim, Downstream):
        y, y_hat = (h[real] for h in heard)
        truth = truth + 0.5 * (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()
    truth.backward()
    assert ours.item() == pytest.approx(truth.item(), rel=1e-4)
    for name in ("encoder", "decoder"):
        grad = kernels.collect(*together(one.tensors[name].owed)).double()
        assert torch.allclose(grad, t[name].grad, atol=1e-5) and grad.any(), name
    for name in ("encoder_bias", "decoder_bias"):
        assert torch.allclose(one.tensors[name].grad.double(), t[name].grad, atol=1e-5), name


@pytest.mark.parametrize("name", ["batch_top_k", "jump_relu", "gated"])
def test_budgets_and_penalties_hold_through_the_model(name):
    ids = torch.randint(3, 99, (64, 16), generator=torch.Generator().manual_seed(1))
    model, pupil = build("llama"), Pupil(find(f"features/{name}")(), budget("4"), 40, 0, ("layers.0",))
    d = learn_through(pupil, model, Windows(ids, 8), lesson=Lesson(60, rate=1e-2, aux=0.0))
    (tap,) = find_taps(model, d.reads)
    with torch.no_grad(), tapped(model, [tap]) as heard:
        model(input_ids=ids)
        l0 = (d.encode(heard[tap].flatten(0, 1)).value != 0).sum(1).float().mean().item()
    assert l0 == pytest.approx(
        4, rel=0.06 if name == "batch_top_k" else 0.4
    )  # a price takes some hundred steps to settle


def test_a_transcoder_is_learnt_through_the_model():
    model, pupil = build("llama"), Pupil(TopK(), budget("4"), 40, 0, ("layers.0.mlp:in",), ("layers.0.mlp",))
    costs = []
    for steps in (1, 40):
        d = learn_through(pupil, model, Windows(IDS, 8), lesson=Lesson(steps, rate=1e-2, skip=True))
        assert d.reads == ("model.layers.0.mlp:in",) and d.writes == ("model.layers.0.mlp",)
        with spliced(model, d):
            costs.append(kl(model, build("llama"), IDS).value)
    assert costs[1] < costs[0] / 2


def test_a_start_is_taken_as_it_is():
    model, pupil = build("llama"), Pupil(BatchTopK(), budget("4"), 40, 0, (SITE,))
    (local,) = learn([pupil], Live(model, find_taps(model, [SITE]), IDS, 48), TEN, {SITE: 32})
    one, _ = one_of(model, pupil)
    begin_from(one, local)
    again = one.done(one.known.seen(torch.randn(200, 32)), {}, [])
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    z, z2 = (d.pre(x) @ d.decoder for d in (local, again))
    assert torch.allclose(z, z2, atol=1e-3) and torch.allclose(local.decoder_bias, again.decoder_bias, atol=1e-4)
    same = learn_through(pupil, model, Windows(IDS, 8), lesson=Lesson(1, rate=1e-12), start=local)
    assert torch.allclose(same.pre(x) @ same.decoder, z, atol=1e-3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["batch_top_k", "gated"])
def test_a_killed_run_goes_on_to_the_bit(name, tmp_path):
    pupil, model = Pupil(find(f"features/{name}")(), budget("4"), 40, 0, (SITE,)), build("llama")
    lesson = Lesson(8, rate=1e-2, dead_after=100, save_after=0.0)
    whole = learn_through(pupil, model, Windows(IDS, 8), lesson=lesson, out=tmp_path / "whole")

    def die(row):
        if row["step"] == 5:
            raise Killed

    told = []
    with pytest.raises(Killed):
        learn_through(pupil, model, Windows(IDS, 8), lesson=lesson, out=tmp_path / "two", told=die)
    halves = learn_through(pupil, model, Windows(IDS, 8), lesson=lesson, out=tmp_path / "two", told=told.append)
    assert told[0]["step"] == 6
    assert all(torch.equal(t, halves.tensors()[key]) for key, t in whole.tensors().items())
    assert all(torch.equal(t, halves.own[key]) for key, t in whole.own.items())


def test_windows_are_a_function_of_their_number():
    source = Windows(IDS, 5, seed=3)
    every = [batch for batch, _ in zip(source, range(9), strict=False)]
    assert torch.equal(next(source.since(7)), every[7])
    assert sorted(torch.cat(every[:4]).tolist()) != sorted(
        torch.cat(every[4:8]).tolist()
    )  # 4 of 24 wait for another pass
    assert all((row == IDS).all(1).any() for row in torch.cat(every))


def test_what_does_not_fit_is_a_sentence():
    model, four = build("llama"), budget("4")
    with pytest.raises(ValueError, match="reads no site"):
        learn_through(Pupil(TopK(), four, 40), model, Windows(IDS, 8))
    with pytest.raises(ValueError, match="no module 'layers.9'"):
        learn_through(Pupil(TopK(), four, 40, 0, ("layers.9",)), model, Windows(IDS, 8))
    with pytest.raises(ValueError, match="it starts as features/top_k"):
        learn_through(Pupil(TopK(), four, 40, 0, (SITE,)), model, Windows(IDS, 8), start=identity(32, SITE))
    with pytest.raises(ValueError, match="is written before model.layers.1 is heard"):
        learn_through(Pupil(TopK(), four, 40, 0, ("layers.1",), ("layers.0",)), model, Windows(IDS, 8), lesson=TEN)
    with pytest.raises(ValueError, match="24 windows of 8 tokens: give at least 30"):
        Windows(IDS, 30)
    with pytest.raises(ValueError, match="names no sites"):
        Downstream(())
