"""Dictionaries in running models: the identity changes nothing, ablations are what they say, controls are controls."""

import doctest
import importlib
from dataclasses import replace

import pytest
import torch
from tiny import build

from fewer.core import budget
from fewer.dictionaries.judge import judge, principal_like, random_like
from fewer.dictionaries.splice import replaced, spliced
from fewer.features import Dictionary
from fewer.features.top_k import TopK
from fewer.layout import Codes
from fewer.measure import fvu, nll
from fewer.models.tap import Tap, all_but, find_taps, tapped

IDS = torch.randint(3, 99, (4, 12), generator=torch.Generator().manual_seed(0))
SITES = {"llama": "layers.0", "gpt2": "h.0", "gpt_neox": "layers.0", "gemma2": "layers.1", "mixtral": "layers.0"}


def identity(dim: int, reads: tuple[str, ...], writes: tuple[str, ...] | None = None) -> Dictionary:
    """Says x = relu(x) - relu(-x), to the bit."""
    eye = torch.eye(dim)
    both = torch.cat([eye, -eye])
    return Dictionary(
        TopK(),
        budget(str(2 * dim)),
        both,
        torch.zeros(2 * dim),
        both,
        torch.zeros(dim),
        reads=reads,
        writes=writes or reads,
    )


def shaky(dim: int, reads: tuple[str, ...], latents: int = 24, k: int = 3) -> Dictionary:
    make = torch.Generator().manual_seed(1)
    atoms = torch.nn.functional.normalize(torch.randn(latents, dim, generator=make), dim=1)
    return Dictionary(
        TopK(), budget(str(k)), atoms, torch.zeros(latents), atoms, torch.zeros(dim), reads=reads, writes=reads
    )


def spoken_by(model) -> torch.Tensor:
    """Windows that the model itself drew: to ablate it costs something."""
    ids = IDS[:, :1]
    make = torch.Generator().manual_seed(0)
    for _ in range(11):
        ids = torch.cat([ids, torch.multinomial(said(model, ids)[:, -1].softmax(-1), 1, generator=make)], 1)
    return ids


def said(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("file", ["splice", "judge"])
def test_examples_in_docstrings_hold(file):
    module = importlib.import_module(f"fewer.dictionaries.{file}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("family", SITES)
def test_the_identity_changes_no_bit_and_another_dictionary_does(family):
    model = build(family)
    before = said(model)
    with spliced(model, identity(32, (SITES[family],))):
        assert torch.equal(said(model), before)
    with spliced(model, shaky(32, (SITES[family],))):
        assert not torch.allclose(said(model), before)
    with spliced(model, shaky(32, (SITES[family],)), error=True):
        assert torch.equal(said(model), before)
    assert torch.equal(said(model), before), "nothing stays behind"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_spliced_is_what_the_dictionary_says(family):
    model, d = build(family), shaky(32, (SITES[family],))
    (tap,) = find_taps(model, d.reads)
    with tapped(model, [tap]) as heard:
        said(model)
        x = heard[tap].clone()
    truth = d(x.reshape(-1, 32)).view_as(x)
    where = all_but(frozenset(IDS[0, :3].tolist()))
    with spliced(model, d, where=where), tapped(model, [tap]) as heard:
        said(model)
        found = heard[tap].clone()
    on = where(IDS)
    assert 0 < on.sum() < on.numel()
    assert (
        torch.equal(found[~on], x[~on]) and torch.equal(found[on], truth[on]) and not torch.allclose(found[on], x[on])
    )


def test_a_transcoder_that_copies_a_linear_map_changes_little_and_reads_before_it_writes():
    model = build("llama")
    mlp = "layers.1.mlp"
    w = model.model.layers[1].mlp.down_proj.weight
    eye = torch.eye(48)
    both = torch.cat([eye, -eye])
    copy = Dictionary(
        *(TopK(), budget("96"), both, torch.zeros(96), both @ w.T, torch.zeros(32)),
        reads=(f"{mlp}.down_proj:in",),
        writes=(f"{mlp}.down_proj",),
    )
    before = said(model)
    with spliced(model, copy):
        torch.testing.assert_close(said(model), before, rtol=1e-4, atol=1e-4)
    skip = replace(copy, decoder=torch.zeros(96, 32), skip=w.clone())
    with spliced(model, skip):
        torch.testing.assert_close(said(model), before, rtol=1e-4, atol=1e-4)
    late = replace(identity(32, ("layers.1",)), writes=("layers.0",))
    with spliced(model, late), pytest.raises(ValueError, match=r"layers.0 is written before .*layers.1 is heard"):
        said(model)
    assert torch.equal(said(model), before)


def test_an_edit_with_the_error_moves_the_site_by_what_the_latent_says():
    model, d = build("gpt2"), shaky(32, ("h.1",))
    (tap,) = find_taps(model, d.reads)

    def louder(codes: Codes) -> Codes:
        value = torch.where(codes.index == 5, codes.value + 2.0, codes.value)
        return Codes(codes.index, value, codes.size)

    with tapped(model, [tap]) as heard:
        said(model)
        x = heard[tap].clone()
    with spliced(model, d, error=True, edit=louder), tapped(model, [tap]) as heard:
        said(model)
        moved = heard[tap] - x
    codes = d.encode(x.reshape(-1, 32))
    spoke = ((codes.index == 5) & (codes.value != 0)).any(1).view(4, 12)
    assert spoke.any() and not spoke.all() and (moved[~spoke] == 0).all()
    torch.testing.assert_close(moved[spoke], (2 * d.decoder[5]).expand_as(moved[spoke]), rtol=1e-4, atol=1e-5)


def test_ablation_puts_the_same_vector_everywhere_but_where_it_must_not():
    model = build("llama")
    tap, v = Tap("model.layers.0"), torch.arange(32.0)
    where = all_but(frozenset({int(IDS[0, 0])}))
    with tapped(model, [tap]) as heard:
        said(model)
        x = heard[tap].clone()
    with replaced(model, {tap: v}, where), tapped(model, [tap]) as heard:
        said(model)
        found = heard[tap]
    on = where(IDS)
    assert (found[on] == v).all() and torch.equal(found[~on], x[~on])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"reads": ("layers.9",)}, "no module 'layers.9'"),
        ({"reads": (), "writes": ()}, "names no sites"),
        (
            {"reads": ("layers.1.mlp.down_proj:in",), "writes": ("layers.1",)},
            "reads 32 numbers a token, its sites say 48",
        ),
        (
            {"writes": ("layers.0.mlp.up_proj",), "reads": ("embed_tokens",)},
            r"up_proj says \(4, 12, 48\), .* writes \(4, 12, 32\)",
        ),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(change, match):
    model = build("llama")
    with pytest.raises(ValueError, match=match), spliced(model, replace(identity(32, ("layers.0",)), **change)):
        said(model)


def test_judging_the_identity_and_its_controls():
    model = build("llama")
    rows = {r["name"]: r for r in judge(identity(32, ("layers.0",)), model, spoken_by(model), batch=3)}
    one = rows["dictionary"]
    assert list(rows) == ["dictionary", "random", "pca", "dense"]
    assert one["delta_ce"] == one["delta_ce_low"] == one["delta_ce_high"] == 0 and abs(one["kl"]) < 1e-6
    assert one["recovered_zero"] == one["recovered_mean"] == one["explained"] == 1 and one["fvu"] == 0
    assert one["l0"] == 32 and one["tokens"] == 48 and one["mask"] == "all: 48 of 48 tokens"
    assert rows["pca"]["fvu"] < 1e-9, "32 components of 32"
    assert one["better"]["explained"] == "higher" and one["better"]["delta_ce"] == one["better"]["l0"] == "lower"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_judged_numbers_are_those_of_a_loop(family):
    model, d = build(family), shaky(32, (SITES[family],))
    ids = spoken_by(model)
    leave = frozenset(ids[0, :2].tolist())
    one, random, pca, _ = judge(d, model, ids, leave)
    (tap,) = find_taps(model, d.reads)
    on = ~torch.isin(ids, torch.tensor(sorted(leave)))
    with tapped(model, [tap]) as heard:
        said(model, ids)
        x = heard[tap][on]
    assert one["fvu"] == pytest.approx(fvu(x, d(x)), rel=1e-5) and one["tokens"] == len(x) < ids.numel()

    def loss(change):
        handle = dict(model.named_modules())[tap.path].register_forward_hook(change)
        try:
            return nll(model, ids).mean().item()
        finally:
            handle.remove()

    def by(make):
        def change(module, args, out):
            h = out[0] if isinstance(out, tuple) else out
            new = torch.where(on[..., None], make(h), h)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return change

    own = nll(model, ids).mean().item()
    ours = loss(by(lambda h: d(h.reshape(-1, 32)).view_as(h)))
    zero, middle = loss(by(torch.zeros_like)), loss(by(lambda h: x.mean(0).expand_as(h)))
    assert one["delta_ce"] == pytest.approx(ours - own, abs=1e-5)
    for name, ablated in (("recovered_zero", zero), ("recovered_mean", middle)):
        if ablated > own:
            assert one[name] == pytest.approx((ablated - ours) / (ablated - own), rel=1e-3, abs=1e-4)
        else:
            assert name not in one, "where ablation costs nothing, there is nothing to recover"
    assert "recovered_zero" in one
    assert random["l0"] <= 3 and pca["l0"] == 3


def test_controls_are_what_they_are_called():
    make = torch.Generator().manual_seed(0)
    x = torch.randn(400, 16, generator=make) @ torch.diag(torch.linspace(3, 0.1, 16)) + 5
    d = shaky(16, ("a",), latents=64)
    pca, random = principal_like(d, x, x, 4), random_like(d, x, x, 4)
    s = torch.linalg.svdvals((x - x.mean(0)).double())
    assert fvu(x, pca(x)) == pytest.approx((s[4:].square().sum() / s.square().sum()).item(), rel=1e-4)
    assert fvu(x, pca(x)) < fvu(x, random(x)) < 1
    assert random.latents == 64 and torch.allclose(random.encoder.norm(dim=1), torch.ones(64))
    y = torch.cat([x[:, :3] @ torch.randn(3, 8, generator=make), 0.01 * torch.randn(400, 2, generator=make)], 1)
    cross = replace(d, writes=("b",), decoder=torch.zeros(64, 10), decoder_bias=torch.zeros(10))
    assert fvu(y, principal_like(cross, x, y, 3)(x)) < 1e-3 < 0.02 < fvu(y, principal_like(cross, x, y, 2)(x))


def test_nothing_to_judge_is_said():
    with pytest.raises(ValueError, match="nothing to judge"):
        judge(identity(32, ("layers.0",)), build("llama"), torch.full((2, 4), 7), frozenset({7}))
