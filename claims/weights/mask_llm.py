"""MaskLLM (Fang et al. 2024): masks learned through the whole model's loss, the weights frozen."""

from dataclasses import dataclass
from pathlib import Path

from fewer.recipe.claims import Better
from fewer.recipe.results import folder

FILE = folder() / "claim-mask_llm-2of4.npz"
LEARN = f'train weights/mask_llm 2:4 bundled -o {FILE} --prior "weights/sparse_gpt 2:4"'


@dataclass(frozen=True)
class LearntBetter(Better):
    """`Better`, with masks that are learnt first, in minutes, by the command a user would write; kept for the next time."""

    def prepare(self) -> None:
        if not FILE.exists():
            import shlex

            from fewer.cli import main

            Path(FILE.parent).mkdir(parents=True, exist_ok=True)
            if main(shlex.split(LEARN)):
                raise RuntimeError(f"the masks could not be learnt: fewer {LEARN}")


CLAIMS = [
    LearntBetter(
        "weights/mask_llm",
        "At 2:4, learnt masks with frozen weights beat SparseGPT, which moves the weights (LLaMA-2 7B: 6.72 PPL against 10 and more, abstract).",
        ours=f"weights/mask_llm(file={str(FILE)!r}) 2:4",
        baseline="weights/sparse_gpt 2:4",
        why="learnt on 200 steps of 4 windows of 256 tokens, SparseGPT calibrated on 24 of 512: the learner has seen 17 times the text",
    ),
    LearntBetter(
        "weights/mask_llm",
        "At 2:4, learnt masks beat Wanda's, both with frozen weights.",
        ours=f"weights/mask_llm(file={str(FILE)!r}) 2:4",
        baseline="weights/wanda 2:4",
        factor=0.8,
    ),
]
