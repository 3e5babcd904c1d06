"""MaskLLM (Fang et al. 2024): masks learned through the whole model's loss, the weights frozen."""

import hashlib
import shlex
from dataclasses import dataclass, replace

from fewer.cli import main
from fewer.recipe.claims import Better
from fewer.recipe.results import folder


@dataclass(frozen=True)
class LearntBetter(Better):
    """`Better`, with masks that are learnt first, in minutes, by the command a user would write; kept for the next time."""

    def prepare(self, model: str, device: str) -> Better:
        folder().mkdir(parents=True, exist_ok=True)
        masks = folder() / f"claim-mask_llm-{hashlib.sha256(model.encode()).hexdigest()[:8]}.npz"
        learn = ["train", "weights/mask_llm", "2:4", "--model", model, "-o", str(masks), "--prior", "weights/sparse_gpt 2:4", "--device", device]  # fmt: skip
        if not masks.exists() and main(learn):
            raise RuntimeError(f"the masks could not be learnt: fewer {shlex.join(learn)}")
        return replace(self, ours=f"weights/mask_llm(file={str(masks)!r}) 2:4")


CLAIMS = [
    LearntBetter(
        "weights/mask_llm",
        "At 2:4, learnt masks with frozen weights beat SparseGPT, which moves the weights (LLaMA-2 7B: 6.72 PPL against 10 and more, abstract).",
        ours="weights/mask_llm 2:4",
        baseline="weights/sparse_gpt 2:4",
        why="learnt on 200 steps of 4 windows of 256 tokens, SparseGPT calibrated on 24 of 512: the learner has seen 17 times the text",
    ),
    LearntBetter(
        "weights/mask_llm",
        "At 2:4, learnt masks beat Wanda's, both with frozen weights.",
        ours="weights/mask_llm 2:4",
        baseline="weights/wanda 2:4",
        factor=0.8,
    ),
]
