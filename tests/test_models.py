"""Which maps each family has, with which roles, and what they are given."""

import doctest
import importlib

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fewer.models import blocks, sites, unseen

LLAMA = "self_attn.q_proj:q self_attn.k_proj:k self_attn.v_proj:v self_attn.o_proj:o"
GATED = "mlp.gate_proj:gate mlp.up_proj:up mlp.down_proj:down"
STACK = " ".join(f"mlp.experts.gate_up_proj[{e}][{r}]:{r}" for e in range(4) for r in ("gate", "up"))
STACK += " " + " ".join(f"mlp.experts.down_proj[{e}]:down" for e in range(4))
SHARED = " ".join(f"mlp.shared_expert.{r}_proj:{r}" for r in ("gate", "up", "down"))

# family -> where its blocks are, and the maps of one block with their roles, as read in the modelling sources
EXPECTED = {
    "llama": ("model.layers", f"{LLAMA} {GATED}"),
    "llama_tied": ("model.layers", f"{LLAMA} {GATED}"),
    "qwen2": ("model.layers", f"{LLAMA} {GATED}"),
    "qwen3": ("model.layers", f"{LLAMA} {GATED}"),
    "mistral": ("model.layers", f"{LLAMA} {GATED}"),
    "gemma2": ("model.layers", f"{LLAMA} {GATED}"),
    "gemma3": ("model.layers", f"{LLAMA} {GATED}"),
    "gpt2": (
        "transformer.h",
        "attn.c_attn[q]:q attn.c_attn[k]:k attn.c_attn[v]:v attn.c_proj:o mlp.c_fc:up mlp.c_proj:down",
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        " ".join(f"attention.query_key_value[{r}]:{r}" for r in "qkv")
        + " attention.dense:o mlp.dense_h_to_4h:up mlp.dense_4h_to_h:down",
    ),
    "falcon": (
        "transformer.h",
        " ".join(f"self_attention.query_key_value[{r}]:{r}" for r in "qkv")
        + " self_attention.dense:o mlp.dense_h_to_4h:up mlp.dense_4h_to_h:down",
    ),
    "opt": (
        "model.decoder.layers",
        "self_attn.q_proj:q self_attn.k_proj:k self_attn.v_proj:v self_attn.out_proj:o fc1:up fc2:down",
    ),
    "phi3": (
        "model.layers",
        " ".join(f"self_attn.qkv_proj[{r}]:{r}" for r in "qkv")
        + " self_attn.o_proj:o mlp.gate_up_proj[gate]:gate mlp.gate_up_proj[up]:up mlp.down_proj:down",
    ),
    "mixtral": ("model.layers", f"{LLAMA} {STACK}"),
    "qwen2_moe": ("model.layers", f"{LLAMA} {STACK} {SHARED}"),
    "qwen3_moe": ("model.layers", f"{LLAMA} {STACK}"),
    "gpt_oss": ("model.layers", f"{LLAMA} {STACK}"),
    "bert": (
        "bert.encoder.layer",
        "attention.self.query:q attention.self.key:k attention.self.value:v attention.output.dense:o "
        "intermediate.dense:up output.dense:down",
    ),
    "vit": (
        "vit.layers",
        "attention.q_proj:q attention.k_proj:k attention.v_proj:v attention.o_proj:o mlp.fc1:up mlp.fc2:down",
    ),
}
WIDTH = {"gemma2": 64, "gemma3": 64, "qwen3": 64}
MIXED = {"mixtral": 48, "qwen2_moe": 16, "qwen3_moe": 16, "gpt_oss": 48}
FAMILIES = list(tiny.FAMILIES)
MOE = list(MIXED)
ATTENDING = ["llama", "gpt2", "gpt_neox", "falcon", "phi3", "bert", "opt"]


def named(model, where):
    return [s.name for s in sites(model, where)]


def logits(model, family):
    return model(**tiny.batch(family)).logits


def test_every_family_has_its_expectation():
    assert EXPECTED.keys() == tiny.FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_map_of_every_block_is_found_with_its_role_and_layer(family):
    model = tiny.build(family)
    home, text = EXPECTED[family]
    one = [word.rpartition(":")[::2] for word in text.split()]
    wanted = {(f"{home}.{i}.{n}", role, i) for i in range(len(blocks(model))) for n, role in one}
    found = [(s.name, s.role, s.layer) for s in sites(model)]
    assert set(found) == wanted and len(found) == len(wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_out_by_in(family):
    inner, heads = MIXED.get(family, 48), WIDTH.get(family, 32)
    for site in sites(tiny.build(family)):
        out, n_in = site.shape
        middle = 24 if "shared" in site.name else inner
        shape = {"o": (32, heads), "gate": (middle, 32), "up": (middle, 32), "down": (32, middle), "q": (heads, 32)}
        assert (out, n_in) == shape.get(site.role, (out, 32)), site.name


@pytest.mark.parametrize("family", FAMILIES)
def test_writing_a_part_changes_those_weights_and_no_others(family):
    model = tiny.build(family)
    for site in [s for s in sites(model) if s.layer == 0]:
        before = {n: p.clone() for n, p in model.named_parameters()}
        old = site.read().clone()
        new = torch.randn_like(old)
        site.write(new)
        assert torch.equal(site.read(), new)
        changed = sum(int((p != before[n]).sum()) for n, p in model.named_parameters())
        assert changed == old.numel(), site.name
        site.write(old)
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox", "falcon", "qwen2_moe", "gpt_oss"])
def test_the_parts_of_a_block_cover_it_exactly_once(family):
    model = tiny.build(family)
    for p in model.parameters():
        p.zero_()
    for site in sites(model):
        site.write(site.read() + 1)
    inside = [p for n, p in model.named_parameters() if n.startswith(EXPECTED[family][0]) and p.ndim > 1]
    ones = [p for p in inside if p.any()]
    assert all(torch.equal(p, torch.ones_like(p)) for p in ones)
    assert sum(p.numel() for p in ones) == sum(s.read().numel() for s in sites(model))


@pytest.mark.parametrize("family", ATTENDING)
@pytest.mark.parametrize("role", ["q", "k"])
def test_without_queries_or_keys_everything_is_attended_alike(family, role):
    model = tiny.build(family, attention="eager")
    for site in sites(model, role):
        site.write(torch.zeros(site.shape))
        if getattr(site.module, "bias", None) is not None:
            site.module.bias[slice(None) if site.part is None else site.part] = 0
    seen = model(**tiny.batch(family), output_attentions=True).attentions
    causal = torch.ones(12, 12).tril() if family != "bert" else torch.ones(12, 12)
    alike = (causal / causal.sum(-1, keepdim=True)).expand_as(seen[0])
    torch.testing.assert_close(seen[0], alike)


@pytest.mark.parametrize("family", ATTENDING)
def test_without_values_the_output_map_is_given_zeros(family):
    model = tiny.build(family)
    for site in sites(model, "v"):
        site.write(torch.zeros(site.shape))
        if getattr(site.module, "bias", None) is not None:
            site.module.bias[slice(None) if site.part is None else site.part] = 0
    seen = []
    for site in sites(model, "o"):
        site.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model, family)
    assert len(seen) == 2 and not any(x.any() for x in seen)


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral", "qwen3_moe"])
def test_the_mlp_is_linear_in_up_and_not_in_gate(family):
    model, x = tiny.build(family), torch.randn(1, 5, 32)
    mlp = blocks(model)[0][1].mlp
    before = mlp(x)
    for site in sites(model, "up"):
        site.write(site.read() * 2)
    torch.testing.assert_close(mlp(x), before * 2)
    for site in sites(model, "gate"):
        site.write(site.read() * 2)
    assert (mlp(x) - before * 4).abs().max() > 0.1 * before.abs().max()


def test_gpt_oss_keeps_gate_and_up_in_turn():
    model, x = tiny.build("gpt_oss"), torch.randn(1, 5, 32)
    experts = blocks(model)[0][1].mlp.experts
    for bias in (experts.gate_up_proj_bias, experts.down_proj_bias):
        bias.zero_()
    for site in sites(model, "up"):
        site.write(torch.zeros(site.shape))
    assert blocks(model)[0][1].mlp(x)[0].any()  # (up + 1) * glu(gate)
    for site in sites(model, "gate"):
        site.write(torch.zeros(site.shape))
    assert not blocks(model)[0][1].mlp(x)[0].any()


def test_a_tied_pair_is_one_site_that_answers_to_both_names():
    tied, free = tiny.build("llama_tied"), tiny.build("llama")
    assert named(free, "embed,head") == ["model.embed_tokens", "lm_head"]
    for where in ("embed,head", "embed", "head", "lm_head", "model.embed_tokens"):
        assert named(tied, where) == ["model.embed_tokens"]


def test_shared_layers_are_listed_once():
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert named(nn.ModuleList([block, block]), "*") == ["0.0"]
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    assert named(nn.Sequential(a, b), "*") == ["0"]


def test_a_plain_module_gives_all_its_linear_maps():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 4)))
    assert [(s.name, s.role, s.layer) for s in sites(net)] == [("0", "other", None), ("2.0", "other", None)]
    assert sites(nn.Sequential(nn.ReLU())) == [] and blocks(net) == []


def test_torch_attention_is_three_maps_and_an_output():
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    assert [n for n, _ in blocks(net)] == ["layers.0", "layers.1"]
    assert [s.role for s in sites(net, "layers.1.*")] == ["q", "k", "v", "o", "up", "down"]
    layer, x = net.layers[0].self_attn, torch.randn(1, 3, 8)
    for site in sites(net, "v"):
        site.write(torch.zeros(site.shape))
    assert torch.equal(layer(x, x, x, need_weights=False)[0], layer.out_proj.bias.expand(1, 3, 8))


def seen_by(model, family, wanted):
    seen = {}
    for site in wanted:
        note = lambda m, a, k, site=site: seen.__setitem__(site.name, site.inputs(m, a, k).clone())  # noqa: E731
        site.module.register_forward_pre_hook(note, with_kwargs=True)
    logits(model, family)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_what_the_map_is_given(family):
    model = tiny.build(family)
    wanted = [s for s in sites(model) if s.index is None]
    seen = seen_by(model, family, wanted)
    for site in wanted:
        out, bias = site.module(seen[site.name]), getattr(site.module, "bias", None)
        rows = slice(None) if site.part is None else site.part
        by_hand = seen[site.name] @ site.read().mT + (0 if bias is None else bias[rows])
        torch.testing.assert_close(out[..., rows], by_hand)


def gated(family, both):
    if family == "gpt_oss":  # modeling_gpt_oss.py: clamped, alpha 1.702, limit 7
        gate, up = both[..., ::2].clamp(max=7.0), both[..., 1::2].clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    gate, up = both[: len(both) // 2], both[len(both) // 2 :]
    return nn.functional.silu(gate) * up


@pytest.mark.parametrize("family", MOE)
def test_an_expert_sees_the_tokens_that_chose_it_and_its_down_map_what_it_makes_of_them(family):
    model = tiny.build(family)
    wanted = sites(model, "model.layers.1.mlp.experts.*")
    seen, calls = seen_by(model, family, wanted), []
    experts = wanted[0].module
    experts.register_forward_pre_hook(lambda m, args: calls.append(args))
    logits(model, family)
    hidden, chosen = calls[0][0], calls[0][1].tolist()
    turned, tokens = family == "gpt_oss", 0
    for e in range(4):
        mine = [t for t, picks in enumerate(chosen) if e in picks]
        tokens += len(mine)
        for part in ("gate", "up"):
            assert torch.equal(seen[f"model.layers.1.mlp.experts.gate_up_proj[{e}][{part}]"], hidden[mine])
        w = experts.gate_up_proj[e].T if turned else experts.gate_up_proj[e]
        bias = experts.gate_up_proj_bias[e] if turned else 0
        made = torch.stack([gated(family, w @ hidden[t] + bias) for t in mine])
        torch.testing.assert_close(seen[f"model.layers.1.mlp.experts.down_proj[{e}]"], made)
    assert tokens == 2 * len(hidden)


def test_an_embedding_says_that_it_is_given_words():
    (site,) = sites(tiny.build("llama"), "embed")
    with pytest.raises(ValueError, match="words, not vectors"):
        site.inputs(site.module, (torch.tensor([1]),), {})


def test_llama_4_lays_its_tokens_out_by_expert():
    words = {**tiny.GROUPED, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
    config = AutoConfig.for_model("llama4_text", **words, attn_temperature_tuning=False)
    model, made = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), []
    down = [s for s in sites(model, "down,!*.shared_expert.*") if s.layer == 0]
    down[0].module.register_forward_hook(lambda m, args, out: made.append(out))
    seen = seen_by(model, "llama", down)
    assert len(down) == 2 and all(seen[s.name].any() for s in down)
    torch.testing.assert_close(torch.cat([seen[s.name] @ s.read().mT for s in down]), made[0])


def test_weights_that_no_site_reaches_are_told():
    assert not any(unseen(tiny.build(family)) for family in FAMILIES)
    layer = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 3))
    assert unseen(nn.ModuleDict({"layers": nn.ModuleList([layer])})) == ["layers.0.1.weight"]


@pytest.mark.parametrize("module", ["blocks", "lazy", "opening", "packed", "roles", "sites", "where"])
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(importlib.import_module(f"fewer.models.{module}")).failed == 0
