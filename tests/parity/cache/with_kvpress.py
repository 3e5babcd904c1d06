"""Runs in kvpress' environment: what each press keeps of one random Llama's layers. Arguments: where to write, tokens."""

import sys

import kvpress as kp
import torch
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

OUT, N = sys.argv[1], int(sys.argv[2])
LAYERS, HEADS, KV, DIM = 3, 4, 2, 16
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": DIM,
    "vocab_size": 4096,
    "max_position_embeddings": 4096,
}


def build(how):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation=how)).eval()
    with torch.no_grad():
        for layer in model.model.layers:  # keys with a common part and attention that is not flat, as in trained models
            a = layer.self_attn
            for w in (a.q_proj.weight, a.k_proj.weight, a.v_proj.weight, a.o_proj.weight):
                w.mul_(8.0)
    return model


MODELS = {how: build(how) for how in ("sdpa", "eager")}
IDS = torch.randperm(4096, generator=torch.Generator().manual_seed(1))[None, :N]  # so that values are told apart
GATES = torch.rand(LAYERS, KV, generator=torch.Generator().manual_seed(2))
FILTERS = torch.randn(LAYERS, KV, DIM, generator=torch.Generator().manual_seed(3))
saved = {"gates": GATES, "filters": FILTERS}


def look():
    """Queries and keys as attention sees them, values, output projections."""
    model, seen = MODELS["sdpa"], {}

    def hook(module, args, kwargs, output):
        x, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
        q = module.q_proj(x).view(1, N, HEADS, DIM).transpose(1, 2)
        seen[module.layer_idx] = apply_rotary_pos_emb(q, q, cos, sin)[0]

    hooks = [layer.self_attn.register_forward_hook(hook, with_kwargs=True) for layer in model.model.layers]
    cache = DynamicCache()
    model.model(IDS, past_key_values=cache)
    for h in hooks:
        h.remove()
    for i, layer in enumerate(cache.layers):
        w = model.model.layers[i].self_attn.o_proj.weight
        saved.update({f"q.{i}": seen[i], f"k.{i}": layer.keys, f"v.{i}": layer.values})
        saved[f"o.{i}"] = w.T.reshape(HEADS, DIM, -1)
    saved["frequency"] = model.model.rotary_emb.inv_freq


def seeded(press):
    score = press.score

    def again(*args, **kwargs):
        torch.manual_seed(0)
        return score(*args, **kwargs)

    press.score = again
    return press


def fixed(press, **fields):
    press.post_init_from_model = lambda model: None
    for name, value in fields.items():
        setattr(press, name, value)
    return press


def keep(name, press, how="sdpa", keys=False):
    model, cache = MODELS[how], DynamicCache()
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None
    with kp.BasePress.__call__(press, model):
        model.model(IDS, past_key_values=cache, output_attentions=how == "eager")
    out = torch.zeros(LAYERS, KV, N, dtype=torch.bool)
    for i, layer in enumerate(cache.layers):
        masked = getattr(model.model.layers[i].self_attn, "masked_key_indices", None)
        if masked is not None:
            out[i] = True
            out[i][masked[1], masked[2]] = False
            continue
        whole = saved[f"v.{i}"][0]
        for h in range(KV):
            far = torch.cdist(layer.values[0, h], whole[h], compute_mode="donot_use_mm_for_euclid_dist")
            out[i, h, far.argmin(-1)] = True
            assert out[i, h].sum() == layer.values.shape[2], name
        if keys:
            saved[f"turned.{i}"] = layer.keys
    saved[f"keep.{name}"] = out


def main():
    look()
    snap, norm = kp.SnapKVPress, kp.KnormPress
    flat = {"use_vnorm": False}
    for r, ratio in (("50%", 0.5), ("25%", 0.75)):
        for name, press in {
            "Knorm": norm(ratio),
            "StreamingLLM": kp.StreamingLLMPress(ratio),
            "SnapKV": snap(ratio),
            "SnapKV window 16 kernel 7": snap(ratio, window_size=16, kernel_size=7),
            "TOVA": kp.TOVAPress(ratio),
            "ExpectedAttention": kp.ExpectedAttentionPress(ratio),
            "ExpectedAttention no covariance": kp.ExpectedAttentionPress(ratio, use_covariance=False),
            "ExpectedAttention no values": kp.ExpectedAttentionPress(ratio, **flat),
            "ExpectedAttention epsilon": kp.ExpectedAttentionPress(ratio, epsilon=0.02),
            "KeyDiff": kp.KeyDiffPress(ratio),
            "QFilter": fixed(kp.QFilterPress(ratio), q_filters=FILTERS),
            "NonCausalAttn": kp.NonCausalAttnPress(ratio, chunk_size=100),
            "LeverageScore": seeded(kp.LeverageScorePress(ratio)),
            "CUR": kp.CURPress(ratio),
            "ChunkKV of SnapKV": kp.ChunkKVPress(snap(ratio)),
            "ChunkKV of Knorm": kp.ChunkKVPress(norm(ratio)),
            "Chunk of Knorm": kp.ChunkPress(norm(ratio), chunk_length=100),
            "Chunk of KeyDiff": kp.ChunkPress(kp.KeyDiffPress(ratio), chunk_length=100),
            "Block of KeyDiff": kp.BlockPress(kp.KeyDiffPress(ratio), block_size=32),
            "CriticalKV of SnapKV": kp.CriticalKVPress(snap(ratio)),
            "CriticalKV of ExpectedAttention": kp.CriticalKVPress(kp.ExpectedAttentionPress(ratio, **flat)),
            "AdaKV of SnapKV": kp.AdaKVPress(snap(ratio)),
            "AdaKV of Knorm": kp.AdaKVPress(norm(ratio)),
            "CriticalAdaKV of SnapKV": kp.CriticalAdaKVPress(snap(ratio)),
            "Finch": fixed(kp.FinchPress(ratio, rerotate_keys=False), window_size=32),
        }.items():
            keep(f"{name}/{r}", press)
        compactor = kp.CompactorPress(ratio, chunk_size=(N - 12) // 4)
        seeded(compactor._leverage_press)
        keep(f"Compactor/{r}", compactor)
        keep(f"ObservedAttention/{r}", kp.ObservedAttentionPress(ratio), how="eager")
    keep("LagKV/50%", kp.LagKVPress(0.5))
    keep("LagKV across/50%", kp.LagKVPress(0.5, cross_scoring=True))
    keep("PyramidKV/50%", kp.PyramidKVPress(0.5, window_size=8, beta=5))
    keep("KeyRerotation of Knorm/50%", kp.KeyRerotationPress(norm(0.5)), keys=True)
    streams = torch.zeros(GATES.numel(), dtype=torch.bool)
    streams[GATES.flatten().argsort()[: GATES.numel() // 2]] = True
    duo = kp.DuoAttentionPress(head_compression_ratio=0.5)
    duo = fixed(duo, streaming_mask=streams.view_as(GATES), sink_size=8, recent_size=32)
    keep("DuoAttention/220", duo)
    save_file({k: v.detach().clone().contiguous() for k, v in saved.items()}, OUT)


with torch.no_grad():
    main()
