"""Taps: what a module says or hears is read, replaced and left as it was, in any model."""

import pytest
import torch
from tiny import batch, build
from torch import nn

from fewer.models import Enough, Tap, find_taps, hooked, tapped


class Deep(nn.Module):
    """Says a tuple, hears a keyword."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return self.outer(input=self.inner(x)), "something else"


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.deep, self.last = Deep(), nn.Linear(2, 1)

    def forward(self, x):
        return self.last(self.deep(x)[0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Around()


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def test_what_is_said_and_heard(model):
    taps = find_taps(model, ["deep", "outer:in", "deep.inner:in", "last"])
    with tapped(model, taps) as heard:
        out = model(X)
    d = model.deep
    assert torch.equal(heard[taps[0]], d.outer(d.inner(X))) and torch.equal(heard[taps[1]], d.inner(X))
    assert torch.equal(heard[taps[2]], X) and torch.equal(heard[taps[3]], out)


def test_a_brief_run_goes_no_further_than_the_last_tap(model):
    reached = []
    model.last.register_forward_pre_hook(lambda *_: reached.append(1))
    with tapped(model, find_taps(model, ["deep"]), brief=True) as heard, pytest.raises(Enough):
        model(X)
    assert heard and not reached


def test_replacing_and_leaving(model):
    before, moved = model(X), model.last(model.deep.outer(model.deep.inner(X) + 1))
    taps = find_taps(model, ["deep", "outer:in"])
    with hooked(model, {taps[0]: lambda y: y * 0}):
        assert torch.equal(model(X), model.last(torch.zeros(5, 2)))
    with hooked(model, {taps[1]: lambda y: y + 1}):
        assert torch.allclose(model(X), moved)
    with hooked(model, {t: lambda y: y for t in taps}):
        assert torch.equal(model(X), before)
    with pytest.raises(ZeroDivisionError), hooked(model, {taps[0]: lambda y: 1 / 0}):
        model(X)
    assert torch.equal(model(X), before) and not model.deep._forward_hooks


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("deep.iner", "no module 'deep.iner'; near: deep.inner"),
        ("deep:sideways", "write a module's path"),
        (":in", "write a module's path"),
    ],
)
def test_a_typo_is_answered_with_its_neighbours(model, site, says):
    with pytest.raises(ValueError, match=says):
        find_taps(model, [site])


def test_an_end_that_two_modules_share_is_refused():
    two = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2))}))
    with pytest.raises(ValueError, match=r"could be .*write more of the path"):
        find_taps(nn.ModuleDict({"x": two[0], "y": two[1]["a"]}), ["0"])


def test_what_says_no_numbers_is_refused(model):
    class Words(nn.Module):
        def forward(self, x):
            return "words"

    net = nn.Sequential(Words())
    with pytest.raises(ValueError, match="site 0: expected activations, got str"), tapped(net, [Tap("0")]):
        net(X)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("llama", "layers.1"),
        ("gpt2", "h.1"),
        ("gpt_neox", "layers.1.mlp:in"),
        ("gemma3", "layers.0"),
        ("vit", "layer.1"),
    ],
)
def test_real_architectures(name, site):
    model, data = build(name), batch(name)
    paths = [n for n, _ in model.named_modules() if n.endswith(site.partition(":")[0])]
    if not paths:
        site = next(n for n, _ in model.named_modules() if n.endswith(".1"))
    (tap,) = find_taps(model, [site])
    with torch.no_grad():
        whole = model(**data)[0]
        with tapped(model, [tap]) as heard:
            model(**data)
        with hooked(model, {tap: lambda x: x.clone()}):
            assert torch.equal(model(**data)[0], whole)
        with hooked(model, {tap: torch.zeros_like}):
            assert not torch.equal(model(**data)[0], whole)
    assert heard[tap].ndim == 3 and heard[tap].isfinite().all()
