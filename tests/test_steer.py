"""Steering: an edit moves exactly along its direction, nothing else, in `generate` with and without a cache."""

import pytest
import torch
from tiny import build

from fewer.core import budget
from fewer.dictionaries.steer import Add, ClampWhenActive, ScaleWhenActive, Set, steered
from fewer.features import Dictionary
from fewer.features.batch_top_k import BatchTopK
from fewer.features.top_k import TopK
from fewer.models import find_taps, tapped

LATENTS, WIDTH = 40, 32
EACH = (Add(3, 1.5), Set(3, 2.0), ScaleWhenActive(3, -1.0), ClampWhenActive(3, -4.0))


def dictionary(reads=("layers.0",), writes=("layers.0",), sparsifier=None, own=None):
    torch.manual_seed(0)
    w = torch.randn(2, LATENTS, WIDTH)
    bias = torch.randn(LATENTS), torch.randn(WIDTH)
    return Dictionary(sparsifier or TopK(), budget("20"), w[0], bias[0], w[1], bias[1], own or {}, None, reads, writes)


@pytest.fixture(scope="module")
def model():
    return build("llama")


IDS = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(0))


def heard(model, site):
    (tap,) = find_taps(model, [site])
    with torch.no_grad(), tapped(model, [tap]) as found:
        model(IDS)
    return found[tap].clone()


@pytest.mark.parametrize("edit", EACH, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("sites", [("layers.0", "layers.0"), ("layers.1.mlp:in", "layers.1.mlp")], ids=str)
def test_an_edit_moves_along_its_direction_and_nothing_else(model, edit, sites):
    d = dictionary(*((s,) for s in sites))
    x, y = (heard(model, s) for s in sites)
    with steered(model, d, [edit]):
        moved = heard(model, sites[1])
    z = d.code(x.flatten(0, 1).double().float()).view(*x.shape[:2], -1)[..., 3]
    assert 0 < (z != 0).float().mean() < 1  # it speaks at some tokens and not at others
    truth = {
        Add: z + 1.5,
        Set: torch.full_like(z, 2.0),
        ScaleWhenActive: -z,
        ClampWhenActive: torch.where(z != 0, -4.0, 0.0),
    }[type(edit)]
    change = (truth - z)[..., None].double() * d.decoder[3].double()
    assert torch.allclose(moved.double(), y.double() + change, atol=1e-5)
    assert torch.equal(heard(model, sites[1]), y)  # and nothing stays behind


def test_edits_of_one_latent_follow_one_another(model):
    y = heard(model, "layers.0")
    with steered(model, dictionary(), [Set(3, 2.0), Add(3, 1.0), Add(5, 0.5)]):
        both = heard(model, "layers.0")
    with steered(model, dictionary(), [Add(5, 0.5), Set(3, 3.0)]):
        assert torch.allclose(both, heard(model, "layers.0"), atol=1e-6) and not torch.allclose(both, y)


@pytest.mark.parametrize("edits", [[], [Add(3, 0.0)], [ScaleWhenActive(3, 1.0)]], ids=str)
def test_an_edit_of_nothing_changes_no_bit(model, edits):
    how = dict(max_new_tokens=6, do_sample=False, output_scores=True, return_dict_in_generate=True)
    y, said = heard(model, "layers.0"), model.generate(IDS, **how)
    with steered(model, dictionary(), edits):
        assert torch.equal(heard(model, "layers.0"), y)
        again = model.generate(IDS, **how)
    assert torch.equal(said.sequences, again.sequences)
    for a, b in zip(said.scores, again.scores, strict=True):
        assert torch.allclose(a, b, atol=1e-6)  # products of tensors elsewhere in memory may round otherwise


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_generating_with_a_cache_says_what_it_says_without(family):
    model = build(family)
    site = next(n for n, _ in model.named_modules() if n.endswith((".layers.0", ".h.0")))
    d = dictionary((site,), (site,), BatchTopK(), {"threshold": torch.tensor(0.5)})
    how = dict(max_new_tokens=8, do_sample=False, output_scores=True, return_dict_in_generate=True)
    plain = model.generate(IDS, **how)
    with steered(model, d, [Set(3, 30.0)]):
        cached, not_cached = model.generate(IDS, use_cache=True, **how), model.generate(IDS, use_cache=False, **how)
    assert not torch.allclose(plain.scores[0], cached.scores[0])
    for a, b in zip(cached.scores, not_cached.scores, strict=True):
        assert torch.allclose(a, b, atol=2e-3)


def test_what_cannot_be_done_is_a_sentence(model):
    with (
        pytest.raises(ValueError, match="latent 40: the dictionary has 0 to 39"),
        steered(model, dictionary(), [Add(40, 1.0)]),
    ):
        pass
    with (
        pytest.raises(ValueError, match="no module 'layers.9'"),
        steered(model, dictionary(("layers.9",)), [Add(1, 1.0)]),
    ):
        pass


def test_edits_are_made_where_they_are_asked_for(model):
    y = heard(model, "layers.0")
    with steered(model, dictionary(), [Set(3, 9.0)], where=lambda ids: ids % 2 == 0):
        moved = (heard(model, "layers.0") != y).any(-1)
    assert torch.equal(moved, IDS % 2 == 0) and moved.any() and not moved.all()


def test_edits_are_made_where_they_are_asked_for(model):
    y = heard(model, "layers.0")
    with steered(model, dictionary(), [Set(3, 9.0)], where=lambda ids: ids % 2 == 0):
        moved = (heard(model, "layers.0") != y).any(-1)
    assert torch.equal(moved, IDS % 2 == 0) and moved.any() and not moved.all()
