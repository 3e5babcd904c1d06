"""What pruning a model of many layers from disk to disk takes in memory: `python -m bench.memory`.

A random Llama of 48 layers is written to a temporary directory in bfloat16 and pruned by SparseGPT, and by gradients of the
loss; the peak is what the process grew by while that ran, compared with the whole model and with one block in float32, in
which it computes, and with the hidden states that gradients keep between blocks.
"""

import json
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fewer.calibrate import GradMean, Stats
from fewer.core import Paper, budget, method
from fewer.measure import peak_memory
from fewer.recipe import sparsify
from fewer.recipe.steps import Step
from fewer.weights import ByScore, Weight

SIZE = dict(hidden_size=512, intermediate_size=1408, num_attention_heads=8, num_key_value_heads=4, vocab_size=8192)


@method(Paper("1810.02340", "SNIP: Single-shot Network Pruning based on Connection Sensitivity", 2018))
class Slope(ByScore):
    """Keep what the loss would miss first: |w * dL/dw|. The plainest method that asks for gradients."""

    needs = (GradMean,)

    def score(self, w: Weight, stats: Stats) -> Weight:
        return (w * stats[GradMean].value).abs()


Slope.name = "weights/slope"


def main() -> None:
    torch.manual_seed(0)
    layers, rows, length = 48, 8, 256
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SIZE))
        block = sum(p.numel() for p in model.model.layers[0].parameters()) * 4
        whole = sum(p.numel() for p in model.parameters()) * 4
        model.to(torch.bfloat16).save_pretrained(source)
        del model
        data = torch.randint(8192, (rows, length))
        sparsify(source, "weights/magnitude 50%", out=Path(folder) / "first")  # compilers and imports come before
        peaks = {
            name: peak_memory(lambda step=step, name=name: sparsify(source, [step], data, out=Path(folder) / name))
            for name, step in (("sparse_gpt", "weights/sparse_gpt 50%"), ("gradients", Step(Slope(), budget("50%"))))
        }
    kept = 2 * layers * data.numel() * SIZE["hidden_size"] * 4
    sizes = {"whole model": whole, "one block": block, "hidden states that gradients keep": kept}
    sizes |= {f"peak growth, {name}": peak for name, peak in peaks.items()}
    print(json.dumps({name: f"{size / 1e6:.0f} MB" for name, size in sizes.items()}))


if __name__ == "__main__":
    main()
