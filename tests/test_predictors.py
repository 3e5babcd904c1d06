"""Predictors of hidden neurons: what they are taught, what they find, and what a model computes by them."""

import pytest
import torch
from test_gates_learnt import words
from tiny import build

import fewer
from fewer.activations.deja_vu import DejaVu
from fewer.activations.shadow import Shadow
from fewer.calibrate import Stats
from fewer.calibrate.held import read_parts
from fewer.core.budget import budget
from fewer.core.spell import spell
from fewer.train import Flat, Predicted, Training, next_token, recalls
from fewer.train.predicted import hear, mlps_at

HOW = Training(20, Flat(1e-2))
METHODS = [DejaVu(rank=16), Shadow(rank=16)]


def learn(tmp_path, method, family="llama", how=HOW, told=None, name="p"):
    model = build(family)
    job = Predicted(model, tmp_path / f"{name}.safetensors", "mlp", how, told)
    return model, job.fit(method, budget("25%"), words())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "opt"])
def test_what_is_heard_is_what_the_mlp_hears_and_its_neurons(family):
    model, ids, said = build(family), words()[0], {}
    mlps = mlps_at(model, "mlp")
    heard = hear(model, mlps, ids, DejaVu())
    hooks = [
        m.reader.module.register_forward_hook(lambda mod, a, y, n=m.reader.name: said.update({n: (a[0], y)}))
        for m in mlps
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    for m in mlps:
        x, h = heard[m.reader.name]
        assert torch.allclose(h, said[m.reader.name][0].abs().flatten(0, -2))
        if family == "opt":  # relu(W x + b)
            assert torch.allclose((x @ m.writers[0].read().T + m.writers[0].bias).relu(), h, atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters())


def test_slopes_are_those_of_the_loss():
    """h dL/dh against finite differences of the whole model in float64."""
    model, ids = build("gpt2").double(), words()[0]
    mlps = mlps_at(model, "mlp")
    found = hear(model, mlps, ids, Shadow())
    for number, place in ((0, (1, 3, 7)), (1, (0, 5, 11))):
        mlp = mlps[number]
        row, token, neuron = place

        def loss(step, mlp=mlp, row=row, token=token, neuron=neuron):
            def move(_, args):
                h = args[0].clone()
                h[row, token, neuron] *= 1 + step
                return (h,)

            hook = mlp.reader.module.register_forward_pre_hook(move)
            with torch.no_grad():
                said = model(ids).logits
            hook.remove()
            return torch.nn.functional.cross_entropy(said[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()

        truth = abs(loss(1e-5) - loss(-1e-5)) / 2e-5  # of h (1 + step), the slope by step is h dL/dh
        worth = found[mlp.reader.name][1].unflatten(0, (2, 12))[row, token, neuron].item()
        assert worth == pytest.approx(truth, rel=1e-3, abs=1e-8)  # the loss is taken in float32


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_learnt_one_finds_more_than_chance(tmp_path, method):
    model, learnt = learn(tmp_path, method)
    found = recalls(model, "mlp", words()[0], learnt, budget("25%"))
    mean = {kind: sum(s.value for s in scores) / len(scores) for kind, scores in found.items()}
    assert mean["predicted"] > mean["random"] + 0.1 and mean["random"] == pytest.approx(0.25, abs=0.06)


def test_what_all_share_is_kept_once(tmp_path):
    _, learnt = learn(tmp_path, METHODS[1], how=Training(1, Flat(1e-3)))
    every = read_parts(learnt.file)
    assert set(every["all"]) == {"shared_reads"} and len(every) == 3
    a, b = (learnt.at(name).parts for name in every if name != "all")
    assert torch.equal(a["shared_reads"], b["shared_reads"]) and not torch.equal(a["says"], b["says"])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_computes_who_is_named(tmp_path, method, family):
    """Against hooks that set all others to zero."""
    model, learnt = learn(tmp_path, method, family, Training(2, Flat(1e-2)))
    ids, mlps = words()[0], mlps_at(model, "mlp")
    with torch.no_grad(), fewer.apply(model, f"{spell(learnt)} 25% @ mlp") as applied:
        said = model(ids).logits
    xs, hooks = {}, []
    for m in mlps:
        name = m.reader.name
        keep = m.writers[0].module.register_forward_pre_hook(lambda _, args, n=name: xs.update({n: args[0]}))
        hooks.append(keep)

        def only(_, args, name=name):
            x = xs[mlps[0].reader.name if learnt.first else name]
            score = learnt.at(name).score(x, Stats())
            floor = score.sort(-1, descending=True).values[..., 11:12]  # a quarter of 48
            return (args[0] * (score >= floor),)

        hooks.append(m.reader.module.register_forward_pre_hook(only))
    with torch.no_grad():
        truth = model(ids).logits
    for hook in hooks:
        hook.remove()
    assert torch.allclose(said, truth, atol=1e-5)
    assert [c.kept for c in applied.changes] == pytest.approx([0.25] * len(mlps))
    with torch.no_grad(), fewer.apply(model, f"{spell(learnt)} 100% @ mlp"):
        assert torch.equal(model(ids).logits, build(family)(ids).logits)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    def stop(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    how = Training(3, Flat(1e-2))
    _, whole = learn(tmp_path, METHODS[1], how=how, name="whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, METHODS[1], how=how, told=stop, name="cut")
    _, again = learn(tmp_path, METHODS[1], how=how, name="cut")
    assert read_parts(whole.file) == read_parts(again.file)


def test_what_knows_nothing_is_refused(tmp_path):
    model, learnt = learn(tmp_path, METHODS[0], how=Training(1, Flat(1e-3)))
    with (
        pytest.raises(ValueError, match=r"has learnt nothing yet: `fewer train activations/deja_vu"),
        fewer.apply(model, "activations/deja_vu 25% @ mlp"),
    ):
        pass
    with pytest.raises(ValueError, match="holds nothing of"), fewer.apply(build("gpt2"), f"{spell(learnt)} 25% @ mlp"):
        pass
    with pytest.raises(ValueError, match="there is no MLP at 'q'"):
        mlps_at(model, "q")
    assert torch.isfinite(next_token(model, words()[0]))
