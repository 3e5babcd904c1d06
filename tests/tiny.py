"""Tiny random models of each family, built in code: `build("llama")`. No network, under a third of a second each."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForMaskedLM

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    **SIZE,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2, "tie_word_embeddings": False}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4, "decoder_sparse_step": 1}
FALCON = {**TEXT, "num_kv_heads": 2, "new_decoder_architecture": True, "ffn_hidden_size": 48, "alibi": False}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 99, "n_inner": 48}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "activation_function": "relu"}
GEMMA = {**GROUPED, "head_dim": 16, "num_hidden_layers": 3, "sliding_window": 4, "query_pre_attn_scalar": 16}
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
FEW = {"num_local_experts": 4, "num_experts_per_tok": 2}

# family -> (the config's model type, what differs from its defaults)
FAMILIES = {
    "llama": ("llama", GROUPED),
    "llama_tied": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}),
    "mistral": ("mistral", {**GROUPED, "head_dim": 8, "sliding_window": 4}),
    "gemma2": ("gemma2", {**GEMMA, **SLIDING, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {**GEMMA, **SLIDING, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", {**GPT2, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("gpt_neox", {**TEXT, "tie_word_embeddings": False}),
    "falcon": ("falcon", FALCON),
    "opt": ("opt", {**TEXT, **OPT}),
    "phi3": ("phi3", GROUPED),
    "mixtral": ("mixtral", {**GROUPED, **FEW, "head_dim": 8}),
    "qwen2_moe": ("qwen2_moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", {**GROUPED, **EXPERTS, "head_dim": 8}),
    "gpt_oss": ("gpt_oss", {**GROUPED, **FEW, "head_dim": 8, "sliding_window": 4}),
    "bert": ("bert", TEXT),
    "vit": ("vit", {**SIZE, "image_size": 16, "patch_size": 4, "num_labels": 5}),
}
KINDS = {"bert": AutoModelForMaskedLM, "vit": AutoModelForImageClassification}


def build(family: str, seed: int = 0, layers: int | None = None, attention: str | None = None) -> nn.Module:
    """A random model in float32, in eval mode, without gradients; weights large enough that every part speaks."""
    kind, words = FAMILIES[family]
    config = AutoConfig.for_model(kind, **words)
    if layers is not None:
        config.num_hidden_layers = layers
    torch.manual_seed(seed)
    model = KINDS.get(family, AutoModelForCausalLM).from_config(config, attn_implementation=attention)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.1)
    return model.eval().requires_grad_(False)


def batch(family: str, rows: int = 2, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """What `build(family)(**batch(family))` takes."""
    torch.manual_seed(seed)
    if family == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16)}
    return {"input_ids": torch.randint(3, 99, (rows, length))}
