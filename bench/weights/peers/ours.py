"""fewer on a model and tokens: `python -m bench.weights.peers.ours METHOD PATTERN BATCH MODEL TOKENS OUT`."""

import json
import sys

from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import fewer
from bench.weights.peers._spent import SMALL, spent
from fewer.models import open_model

STEPS = {  # the peer chooses a mask for 128 columns of all rows: per tensor
    ("wanda", "50%"): "weights/wanda 50%",
    ("wanda", "2:4"): "weights/wanda 2:4",
    ("sparse_gpt", "50%"): "weights/sparse_gpt 50% per tensor",
    ("sparse_gpt", "2:4"): "weights/sparse_gpt 2:4",
}


def main(method: str, pattern: str, batch: str, place: str, tokens: str, out: str) -> None:
    """Prune the model in memory, and write what it became and what that cost; batches are as always here."""
    model, _ = open_model(place)
    ids = load_file(tokens)["ids"]
    small = LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=model.config.vocab_size)).eval()
    fewer.sparsify(small, STEPS[method, pattern], ids[:2, :64])  # imports and compiles what is imported late
    told = spent(lambda: fewer.sparsify(model, STEPS[method, pattern], ids) and None)
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, out)
    print("spent:", json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
