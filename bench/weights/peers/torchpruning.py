"""Torch-Pruning on a Llama: `python torchpruning.py MODEL`, a quarter of the MLP's channels and of the heads, by magnitude."""

import sys
import time

import torch
import torch_pruning as tp
from transformers import AutoModelForCausalLM


def main(place: str) -> None:
    """Print the seconds that it takes; whoever starts this waits no longer than a limit."""
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    config, start = model.config, time.perf_counter()
    heads = {}
    for layer in model.model.layers:
        a = layer.self_attn
        heads |= {
            a.q_proj: config.num_attention_heads,
            a.k_proj: config.num_key_value_heads,
            a.v_proj: config.num_key_value_heads,
        }
    pruner = tp.pruner.MetaPruner(
        model,
        {"input_ids": torch.arange(64)[None]},
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.25,
        ignored_layers=[model.lm_head],
        num_heads=heads,
        prune_num_heads=True,
        head_pruning_ratio=0.25,
        output_transform=lambda out: out.logits.sum(),
    )
    pruner.step()
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
