"""Dictionaries of attention heads: what is tapped are the heads' outputs side by side, in any architecture."""

import pytest
import torch
from tiny import build

from fewer.core import budget
from fewer.dictionaries.heads import by_head, by_source
from fewer.features import Dictionary
from fewer.features.top_k import TopK
from fewer.models import find_taps, tapped

IDS = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(0))
HEADS = 4

FAMILIES = {  # the site, the whole attention, and how the values of all heads are made
    "llama": ("layers.1.self_attn.o_proj:in", "layers.1.self_attn", "layers.1.self_attn.v_proj"),
    "qwen3": ("layers.1.self_attn.o_proj:in", "layers.1.self_attn", "layers.1.self_attn.v_proj"),
    "gemma3": ("layers.1.self_attn.o_proj:in", "layers.1.self_attn", "layers.1.self_attn.v_proj"),
    "gpt2": ("h.1.attn.c_proj:in", "h.1.attn", "h.1.attn.c_attn"),
    "gpt_neox": ("layers.1.attention.dense:in", "layers.1.attention", "layers.1.attention.query_key_value"),
}


def values_of(family, said):
    """[batch, key-value heads, keys, width], from what the module that makes them says."""
    if family == "gpt2":  # q, k, v one after another
        return said.chunk(3, -1)[2].unflatten(-1, (HEADS, -1)).transpose(1, 2)
    if family == "gpt_neox":  # q, k, v of each head
        return said.unflatten(-1, (HEADS, 3, -1))[..., 2, :].transpose(1, 2)
    width = 16 if family in ("qwen3", "gemma3") else 8
    return said.unflatten(-1, (-1, width)).transpose(1, 2)


@pytest.fixture(params=FAMILIES)
def run(request):
    family = request.param
    model = build(family, attention="eager")
    site, whole, made = taps = find_taps(model, FAMILIES[family])
    with torch.no_grad(), tapped(model, taps) as heard:
        patterns = model(IDS, output_attentions=True).attentions
    return model, site, heard[site], heard[whole], values_of(family, heard[made]), patterns[1]


def test_the_output_map_of_what_is_tapped_is_what_the_layer_says(run):
    model, site, z, said, *_ = run
    module = model.get_submodule(site.path)
    w = module.weight.T if type(module).__name__ == "Conv1D" else module.weight  # GPT-2 stores [in, out]
    truth = z.double() @ w.double().T + (0 if module.bias is None else module.bias.double())
    assert torch.allclose(said.double(), truth, atol=1e-5)


def test_what_is_tapped_are_the_heads_side_by_side(run):
    *_, z, _, v, pattern = run
    each = pattern @ v.repeat_interleave(HEADS // v.shape[1], 1)
    assert torch.allclose(z.unflatten(-1, (HEADS, -1)).transpose(1, 2), each, atol=1e-5)


def test_heads_and_their_sources_sum_to_the_pre_activation(run):
    *_, z, _, v, pattern = run
    w = torch.randn(2, 12, z.shape[-1], generator=torch.Generator().manual_seed(1))
    b = torch.randn(12, generator=torch.Generator().manual_seed(2))
    d = Dictionary(TopK(), budget("3"), w[0], b, w[1], torch.zeros(z.shape[-1]))
    pre = d.pre(z.flatten(0, 1)).view(*z.shape[:2], 12)
    heads = by_head(d, z, torch.tensor([5, 9]), HEADS)
    assert torch.allclose(heads.sum(-1) + b[[5, 9]], pre[..., [5, 9]], atol=1e-4)
    sources = by_source(d, pattern, v, 9)
    assert torch.allclose(sources.sum(-1), heads[..., 1, :], atol=1e-4)
    assert not sources[:, 0, :, 1:].any()  # the first sees itself alone
