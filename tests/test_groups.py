"""Which maps share their channels, told by roles, for every architecture; and what cannot become narrower."""

import pytest
import torch
from tiny import batch, build
from torch import nn

from fewer.models import groups, shrink

EVERY = ("llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox")
EVERY += ("falcon", "opt", "phi3", "bert", "vit")


def said(model, family):
    with torch.no_grad():
        return model(**batch(family)).logits


@pytest.mark.parametrize("family", EVERY)
def test_a_block_has_an_mlp_and_an_attention_whose_units_are_channels_and_key_heads(family):
    model = build(family)
    found = groups(model)
    layers = model.config.num_hidden_layers
    heads = {"falcon": 2, "gpt2": 4, "gpt_neox": 4, "opt": 4, "bert": 4, "vit": 4}.get(family, 2)
    assert [g.units for g in found if g.reader.role == "down"] == [48] * layers
    assert [g.units for g in found if g.reader.role == "o"] == [heads] * layers


@pytest.mark.parametrize("family", EVERY)
def test_a_model_without_some_units_says_what_it_says_with_zeros_in_their_place(family):
    """The truth: the outputs of the dense model with those columns of the readers set to zero, by hand."""
    masked, slim = build(family), build(family)
    make = torch.Generator().manual_seed(0)
    kept = {}
    for group in groups(masked):
        keep = torch.rand(group.units, generator=make) < 0.6
        keep[0] = True
        kept[group.name] = keep
        w = group.reader.read().clone()
        w.unflatten(1, (group.units, -1))[:, ~keep] = 0
        group.reader.write(w)
    before, sizes = said(slim, family), sum(p.numel() for p in slim.parameters())
    back = shrink(slim, kept)
    assert (said(slim, family) - said(masked, family)).abs().max() < 1e-5
    assert sum(p.numel() for p in slim.parameters()) < sizes
    back()
    assert torch.equal(said(slim, family), before), "what was taken away is not put back"


def test_rows_of_every_part_and_of_its_bias_leave_with_their_unit():
    model = build("gpt_neox")
    group = next(g for g in groups(model) if g.reader.role == "o")
    fused = model.gpt_neox.layers[0].attention.query_key_value
    weight, bias = fused.weight.clone(), fused.bias.clone()
    shrink(model, {group.name: torch.tensor([True, False, True, True])})
    new = model.gpt_neox.layers[0].attention.query_key_value
    rows = torch.cat([torch.arange(24), torch.arange(48, 96)])  # NeoX: 8 rows of q, k and v, head after head
    assert torch.equal(new.weight, weight[rows]) and torch.equal(new.bias, bias[rows])


def test_a_part_of_a_group_is_refused_with_the_rest_of_it():
    with pytest.raises(ValueError, match=r"up_proj cannot become narrower alone.*gate_proj.*down_proj.*'@ mlp'"):
        groups(build("llama"), "up")


def test_experts_in_one_tensor_are_refused_and_what_is_beside_them_is_found():
    model = build("qwen2_moe")
    with pytest.raises(ValueError, match=r"experts.*cannot become narrower: all its experts lie in one tensor"):
        groups(model, "mlp")
    assert [g.units for g in groups(model, "*.shared_expert.*")] == [24, 24]


def test_heads_that_something_else_ties_together_are_refused():
    model = build("llama")
    model.model.layers[1].self_attn.q_norm = nn.LayerNorm(32)  # over all heads at once
    with pytest.raises(ValueError, match=r"layers.1.self_attn: q_norm.weight ties its heads together.*'@ mlp'"):
        groups(model, "attention")
    model = build("gpt_oss")  # a sink for each head
    with pytest.raises(ValueError, match="ties its heads together"):
        groups(model, "attention")


def test_a_group_that_is_not_there_and_a_wrong_number_of_units_are_refused():
    model = build("llama")
    with pytest.raises(ValueError, match="no group 'model.layers.9.mlp'"):
        shrink(model, {"model.layers.9.mlp": torch.ones(48, dtype=torch.bool)})
    with pytest.raises(ValueError, match="has 48 units, not 7"):
        shrink(model, {"model.layers.0.mlp": torch.ones(7, dtype=torch.bool)})
