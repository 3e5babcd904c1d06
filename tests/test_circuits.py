"""Feature circuits: effects against exact runs and finite differences, edges against their sum, planted circuits found."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import build
from torch import nn

from fewer.core import budget
from fewer.dictionaries.circuit_edges import circuit_edges
from fewer.dictionaries.circuits import (
    Behaviour,
    State,
    ablation,
    at_random,
    attribution_patching,
    completeness,
    faithfulness,
    integrated_gradients,
    kept,
    largest,
    mean_states,
    only,
    without,
    zero_states,
)
from fewer.dictionaries.described import described
from fewer.dictionaries.explore import indexed
from fewer.dictionaries.steer import Set, steered
from fewer.features import Dictionary
from fewer.features.top_k import TopK

IDS = {"input_ids": torch.randint(3, 99, (3, 6), generator=torch.Generator().manual_seed(0))}
OTHER = {"input_ids": torch.randint(3, 99, (3, 6), generator=torch.Generator().manual_seed(1))}
SITES = "h.0.mlp", "h.0", "h.1.attn"


def autoencoder(site, seed=0, latents=40, k="8"):
    g = torch.Generator().manual_seed(seed)
    w = [
        torch.randn(*s, generator=g, dtype=torch.float64) * 0.3
        for s in ((latents, 32), (latents,), (latents, 32), (32,))
    ]
    return Dictionary(TopK(), budget(k), *w, {}, None, (site,), (site,))


def metric(said):
    return said.logits[:, -1, 5] - said.logits[:, -1, 6]


@pytest.fixture(scope="module")
def gpt2():
    return build("gpt2").double()


def behaviour(model, sites=SITES, aligned=False):
    return Behaviour(model, [autoencoder(s, i) for i, s in enumerate(sites)], metric, aligned)


def full(site):
    return f"transformer.{site}"


def moved(states, by, seed=0):
    """A patch very near to what is said."""
    g = torch.Generator().manual_seed(seed)
    return {
        site: State(*(t + by * torch.randn(t.shape, generator=g, dtype=t.dtype) for t in (s.z, s.error)))
        for site, s in states.items()
    }


def test_what_a_site_says_is_told_apart_and_back_together(gpt2):
    b = behaviour(gpt2)
    heard = {}
    hook = gpt2.transformer.h[0].mlp.register_forward_hook(lambda m, a, y: heard.update(x=y))
    states = b.states(IDS)
    hook.remove()
    s, d = states[full("h.0.mlp")], b.dictionaries[0]
    assert torch.allclose(s.z @ d.decoder + d.decoder_bias + s.error, heard["x"], atol=1e-12)
    assert torch.equal((s.z != 0).sum(-1) <= 8, torch.ones(3, 6, dtype=torch.bool)) and s.error.abs().max() > 0.1


@pytest.mark.parametrize("way", [attribution_patching, integrated_gradients])
@pytest.mark.parametrize("aligned", [False, True])
def test_near_the_clean_run_each_effect_is_a_finite_difference(gpt2, way, aligned):
    b, by = behaviour(gpt2, aligned=aligned), 1e-5
    clean = b.states(IDS)
    patch = moved(clean, by)
    effects = way(b, IDS, patch)
    exact = ablation(b, IDS, patch, {s: range(0, 40, 7) for s in effects})
    for site, truth in exact.items():
        mine = effects[site].latents.sum(0)[::7]
        assert truth.abs().max() > 1e-7 and torch.allclose(mine, truth, rtol=1e-3, atol=1e-5 * by)
        assert effects[site].latents.shape == (6 if aligned else 1, 40)


@pytest.mark.parametrize("patch", ["other prompts", "mean", "zero"])
def test_integrated_gradients_of_a_site_add_up_to_setting_it(gpt2, patch):
    b = behaviour(gpt2)
    clean = b.states(IDS)
    to = {"other prompts": b.states(OTHER), "mean": mean_states(clean), "zero": zero_states(clean)}[patch]
    missed, before = {}, b(IDS).mean()
    for steps in (4, 8, 64):
        effects = integrated_gradients(b, IDS, to, steps)
        for i, site in enumerate(effects):
            n, d = effects[site], b.dictionaries[i]
            one = Behaviour(gpt2, [d], metric)
            none = {site: type(n)(torch.zeros(1, 40, dtype=torch.bool), torch.zeros(1, dtype=torch.bool))}
            with kept(one, none, to):
                truth = one(IDS).mean() - before
            missed[site, steps] = abs(n.latents.sum() + n.error.sum() - truth)
            assert truth.abs() > 1e-2
    for site in effects:
        assert missed[site, 64] < 2e-3
    assert sum(missed[s, 8] for s in effects) < sum(missed[s, 4] for s in effects)


def test_ablation_to_zero_is_steering_to_zero(gpt2):
    b = behaviour(gpt2)
    clean = b.states(IDS)
    found = ablation(b, IDS, zero_states(clean), {full("h.0"): [3, 4, 5, 6, 7]})
    truth = []
    for latent in range(3, 8):
        with steered(gpt2, b.dictionaries[1], [Set(latent, to=0.0)]):
            truth.append(b(IDS).mean() - metric(gpt2_plain(gpt2)).mean())
    assert torch.allclose(found[full("h.0")], torch.stack(truth), atol=1e-5) and found[full("h.0")].abs().max() > 1e-2
    assert found[full("h.0.mlp")].numel() == 0


def gpt2_plain(model):
    """The model's answer without any hook: a copy of it."""
    other = copy.deepcopy(model)
    for module in other.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    with torch.no_grad():
        return other(**IDS)


def test_attributions_go_along_with_exact_effects(gpt2):
    b = behaviour(gpt2)
    to = b.states(OTHER)
    every = {full(s): range(40) for s in SITES}
    exact = torch.cat(list(ablation(b, IDS, to, every).values()))
    linear, integrated = (
        torch.cat([n.latents[0] for n in way(b, IDS, to).values()])
        for way in (attribution_patching, integrated_gradients)
    )
    assert torch.corrcoef(torch.stack([exact, linear]))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack([exact, integrated]))[0, 1] > 0.8


def test_faithfulness_is_one_with_all_nodes_and_zero_with_none(gpt2):
    b = behaviour(gpt2)
    to = mean_states(b.states(IDS))
    effects = attribution_patching(b, IDS, to)
    everything, nothing = (only(effects, lambda x, v=v: torch.full_like(x, v, dtype=torch.bool)) for v in (True, False))
    assert faithfulness(b, IDS, everything, to) == 1 and completeness(b, IDS, everything, to) == 0
    assert faithfulness(b, IDS, nothing, to) == 0 and completeness(b, IDS, nothing, to) == 1
    with kept(b, everything, to):
        assert torch.equal(b(IDS), metric(gpt2_plain(gpt2)))


def test_what_a_circuit_keeps_is_computed_from_what_was_already_replaced(gpt2):
    """By hand, for two sites one after the other."""
    b = behaviour(gpt2, SITES[:2])
    to = mean_states(b.states(IDS), aligned=True)
    half = largest(attribution_patching(b, IDS, to), 30)
    ds = dict(zip(map(full, SITES), b.dictionaries, strict=False))

    def by_hand(site):
        def hook(module, args, y):
            x, d, keep = y, ds[site], half[site]
            pre = x @ d.encoder.T + d.encoder_bias
            z = torch.where(pre >= pre.topk(8).values[..., -1:], pre.relu(), 0.0)
            error = x - z @ d.decoder - d.decoder_bias
            z = torch.where(keep.latents[0], z, to[site].z)
            error = error if keep.error[0] else to[site].error.expand_as(error)
            return z @ d.decoder + d.decoder_bias + error

        return hook

    block = gpt2.transformer.h[0]
    hooks = [
        block.mlp.register_forward_hook(by_hand(full("h.0.mlp"))),
        block.register_forward_hook(by_hand(full("h.0"))),
    ]
    truth = b(IDS)
    for hook in hooks:
        hook.remove()
    with kept(b, half, to):
        assert torch.allclose(b(IDS), truth, atol=1e-10) and not torch.allclose(truth, metric(gpt2_plain(gpt2)))


def test_edges_out_of_a_node_add_up_to_its_effect(gpt2):
    b = behaviour(gpt2)
    to = b.states(OTHER)
    effects = attribution_patching(b, IDS, to)
    whole = only(effects, lambda x: torch.ones_like(x, dtype=torch.bool))
    edges = circuit_edges(b, IDS, to, whole)
    assert {(e.start, e.end) for e in edges} >= {(full("h.0.mlp"), full("h.0")), (full("h.0"), full("h.1.attn"))}
    for site, n in effects.items():
        total = sum(e.effects.sum(0) for e in edges if e.start == site)
        assert torch.allclose(total, torch.cat([n.latents[0], n.error]), atol=1e-10)
    # what h.0 says holds all that h.0.mlp said, and nothing goes past it
    past = next(e for e in edges if (e.start, e.end) == (full("h.0.mlp"), ""))
    assert past.effects.abs().max() == 0


def test_edges_of_few_nodes_are_those_of_all(gpt2):
    b = behaviour(gpt2)
    to = b.states(OTHER)
    effects = attribution_patching(b, IDS, to)
    whole = circuit_edges(b, IDS, to, only(effects, lambda x: torch.ones_like(x, dtype=torch.bool)))
    some = circuit_edges(b, IDS, to, largest(effects, 20))
    for a, e in zip(some, whole, strict=True):
        rows = [*a.targets, -1] if a.end else [0]
        assert torch.allclose(a.effects, e.effects[rows][:, [*a.sources, -1]], atol=1e-12)


class Toy(nn.Module):
    """Tokens are sums of orthogonal directions; two planted ones are read out, and a third by accident."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.basis = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
        self.words = nn.Embedding(12, 16, dtype=torch.float64)
        self.words.weight.data = (torch.rand(12, 16, dtype=torch.float64) * (torch.rand(12, 16) < 0.5)) @ self.basis
        self.mid = nn.Identity()
        self.read = torch.zeros(16, dtype=torch.float64)
        self.read[[3, 8, 11]] = torch.tensor([2.0, -3.0, 1.5], dtype=torch.float64)

    def forward(self, ids):
        return self.mid(self.words(ids)).sum(1) @ (self.read @ self.basis)


def spelt(basis):
    return Dictionary(
        TopK(),
        budget("16"),
        basis,
        torch.zeros(16).double(),
        basis,
        torch.zeros(16).double(),
        {},
        None,
        ("mid",),
        ("mid",),
    )


TOKENS = {"ids": torch.arange(12).view(4, 3)}


def test_a_planted_circuit_is_found_and_beats_chance_and_neurons():
    toy = Toy().requires_grad_(False)
    b, neurons = (Behaviour(toy, [spelt(w)], lambda y: y) for w in (toy.basis, torch.eye(16).double()))
    to = zero_states(b.states(TOKENS))
    for way in (attribution_patching, integrated_gradients):
        effects = way(b, TOKENS, to)
        circuit = largest(effects, 3)
        assert circuit["mid"].latents[0].nonzero()[:, 0].tolist() == [3, 8, 11] and not circuit["mid"].error.any()
    assert faithfulness(b, TOKENS, circuit, to) == pytest.approx(1) and completeness(
        b, TOKENS, circuit, to
    ) == pytest.approx(0)
    truth = ablation(b, TOKENS, to, {"mid": range(16)})["mid"]
    assert torch.allclose(truth, effects["mid"].latents[0], atol=1e-6)
    chance = [faithfulness(b, TOKENS, at_random(effects, 3, seed), to) for seed in range(20)]
    assert max(abs(f - 1) for f in chance) > 0.5 and sum(abs(f - 1) < 0.2 for f in chance) < 5
    other = zero_states(neurons.states(TOKENS))
    few = largest(attribution_patching(neurons, TOKENS, other), 3, errors=False)
    assert abs(faithfulness(neurons, TOKENS, few, other) - 1) > 0.1


def test_shift_takes_away_what_was_read_by_accident():
    toy = Toy().requires_grad_(False)
    said = toy(**TOKENS)
    toy_without = toy.words(TOKENS["ids"]).sum(1) @ (toy.read * (torch.arange(16) != 11) @ toy.basis)
    with without(toy, [(spelt(toy.basis), [11])]):
        assert torch.allclose(toy(**TOKENS), toy_without, atol=1e-5)
    assert torch.equal(toy(**TOKENS), said) and not torch.allclose(said, toy_without)


def test_what_cannot_be_done_is_a_sentence(gpt2):
    b = behaviour(gpt2)
    to = mean_states(b.states(IDS))
    with pytest.raises(ValueError, match="must both name it"), kept(b, {}, to):
        pass
    with pytest.raises(ValueError, match="two dictionaries of one site"):
        behaviour(gpt2, ("h.0", "h.0")).sites()
    with pytest.raises(ValueError, match="steps=0"):
        integrated_gradients(b, IDS, to, 0)
    across = replace(autoencoder("h.0"), writes=("h.1",))
    with pytest.raises(ValueError, match="autoencoders of one site"):
        Behaviour(gpt2, [across], metric).sites()


@pytest.mark.parametrize("aligned", [False, True])
def test_a_circuits_latents_are_described_from_the_index(gpt2, tmp_path, aligned):
    m = behaviour(gpt2, SITES[:2], aligned)
    effects = attribution_patching(m, IDS, zero_states(m.states(IDS)))
    tokens = torch.randint(3, 99, (4, 8), generator=torch.Generator().manual_seed(5))
    single = copy.deepcopy(gpt2).float()
    indexes = {
        str(tap): indexed(d.to(torch.float32), single, tokens, tmp_path / str(i))
        for i, (tap, d) in enumerate(m.sites().items())
    }
    found = list(described(effects, indexes, 12))
    best = sorted(
        (-abs(e), s, p, i)
        for s, n in effects.items()
        for p, r in enumerate(n.latents.tolist())
        for i, e in enumerate(r)
    )
    assert [abs(f.effect) for f in found] == pytest.approx([-e for e, *_ in best[:12]])
    for f in found:
        table = effects[f.site].latents
        assert f.effect == table[f.position or 0, f.latent].item() and (f.position is None) == (len(table) == 1)
        places, values = indexes[f.site].of(f.latent)
        assert f.count == len(places)
        if f.count:
            loudest = places[abs(values).argmax()]
            assert f.examples[0].place == loudest and f.heard[0][0] in tokens.flatten()[torch.from_numpy(places)]
    with pytest.raises(ValueError, match="has no index"):
        next(described(effects, {}))
