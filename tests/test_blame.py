"""Gradients found block by block are those that autograd finds on the whole model at once."""

import contextlib

import pytest
import torch
from tiny import batch, build
from torch import nn

from fewer.calibrate import Crew, GradMean, GradSquares, HessianGradient
from fewer.models import lazy, materialise, open_lazily, release, sites
from fewer.models.loss import next_token
from fewer.recipe.blame import Blame
from fewer.recipe.walk import Walk

KINDS = (GradMean, GradSquares)


def data(name="llama", rows=3, length=10):
    return next(iter(batch(name, rows=rows, length=length).values()))


def crossed(answer, ids):
    """Cross entropy of the next token, written out."""
    logs = answer[:, :-1].double().log_softmax(-1)
    return -logs.gather(-1, ids[:, 1:, None]).mean()


def exact(name, **options):
    """In float64; experts in a loop, because torch multiplies them in groups in float32 only."""
    model = build(name, **options).double()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def found(model, x, where, kinds=KINDS, loss=None, hold=None, **options):
    """What `Blame` says of every site, stop by stop."""
    places = sites(model, where)
    walk = Walk(model, x, loss=loss, **({"hold": hold} if hold else {}), **options).with_rest(places)
    blame = Blame(walk, [(s, kinds) for s in places])
    out = {}
    with walk:
        for number in range(len(walk.blocks)):
            here = walk.within(number, places)
            with walk.on(number), walk.near(number):
                out |= blame.at(number, [(s, kinds) for s in here]) if here else {}
            blame.forget(number)
    return places, out


def cut(site, whole):
    g = whole if site.index is None else whole[site.index]
    g = g.mT if site.transposed else g
    return g if site.part is None else g[site.part]


def truth(model, x, places, loss=crossed):
    """One gradient a window, by autograd on the whole model."""
    parameters = list({id(s.tensor): s.tensor for s in places}.values())
    for p in parameters:
        p.requires_grad_(True)
    rows = []
    for window in x.split(1):
        grads = torch.autograd.grad(loss(model(window).logits, window), parameters)
        by = {id(p): g for p, g in zip(parameters, grads, strict=True)}
        rows.append({s.name: cut(s, by[id(s.tensor)]) for s in places})
    for p in parameters:
        p.requires_grad_(False)
    return {s.name: torch.stack([row[s.name] for row in rows]) for s in places}


@pytest.mark.parametrize(
    "name, where",
    [
        ("llama", "*"),
        ("llama", "*,embed,head"),
        ("llama", "mlp,!*.0.*"),
        ("llama_tied", "*,embed"),  # one weight, read by the embedding and by the head
        ("gpt2", "*"),  # transposed, fused
        ("gpt2", "*,embed"),
        ("gpt_neox", "*"),  # fused head by head
        ("phi3", "*"),
        ("gemma2", "*"),
        ("mixtral", "*"),  # stacked experts
        ("gpt_oss", "*"),
        ("qwen2_moe", "*"),
    ],
)
def test_gradients_are_autograds_on_the_whole_model(name, where):
    model, x = exact(name), data(name)
    places, seen = found(model, x, where)
    expected = truth(model, x, places)
    for site in places:
        one, stats = expected[site.name], seen[site.name]
        scale = one.abs().max().item() + 1e-12
        torch.testing.assert_close(stats[GradMean].value.double(), one.mean(0), rtol=1e-4, atol=1e-6 * scale)
        torch.testing.assert_close(
            stats[GradSquares].value.double(), one.square().mean(0), rtol=1e-4, atol=1e-6 * scale**2
        )
        assert stats[GradMean].windows == len(x)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any("forward" in vars(m) for m in model.modules())


def test_single_precision_is_close_and_statistics_are_float32():
    model, x = build("llama"), data()
    places, seen = found(model, x, "*")
    expected = truth(model, x, places)
    for site in places:
        value = seen[site.name][GradMean].value
        assert value.dtype == torch.float32
        off = (value - expected[site.name].mean(0)).norm() / expected[site.name].mean(0).norm()
        assert off < 1e-5


def classes(answer, pictures):
    """A loss for a model of pictures: towards class 1."""
    return nn.functional.cross_entropy(answer, torch.ones(len(answer), dtype=torch.long))


def test_another_model_needs_a_loss_of_its_own():
    model, x = build("vit").double(), data("vit").double()
    with pytest.raises(ValueError, match="ViTForImageClassification is no causal language model"):
        found(model, x, "*")
    places, seen = found(model, x, "*", loss=classes)
    expected = truth(model, x, places, classes)
    for site in places:
        torch.testing.assert_close(
            seen[site.name][GradMean].value.double(), expected[site.name].mean(0), rtol=1e-4, atol=1e-8
        )


def test_a_model_without_blocks_has_gradients_too():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double(), torch.randn(5, 4).double()
    places, seen = found(net, x, "*", loss=lambda y, x: y.square().mean())
    for window in x.split(1):
        net(window).square().mean().backward()
    for site in places:
        torch.testing.assert_close(seen[site.name][GradMean].value.double(), site.tensor.grad / 5, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name, where", [("llama", "*"), ("llama_tied", "mlp,embed"), ("gpt2", "*"), ("mixtral", "*")])
def test_hessian_gradient_products_are_autograds_over_all_maps_together(name, where):
    model, x = exact(name, attention="eager"), data(name)
    places, seen = found(model, x, where, (HessianGradient,))
    parameters = list({id(s.tensor): s.tensor for s in places}.values())
    for p in parameters:
        p.requires_grad_(True)
    losses = [crossed(model(window).logits, window) for window in x.split(1)]
    grads = torch.autograd.grad(torch.stack(losses).mean(), parameters, create_graph=True)
    slope = sum((g * g.detach()).sum() for g in grads)
    by = {id(p): h for p, h in zip(parameters, torch.autograd.grad(slope, parameters), strict=True)}
    for site in places:
        expected = cut(site, by[id(site.tensor)])
        value = seen[site.name][HessianGradient].value.double()
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_only_the_maps_that_ask_move_in_a_hessian_gradient_product():
    """H has rows and columns for the sites alone: parts of a fused map that do not ask stand still."""
    model, x = build("gpt2", attention="eager").double(), data("gpt2")
    places, seen = found(model, x, "q", (HessianGradient,))
    whole = {id(s.tensor): s.tensor.requires_grad_() for s in places}
    grads = torch.autograd.grad(
        torch.stack([crossed(model(w).logits, w) for w in x.split(1)]).mean(), list(whole.values()), create_graph=True
    )
    by = {key: g for key, g in zip(whole, grads, strict=True)}
    slope = sum((cut(s, by[id(s.tensor)]) * cut(s, by[id(s.tensor)]).detach()).sum() for s in places)
    second = dict(zip(whole, torch.autograd.grad(slope, list(whole.values())), strict=True))
    for site in places:
        expected = cut(site, second[id(site.tensor)])
        torch.testing.assert_close(
            seen[site.name][HessianGradient].value.double(),
            expected,
            rtol=1e-3,
            atol=1e-5 * expected.abs().max().item(),
        )


def test_the_loss_is_the_mean_over_next_tokens():
    logits, ids = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    assert next_token(logits, ids).item() == pytest.approx(crossed(logits, ids).item(), rel=1e-5)


def test_bad_gradients_are_named_with_their_site():
    model = build("llama")
    with pytest.raises(ValueError, match=r"layers.0.*: its gradients are NaN or infinite"):
        found(model, data(), "*", loss=lambda y, x: y.sum() * torch.inf)


def test_one_block_at_a_time_is_off_the_meta_device(tmp_path):
    model = build("llama", layers=4)
    model.save_pretrained(tmp_path)
    lazily, most = open_lazily(tmp_path), []

    def count():
        off = {n for n, p in lazily.model.layers.named_parameters() if not p.is_meta}
        most.append(len({n.partition(".")[0] for n in off}))

    @contextlib.contextmanager
    def hold(block):
        if block:
            materialise(lazily, block)
        count()
        yield
        count()
        if block:
            release(lazily, block)

    places, seen = found(lazily, data(), "*", (*KINDS, HessianGradient), hold=hold)
    assert max(most) == 1 and len(places) == 28
    expected = truth(model, data(), sites(model))
    for site in places:
        torch.testing.assert_close(seen[site.name][GradMean].value, expected[site.name].mean(0), rtol=1e-3, atol=1e-5)
    assert lazy is not None and Crew().size == 1
