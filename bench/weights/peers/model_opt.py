"""ModelOpt's SparseGPT on a model and tokens: `python model_opt.py 2:4 BATCH MODEL TOKENS OUT`, in an environment with `nvidia-modelopt==0.47.0`."""

import json
import sys
from pathlib import Path

import modelopt.torch.sparsity as mts
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from _spent import spent


def main(pattern: str, batch: str, place: str, tokens: str, out: str) -> None:
    """Prune the model in memory, and write what it became and what that cost."""
    assert pattern == "2:4", "it knows 2:4 alone"
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    batches = [{"input_ids": ids} for ids in load_file(tokens)["ids"].split(int(batch))]
    config = {"data_loader": batches, "collect_func": lambda x: x["input_ids"]}
    left = []
    told = spent(lambda: left.append(mts.export(mts.sparsify(model, "sparsegpt", config))))
    save_file({k: v.contiguous().clone() for k, v in left[0].state_dict().items()}, out)
    print("spent:", json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
