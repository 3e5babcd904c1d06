"""Forms of dictionaries: files written here by hand, as each tool lays them out, against that tool's formula in float64."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fewer.dictionaries import load, load_all, save
from fewer.features.abs_top_k import AbsTopK
from fewer.features.jump_relu import JumpRelu
from fewer.features.matryoshka import Matryoshka
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_k import TopK

DIM, LATENTS, K = 6, 20, 3
MAKE = torch.Generator().manual_seed(0)
X = torch.randn(40, DIM, generator=MAKE)


def draw(*shape):
    return torch.randn(*shape, generator=MAKE) / 2


def wide(t):
    return {name: x.double() for name, x in t.items()}


def put(folder, note, name, tensors, note_name="cfg.json"):
    folder.mkdir(parents=True)
    (folder / name).parent.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name)
    text = yaml.safe_dump(note) if note_name.endswith("yaml") else json.dumps(note)
    (folder / note_name).write_text(text)
    return folder


def top(pre, k=K, by=None):
    """The k largest of each row, by sorting."""
    order = (pre if by is None else by).argsort(dim=1, descending=True)[:, :k]
    return torch.zeros_like(pre).scatter_(1, order, pre.gather(1, order))


def agrees(d, z, out, x=X):
    """What it says is what the formula says, and somebody speaks."""
    codes = d.encode(x)
    assert (z != 0).sum() > len(x) / 2
    assert torch.allclose(codes.dense().double(), z, atol=2e-5)
    assert torch.allclose(d.decode(codes, x).double(), out, atol=2e-5)


# ---- SAELens: x W_enc with W_enc [in, latents]; the input less b_dec unless it is told not to


def lens(kind, **more):
    meta = {"sae_lens_version": "6.54.12", "model_name": "gpt2-small", "hook_name": "blocks.8.hook_resid_post"}
    if "transcoder" in kind:
        meta |= {"hook_name": "blocks.8.hook_mlp_in", "hook_name_out": "blocks.8.hook_mlp_out"}
        more = {"d_out": DIM, "apply_b_dec_to_input": False} | more
    base = {"architecture": kind, "d_in": DIM, "d_sae": LATENTS, "dtype": "float32", "device": "cpu"}
    return base | {"apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": meta} | more


def weights(**beside):
    return {
        "W_enc": draw(DIM, LATENTS),
        "W_dec": draw(LATENTS, DIM),
        "b_dec": draw(DIM),
        "b_enc": draw(LATENTS),
    } | beside


RULES = {  # architecture -> (what it has beside, who it becomes here, codes of pre-activations)
    "standard": ({}, ReluL1, lambda pre, t: pre.relu()),
    "topk": ({}, TopK, lambda pre, t: top(pre).relu()),
    "abstopk": ({}, AbsTopK, lambda pre, t: top(pre, by=pre.abs())),
    "jumprelu": ({"threshold": draw(LATENTS).abs()}, JumpRelu, lambda pre, t: pre * (pre > t["threshold"])),
    "transcoder": ({}, ReluL1, lambda pre, t: pre.relu()),
    "skip_transcoder": ({"W_skip": draw(DIM, DIM)}, ReluL1, lambda pre, t: pre.relu()),
    "jumprelu_transcoder": ({"threshold": draw(LATENTS).abs()}, JumpRelu, lambda pre, t: pre * (pre > t["threshold"])),
}


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", RULES)
def test_saelens(kind, centred, tmp_path):
    beside, becomes, rule = RULES[kind]
    t, coder = weights(**beside), "transcoder" in kind
    cfg = lens(kind, apply_b_dec_to_input=centred and not coder, **({"k": K} if "topk" in kind else {}))
    d = load(put(tmp_path / "sae", cfg, "sae_weights.safetensors", t))
    w, x = wide(t), X.double()
    z = rule((x - w["b_dec"] * (centred and not coder)) @ w["W_enc"] + w["b_enc"], w)
    agrees(d, z, z @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in t else 0))
    assert type(d.sparsifier) is becomes and str(d.budget) == ("3" if "topk" in kind else "100%")
    place = ("blocks.8.hook_mlp_in",) if coder else ("transformer.h.8",)
    assert d.reads == place and d.writes == (("transformer.h.8.mlp",) if coder else place)
    assert d.about["model"] == "gpt2-small" and d.about["architecture"] == kind


def test_saelens_gated_speaks_by_one_sum_and_says_another(tmp_path):
    t = weights(b_gate=draw(LATENTS), b_mag=draw(LATENTS), r_mag=draw(LATENTS))
    del t["b_enc"]
    d = load(put(tmp_path / "sae", lens("gated"), "sae_weights.safetensors", t))
    w = wide(t)
    x = X.double() - w["b_dec"]
    z = (x @ w["W_enc"] + w["b_gate"] > 0) * (x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    agrees(d, z, z @ w["W_dec"] + w["b_dec"])


def test_saelens_folds_the_lengths_of_rows_into_its_choice(tmp_path):
    t = weights()
    cfg = lens("topk", k=K, rescale_acts_by_decoder_norm=True)
    d = load(put(tmp_path / "sae", cfg, "sae_weights.safetensors", t))
    w = wide(t)
    norm = w["W_dec"].norm(dim=1)
    z = top(((X.double() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm).relu()
    agrees(d, z, (z / norm) @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("centred", [True, False])
def test_saelens_folds_a_scale_of_inputs(centred, tmp_path):
    t, scale = weights(), 2.5
    how = {"normalize_activations": "expected_average_only_in", "apply_b_dec_to_input": centred}
    place = put(tmp_path / "sae", lens("standard", **how), "sae_weights.safetensors", t)
    with pytest.raises(ValueError, match="norm_scaling_factor"):
        load(place)
    (place / "cfg.json").write_text(json.dumps(lens("standard", norm_scaling_factor=scale, **how)))
    w = wide(t)
    z = ((X.double() * scale - w["b_dec"] * centred) @ w["W_enc"] + w["b_enc"]).relu()
    agrees(load(place), z, (z @ w["W_dec"] + w["b_dec"]) / scale)


def test_saelens_before_version_6(tmp_path):
    old = {"hook_point": "blocks.2.hook_resid_pre", "model_name": "pythia-70m", "normalize_activations": False}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "d_in": DIM, "d_sae": LATENTS}
    t = weights(scaling_factor=1 + draw(LATENTS).abs())
    d = load(put(tmp_path / "sae", old, "sae_weights.safetensors", t))
    w = wide(t)
    z = top((X.double() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    agrees(d, z, (z * w["scaling_factor"]) @ w["W_dec"] + w["b_dec"])
    assert d.reads == ("gpt_neox.layers.2:in",)


# ---- sparsify, dictionary_learning


@pytest.mark.parametrize("coder", [False, True])
def test_sparsify_says_no_number_of_latents(coder, tmp_path):
    t = {
        "encoder.weight": draw(LATENTS, DIM),
        "encoder.bias": draw(LATENTS),
        "W_dec": draw(LATENTS, DIM),
        "b_dec": draw(DIM),
    }
    t |= {"W_skip": draw(DIM, DIM)} if coder else {}
    cfg = {"activation": "topk", "expansion_factor": 32, "num_latents": 0, "k": K, "d_in": DIM, "transcode": coder}
    d = load(put(tmp_path / "layers.3.mlp", cfg, "sae.safetensors", t))
    w, x = wide(t), X.double()
    z = top(((x if coder else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu())
    agrees(d, z, z @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if coder else 0))
    assert d.reads == (("layers.3.mlp:in",) if coder else ("layers.3.mlp",)) and d.writes == ("layers.3.mlp",)


def learning(folder, kind, state, **more):
    folder.mkdir()
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": kind, "layer": 3, "lm_name": "EleutherAI/pythia-70m", **more}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return folder


LINEAR = {"encoder.weight": draw(LATENTS, DIM), "encoder.bias": draw(LATENTS), "decoder.weight": draw(DIM, LATENTS)}


@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "BatchTopKSAE", "AutoEncoder", "AutoEncoderNew"])
def test_dictionary_learning(kind, tmp_path):
    said = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
    state = LINEAR | {said: draw(DIM)}
    state |= {"k": torch.tensor(K), "threshold": torch.tensor(0.4)} if "TopK" in kind else {}
    d = load(learning(tmp_path / "ae", kind, state, k=K))
    w = wide(state)
    pre = (X.double() - w[said] * (kind != "AutoEncoderNew")) @ w["encoder.weight"].T + w["encoder.bias"]
    z = {"AutoEncoderTopK": top(pre.relu()), "BatchTopKSAE": pre * (pre > w.get("threshold", 0))}.get(kind, pre.relu())
    norm = w["decoder.weight"].norm(dim=0) if kind == "AutoEncoder" else 1  # their loader makes them of length one
    agrees(d, z * norm, z @ w["decoder.weight"].T + w[said])
    assert d.reads == ("gpt_neox.layers.3",) and d.about["model"] == "EleutherAI/pythia-70m"


@pytest.mark.parametrize(
    "sizes, becomes", [([5, 5, 10], Matryoshka((0.25, 0.5, 1.0))), ([3, 17], Matryoshka((0.15, 1.0)))]
)
def test_dictionary_learning_matryoshka_and_its_threshold_before_it_is_known(sizes, becomes, tmp_path):
    state = weights() | {"k": torch.tensor(K), "threshold": torch.tensor(-1.0), "group_sizes": torch.tensor(sizes)}
    d = load(learning(tmp_path / "ae", "MatryoshkaBatchTopKSAE", state, k=K))
    w = wide(state)
    z = ((X.double() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    agrees(d, z, z @ w["W_dec"] + w["b_dec"])
    assert d.sparsifier == becomes and d.about["group_sizes"] == sizes


def test_dictionary_learning_gated(tmp_path):
    state = {k: v for k, v in LINEAR.items() if k != "encoder.bias"} | {"decoder_bias": draw(DIM)}
    state |= {name: draw(LATENTS) for name in ("r_mag", "gate_bias", "mag_bias")}
    w = wide(state)
    said = (X.double() - w["decoder_bias"]) @ w["encoder.weight"].T
    z = (said + w["gate_bias"] > 0) * (w["r_mag"].exp() * said + w["mag_bias"]).relu()
    d = load(learning(tmp_path / "ae", "GatedAutoEncoder", state))
    agrees(d, z, z @ w["decoder.weight"].T + w["decoder_bias"])


class Boom:
    """What a pickle could do."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def test_no_pickle_runs(tmp_path):
    place = learning(tmp_path / "ae", "AutoEncoderTopK", {"b_dec": Boom()}, k=K)
    with pytest.raises(ValueError, match=r"ae\.pt cannot be read as tensors"):
        load(place)
    scope = tmp_path / "scope"
    scope.mkdir()
    np.savez(scope / "params.npz", W_enc=np.array([Boom()], dtype=object))
    with pytest.raises(ValueError, match=r"params\.npz cannot be read as arrays"):
        load(scope)


# ---- Gemma Scope, Llama Scope


@pytest.mark.parametrize(
    "home", ["gemma-scope-2b-pt-res/layer_20/width_16k/l0_71", "gemma-scope-2b-pt-res/embedding/w/l0_6"]
)
def test_gemma_scope(home, tmp_path):
    t = weights(threshold=draw(LATENTS).abs())
    folder = tmp_path / home
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{("w" + k[1:] if k[0] == "W" else k): v.numpy() for k, v in t.items()})
    d, w = load(folder), wide(t)
    root = math.sqrt(DIM) if "embedding" in home else 1
    pre = X.double() / root @ w["W_enc"] + w["b_enc"]
    z = pre * (pre > w["threshold"])
    agrees(d, z, z @ w["W_dec"] * root + w["b_dec"])
    assert d.reads == (() if "embedding" in home else ("model.layers.20",))


def test_gemma_scope_2_has_its_skip_connection_the_other_way_round(tmp_path):
    t = {k.replace("W", "w"): v for k, v in weights(threshold=draw(LATENTS).abs()).items()}
    t["affine_skip_connection"] = draw(DIM, DIM)
    cfg = {"architecture": "jump_relu", "model_name": "gemma-3-1b-pt", "affine_connection": True}
    cfg["hf_hook_point_in"] = "model.layers.5.pre_feedforward_layernorm.output"
    cfg["hf_hook_point_out"] = "model.layers.5.post_feedforward_layernorm.output"
    d, w = load(put(tmp_path / "t", cfg, "params.safetensors", t, "config.json")), wide(t)
    pre = X.double() @ w["w_enc"] + w["b_enc"]
    z = pre * (pre > w["threshold"])
    agrees(d, z, z @ w["w_dec"] + w["b_dec"] + X.double() @ w["affine_skip_connection"])
    assert d.reads == ("model.layers.5.pre_feedforward_layernorm",)
    assert d.writes == ("model.layers.5.post_feedforward_layernorm",)


def test_llama_scope_scales_inputs_to_sqrt_dim_and_outputs_back(tmp_path):
    t = {"encoder.weight": draw(LATENTS, DIM), "encoder.bias": draw(LATENTS)}
    t |= {"decoder.weight": draw(DIM, LATENTS), "decoder.bias": draw(DIM)}
    cfg = {"d_model": DIM, "d_sae": LATENTS, "jump_relu_threshold": 0.3, "act_fn": "jumprelu"}
    cfg |= {"dataset_average_activation_norm": {"in": 4.0, "out": 8.0}, "hook_point_in": "blocks.7.hook_resid_post"}
    d = load(put(tmp_path / "l7", cfg, "checkpoints/final.safetensors", t, "hyperparams.json"))
    w, scale_in, scale_out = wide(t), math.sqrt(DIM) / 4, math.sqrt(DIM) / 8
    pre = X.double() * scale_in @ w["encoder.weight"].T + w["encoder.bias"]
    z = pre * (pre > 0.3 * scale_in)
    agrees(d, z, (z @ w["decoder.weight"].T + w["decoder.bias"]) / scale_out)
    assert d.reads == ("model.layers.7",) and d.about["model"] == "meta-llama/Llama-3.1-8B"


# ---- circuit-tracer, llamascopium


@pytest.mark.parametrize("jump", [False, True])
def test_circuit_tracer_has_one_transcoder_a_layer(jump, tmp_path):
    note = {"model_kind": "transcoder_set", "model_name": "google/gemma-2-2b"}
    note |= {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    layers = []
    for _ in range(11):  # 10 comes after 9, not after 1
        t = {"W_enc": draw(LATENTS, DIM), "W_dec": draw(LATENTS, DIM), "b_enc": draw(LATENTS), "b_dec": draw(DIM)}
        t |= {"W_skip": draw(DIM, DIM)} | ({"activation_function.threshold": draw(LATENTS).abs()} if jump else {})
        layers.append(t)
    place = put(tmp_path / "set", note, "layer_0.safetensors", layers[0], "config.yaml")
    for i, t in enumerate(layers):
        save_file(t, place / f"layer_{i}.safetensors")
    several = load_all(place)
    for i, (d, t) in enumerate(zip(several, map(wide, layers), strict=True)):
        pre = X.double() @ t["W_enc"].T + t["b_enc"]
        z = pre * (pre > t.get("activation_function.threshold", 0))
        agrees(d, z, z @ t["W_dec"] + t["b_dec"] + X.double() @ t["W_skip"].T)
        assert d.reads == (f"model.layers.{i}.pre_feedforward_layernorm:in",)
        assert d.writes == (f"model.layers.{i}.post_feedforward_layernorm",)
    with pytest.raises(ValueError, match="holds 11 dictionaries: load_all"):
        load(place)
    save(several, tmp_path / "again", format="circuit_tracer")
    for i, t in enumerate(layers):
        again = load_file(tmp_path / "again" / f"layer_{i}.safetensors")
        assert again.keys() == t.keys() and all(torch.equal(again[name], x) for name, x in t.items())
    (place / "layer_4.safetensors").unlink()
    with pytest.raises(ValueError, match=r"layer_4\.safetensors is missing"):
        load_all(place)


def test_circuit_tracer_cross_layer_adds_up(tmp_path):
    place, count, layers = tmp_path / "clt", 3, []
    place.mkdir()
    for i in range(count):
        t = {"W_enc": draw(LATENTS, DIM), "b_enc": draw(LATENTS), "b_dec": draw(DIM), "threshold": draw(LATENTS).abs()}
        t |= {"W_skip": draw(DIM, DIM)}
        atoms = draw(LATENTS, count - i, DIM)
        save_file({f"{name}_{i}": x for name, x in t.items()}, place / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": atoms}, place / f"W_dec_{i}.safetensors")
        layers.append(wide(t | {"W_dec": atoms}))
    several, inputs = load_all(place), [draw(40, DIM) * 2 for _ in range(count)]
    truth, ours = torch.zeros(40, count, DIM, dtype=torch.float64), torch.zeros(40, count * DIM)
    for i, (t, x) in enumerate(zip(layers, inputs, strict=True)):
        pre = x.double() @ t["W_enc"].T + t["b_enc"]
        z = pre * (pre > t["threshold"])
        for j in range(i, count):
            truth[:, j] += z @ t["W_dec"][:, j - i]
        truth[:, i] += t["b_dec"] + x.double() @ t["W_skip"]
        ours[:, i * DIM :] += several[i](x)
    assert torch.allclose(ours.double(), truth.flatten(1), atol=2e-5)
    assert several[1].writes == ("blocks.1.output", "blocks.2.output")
    save(several, tmp_path / "again", format="circuit_tracer_clt")
    for file in place.iterdir():
        again = load_file(tmp_path / "again" / file.name)
        assert all(torch.equal(again[name], x) for name, x in load_file(file).items())


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("scaled", [False, True])
def test_llamascopium(kind, scaled, tmp_path):
    t = {"W_E": draw(DIM, LATENTS), "b_E": draw(LATENTS), "W_D": draw(LATENTS, DIM), "b_D": draw(DIM)}
    t |= {"activation_function.log_jumprelu_threshold": draw(LATENTS)} if kind == "jumprelu" else {}
    norms = {"a": torch.tensor(4.0), "b": torch.tensor(8.0)} if scaled else {}
    t |= {f"dataset_average_activation_norm.{hook}": norm for hook, norm in norms.items()}
    cfg = {"sae_type": "sae", "d_model": DIM, "act_fn": kind, "top_k": K, "hook_point_in": "a", "hook_point_out": "b"}
    cfg |= {"norm_activation": "dataset-wise" if scaled else "inference", "sparsity_include_decoder_norm": True}
    d = load(put(tmp_path / "s", cfg, "sae_weights.safetensors", t, "config.json"))
    w = wide(t)
    scale_in, scale_out = (math.sqrt(DIM) / 4, math.sqrt(DIM) / 8) if scaled else (1.0, 1.0)
    norm, pre = w["W_D"].norm(dim=1), X.double() * scale_in @ w["W_E"] + w["b_E"]
    by = pre * norm
    theta = w.get("activation_function.log_jumprelu_threshold", torch.zeros(1)).exp()
    z = {"relu": pre.relu(), "topk": top(pre, by=by).relu(), "jumprelu": pre * (by > theta)}[kind]
    agrees(d, z / scale_in * (norm if kind == "topk" else 1), (z @ w["W_D"] + w["b_D"]) / scale_out)
    assert d.reads == ("a",) and d.writes == ("b",)
