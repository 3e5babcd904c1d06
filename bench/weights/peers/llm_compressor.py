"""llm-compressor 0.13 on a model and tokens: `python llm_compressor.py METHOD PATTERN BATCH MODEL TOKENS OUT`."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from _spent import SMALL, spent

METHODS = {"sparse_gpt": SparseGPTModifier, "wanda": WandaPruningModifier}
PATTERNS = {"50%": "0:0", "2:4": "2:4"}


def main(method: str, pattern: str, batch: str, place: str, tokens: str, out: str) -> None:
    """Prune the model in memory, and write what it became and what that cost."""
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place)
    ids = load_file(tokens)["ids"]
    words = {"sparsity": 0.5, "mask_structure": PATTERNS[pattern], "targets": ["Linear"], "ignore": ["re:.*lm_head"]}

    def call(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
        rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
        oneshot(
            model=model,
            dataset=rows,
            processor=tokenizer,
            recipe=[METHODS[method](**words)],
            batch_size=int(batch),
            num_calibration_samples=len(ids),
            max_seq_length=ids.shape[1],
            shuffle_calibration_samples=False,
        )

    small = LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=model.config.vocab_size)).eval()
    call(small, ids[:2, :64])  # imports what is imported late
    told = spent(lambda: call(model, ids))
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, out)
    print("spent:", json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
