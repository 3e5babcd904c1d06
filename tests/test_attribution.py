"""Attribution graphs: every row adds up, each effect is what the weights say, pruning is what the formula says."""

import json

import pytest
import torch
from tiny import build

from fewer.core import budget
from fewer.dictionaries.attribution import attribute
from fewer.dictionaries.frozen import frozen
from fewer.dictionaries.graph import EMBEDDING, ERROR, LATENT, LOGIT, Graph, Node, write_graph
from fewer.features import Dictionary
from fewer.features.top_k import TopK

HOMES = {"llama": "layers", "gpt2": "h", "gpt_neox": "layers", "gemma2": "layers", "gemma3": "layers"}
IDS = {"input_ids": torch.randint(3, 99, (1, 7), generator=torch.Generator().manual_seed(1))}
LATENTS = 40


def transcoder(reads, writes, seed=0, skip=False):
    g = torch.Generator().manual_seed(seed)

    def r(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) * 0.3

    out = 32 * len(writes)
    w = r(LATENTS, 32), r(LATENTS), r(LATENTS, out), r(out)
    return Dictionary(TopK(), budget("5"), *w, {}, r(out, 32) if skip else None, reads, writes)


def per_layer(family, layers, **how):
    home = HOMES[family]
    return [transcoder((f"{home}.{i}.mlp:in",), (f"{home}.{i}.mlp",), i, **how) for i in range(layers)]


def adds_up(graph):
    t = graph.of(LATENT, LOGIT)
    missed = (graph.effects.sum(1) + graph.bias - graph.pre)[t].abs().max()
    assert missed < 1e-5 * graph.pre.abs().max() and graph.pre[t].abs().min() > 0
    return graph


@pytest.mark.parametrize("family", HOMES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_row_adds_up_to_what_the_latent_hears(family, attention):
    if family == "gemma2" and attention == "sdpa":
        return  # it has none
    model = build(family, attention=attention).double()
    layers = model.config.num_hidden_layers
    graph = adds_up(attribute(model, IDS, per_layer(family, layers)))
    assert graph.of(LATENT).sum() == 5 * 7 * layers - sum(n.value < 0 for n in graph.nodes)
    assert graph.of(ERROR).sum() == 7 * layers and graph.of(EMBEDDING).sum() == 7
    with torch.no_grad():
        chances = model(**IDS).logits[0, -1].softmax(-1)
    said = {n.index: n.value for n in graph.nodes if n.kind == LOGIT}
    assert len(said) == 10 and all(abs(chances[i] - p) < 1e-9 for i, p in said.items())
    assert not any(p.requires_grad for p in model.parameters())


def test_pre_activations_and_logits_are_the_models_own():
    model, d = build("gpt2").double(), per_layer("gpt2", 2)
    graph = attribute(model, IDS, d)
    heard = {}
    hook = model.transformer.h[1].mlp.register_forward_pre_hook(lambda m, a: heard.update(x=a[0]))
    with torch.no_grad():
        logits = model(**IDS).logits[0, -1]
    hook.remove()
    pre = heard["x"][0] @ d[1].encoder.T + d[1].encoder_bias
    for node, value in zip(graph.nodes, graph.pre.tolist(), strict=True):
        if node.kind == LATENT and node.layer == 1:
            assert abs(value - pre[node.position, node.index]) < 1e-9
        if node.kind == LOGIT:
            assert abs(value - (logits[node.index] - logits.mean())) < 1e-9


def test_skips_layers_written_across_and_sites_left_whole():
    model = build("llama").double()
    adds_up(attribute(model, IDS, per_layer("llama", 2, skip=True)))
    across = (
        transcoder(("layers.0.mlp:in",), ("layers.0.mlp", "layers.1.mlp")),
        transcoder(("layers.1.mlp:in",), ("layers.1.mlp",), 1),
    )
    graph = adds_up(attribute(model, IDS, across))
    assert graph.of(ERROR).sum() == 14
    upper = [transcoder(("layers.1.mlp:in",), ("layers.1.mlp",), 1)]
    with pytest.raises(ValueError, match="do not add up"):
        attribute(model, IDS, upper)
    assert adds_up(attribute(model, IDS, upper, errors=["layers.0.mlp"])).of(ERROR).sum() == 14


def test_an_effect_is_what_the_weights_and_patterns_say():
    """Layer 0's latent on layer 1's: by hand, through the residual stream and every head of layer 1."""
    model = build("llama", attention="eager").double()
    d = per_layer("llama", 2)
    graph = attribute(model, IDS, d)
    layer, seen = model.model.layers[1], {}
    hooks = [
        layer.register_forward_pre_hook(lambda m, a: seen.update(before=a[0])),
        layer.post_attention_layernorm.register_forward_pre_hook(lambda m, a: seen.update(between=a[0])),
    ]
    with torch.no_grad():
        pattern = model(**IDS, output_attentions=True).attentions[1][0]  # heads, queries, keys
    for hook in hooks:
        hook.remove()
    before, between = (
        n.weight / (x[0].pow(2).mean(-1, keepdim=True) + n.variance_epsilon).sqrt()
        for n, x in (
            (layer.input_layernorm, seen["before"]),
            (layer.post_attention_layernorm, seen["between"]),
        )
    )
    attn = layer.self_attn
    latents = [i for i, n in enumerate(graph.nodes) if n.kind == LATENT and n.layer == 0]
    targets = [i for i, n in enumerate(graph.nodes) if n.kind == LATENT and n.layer == 1]
    for s in latents[::3]:
        node = graph.nodes[s]
        moved = torch.zeros(7, 32, dtype=torch.float64)
        moved[node.position] = node.value * d[0].decoder[node.index]
        v = (moved * before) @ attn.v_proj.weight.T
        v = v.view(7, 2, 8).repeat_interleave(2, 1)  # two heads of q share one of k and v
        moved = moved + torch.einsum("hqk,khd->qhd", pattern, v).flatten(1) @ attn.o_proj.weight.T
        for t in targets[::3]:
            at = graph.nodes[t]
            truth = (moved * between)[at.position] @ d[1].encoder[at.index]
            assert abs(graph.effects[t, s] - truth) < 2e-6, (at, node)  # norms of llama round to float32
    assert graph.effects[targets][:, latents].abs().max() > 0.05


@pytest.mark.parametrize("family", HOMES)
def test_a_frozen_model_says_the_same(family):
    model = build(family)
    with torch.no_grad():
        plain = model(**IDS).logits
        with frozen():
            assert torch.allclose(model(**IDS).logits, plain, atol=1e-5)


def random_graph(seed=0, latents=20):
    g = torch.Generator().manual_seed(seed)
    nodes = [Node(LATENT, 0, i, 7, 1.0) for i in range(latents)] + [Node(ERROR, 0, i) for i in range(3)]
    nodes += [
        Node(EMBEDDING, 0),
        Node(EMBEDDING, 1),
        Node(LOGIT, 1, index=4, value=0.5),
        Node(LOGIT, 1, index=5, value=0.4),
    ]
    effects = torch.randn(len(nodes), len(nodes), generator=g, dtype=torch.float64)
    order = torch.tensor(
        [latents - i for i in range(latents)] + [99] * 5 + [0, 0]
    )  # logits hear all, latent i those above
    effects *= order[:, None] < order
    return Graph(tuple(nodes), effects, torch.zeros(len(nodes)), effects.sum(1), (8, 9))


def test_influence_and_scores_are_those_of_the_inverse():
    graph = random_graph()
    shares = graph.effects.abs() / graph.effects.abs().sum(1, keepdim=True).clamp(min=1e-10)
    eye = torch.eye(len(shares), dtype=torch.float64)
    flow = graph.weights @ (torch.linalg.inv(eye - shares) - eye)
    assert torch.allclose(graph.influence(), flow)
    assert graph.replacement() == pytest.approx(float(flow[23:25].sum() / flow[20:25].sum()))
    out = flow + graph.weights
    assert graph.completeness() == pytest.approx(float(((1 - shares[:, 20:23].sum(1)) * out).sum() / out.sum()))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_pruning_keeps_the_share_and_leaves_nobody_hanging(share):
    graph = random_graph()
    small = graph.prune(share, 0.9)
    assert 4 < len(small.nodes) < len(graph.nodes)
    assert small.nodes[-4:] == graph.nodes[-4:]  # tokens and logits stay
    inner, latents = small.of(LATENT, ERROR), small.of(LATENT)
    assert (small.effects != 0).any(0)[inner].all() and (small.effects != 0).any(1)[latents].all()
    flow = graph.influence()
    best = flow.sort(descending=True).values
    kept = flow[[graph.nodes.index(n) for n in small.nodes if n.kind == LATENT]]
    n = int((best.cumsum(0) < share * best.sum()).sum()) + 1
    assert (kept >= best[n - 1]).all()
    assert len(graph.prune(1.0, 1.0).nodes) == len(graph.nodes)
    with pytest.raises(ValueError, match="nodes=80.0: expected a share"):
        graph.prune(80.0)


def test_a_floor_leaves_rows_out_and_no_influence_of_the_rest_is_lost():
    model = build("gpt2").double()
    whole, part = (attribute(model, IDS, per_layer("gpt2", 2), floor=f) for f in (0.0, 0.01))
    flow = whole.influence()
    empty = part.of(LATENT) & (part.effects == 0).all(1)
    assert 0 < empty.sum() < part.of(LATENT).sum()
    last = torch.tensor([n.kind == LATENT and n.layer == 1 for n in part.nodes])
    assert torch.equal(empty[last], flow[last] < 0.01)
    rest = ~empty
    assert torch.allclose(part.effects[rest], whole.effects[rest], atol=1e-7)


def test_the_file_is_what_viewers_ask_for(tmp_path):
    model = build("llama").double()
    graph = attribute(model, IDS, per_layer("llama", 2)).prune()
    write_graph(graph, tmp_path / "one.json", [f" w{i}" for i in range(7)], "tiny", threshold=0.8)
    said = json.loads((tmp_path / "one.json").read_text())
    assert set(said) == {"metadata", "qParams", "nodes", "links"}
    assert said["metadata"]["slug"] == "one" and said["metadata"]["prompt_tokens"][2] == " w2"
    ids = [n["node_id"] for n in said["nodes"]]
    assert len(set(ids)) == len(ids) == len(graph.nodes)
    assert all(
        {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"} <= set(n) for n in said["nodes"]
    )
    assert all(e["source"] in ids and e["target"] in ids and e["weight"] for e in said["links"])
    node = next(n for n in said["nodes"] if n["feature_type"] == LATENT and n["layer"] == "1")
    layer, latent, at = map(int, node["node_id"].split("_"))
    assert node["feature"] == (layer + latent) * (layer + latent + 1) // 2 + latent and node["ctx_idx"] == at
    assert sum(n["is_target_logit"] for n in said["nodes"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["one.json"]
    with pytest.raises(ValueError, match="one text for each token"):
        write_graph(graph, tmp_path / "two.json", ["w"], "tiny")


def test_what_cannot_be_done_is_a_sentence():
    model = build("llama").double()
    two = {"input_ids": IDS["input_ids"].expand(2, 7)}
    with pytest.raises(ValueError, match="2 prompts: a graph is of one"):
        attribute(model, two, per_layer("llama", 2))
    with pytest.raises(ValueError, match="no module 'layers.7.mlp'"):
        attribute(model, IDS, [transcoder(("layers.7.mlp:in",), ("layers.7.mlp",))])
    with pytest.raises(ValueError, match="reads one site"):
        attribute(model, IDS, [transcoder((), ())])
