"""A quarter of the MLP's channels and of the heads of a Llama, taken out for good: `python -m bench.weights.slim [TORCH_PRUNING_PYTHON]`.

A random Llama of 8 layers, d = 512, ff = 1376, 8 query heads on 4 key-value heads. Timed is the whole job from disk to disk; then
the result is opened by our loader and its logits are compared with those of the same model with zeros in place. The other library does
the same in memory, and is given 60 seconds.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fewer

STEPS = ["weights/channel_norm 75% @ mlp", "weights/channel_norm 75% @ attention"]
LIMIT = 60  # seconds for the other library


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("python", nargs="?", help="an interpreter that has torch-pruning and transformers")
    given = read.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, vocab_size=8192)  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    ids = torch.randint(8192, (2, 64))
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(f"{place}/dense")
        start = time.perf_counter()
        fewer.sparsify(f"{place}/dense", STEPS, ids, out=f"{place}/slim")
        seconds = time.perf_counter() - start
        slim = fewer.load(f"{place}/slim")
        with fewer.apply(model, STEPS, ids):
            apart = (slim(ids).logits - model(ids).logits).abs().max().item()
        weights = [sum(p.numel() for p in m.parameters()) for m in (model, slim)]
        row = {"seconds": seconds, "weights": weights, "largest difference of logits": apart}
        if given.python:
            row["torch-pruning"] = theirs(given.python, f"{place}/dense")
    print(json.dumps(row))


def theirs(python: str, place: str) -> str:
    """How long the other library takes, or that it was not done in time, or what it said."""
    script = Path(__file__).parent / "peers" / "torchpruning.py"
    try:
        done = subprocess.run([python, str(script), place], capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return f"not done in {LIMIT} s"
    return f"{float(done.stdout):.1f} s" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
