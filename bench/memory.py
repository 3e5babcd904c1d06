"""What pruning a model of many layers from disk to disk takes in memory: `python -m bench.memory`.

A random Llama of 48 layers is written to a temporary directory in bfloat16 and pruned by SparseGPT; the peak is what the
process grew by while that ran, compared with the whole model and with one block in float32, in which it computes.
"""

import json
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fewer.measure import peak_memory
from fewer.recipe import sparsify

SIZE = dict(hidden_size=512, intermediate_size=1408, num_attention_heads=8, num_key_value_heads=4, vocab_size=8192)


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=48, **SIZE))
        block = sum(p.numel() for p in model.model.layers[0].parameters()) * 4
        whole = sum(p.numel() for p in model.parameters()) * 4
        model.to(torch.bfloat16).save_pretrained(source)
        del model
        data = torch.randint(8192, (8, 256))
        sparsify(source, "weights/magnitude 50%", out=Path(folder) / "first")  # compilers and imports come before
        peak = peak_memory(lambda: sparsify(source, "weights/sparse_gpt 50%", data, out=Path(folder) / "out"))
    sizes = {"whole model": whole, "one block": block, "peak growth": peak}
    print(json.dumps({name: f"{size / 1e6:.0f} MB" for name, size in sizes.items()}))


if __name__ == "__main__":
    main()
