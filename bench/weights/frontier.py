"""Every method of the axis measured on one model, beside dense and random: `python -m bench.weights.frontier OUT.jsonl`.

Pruners at 50 %, 30 % and 2:4, correctors and allocators on Wanda, quantisers on a map that is whole and on Wanda, slimmers
with 75 % and 50 % of the channels, and masks that are learnt first (minutes). Figures on the pages of methods are from here.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from fewer.cli import main as fewer
from fewer.core import find, methods
from fewer.recipe.frontier import Text, frontier
from fewer.recipe.steps import kind

JOINS = {"Corrector": "+", "Allocator": "by"}
WHOLE = ["magnitude + quantise", "magnitude + gptq", "magnitude + spqr"]


def groups() -> list[tuple[list[str], list[str], str]]:
    """What is measured together, at which budgets, and on which maps."""
    short = {n: n.partition("/")[2] for n in methods("weights")}
    of = {k: [short[n] for n in short if kind(find(n)) == k] for k in ("Pruner", "Slimmer", *JOINS)}
    added = [f"wanda {JOINS[k]} {name}" for k in JOINS for name in of[k]]
    return [
        ([*of["Pruner"], *added], ["50%", "30%", "2:4"], "*"),
        (WHOLE, ["100%"], "*"),
        (of["Slimmer"], ["75%", "50%"], "mlp"),
        (["mask_llm(file=masks.npz)"], ["2:4"], "*"),
    ]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("out", type=Path)
    ask.add_argument("--model", default="bundled")
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--jobs", type=int)
    ask.add_argument("--masks", type=Path, help="masks that `fewer train weights/mask_llm 2:4` has learnt already")
    said = ask.parse_args()
    out, model = said.out.absolute(), said.model if said.model == "bundled" else str(Path(said.model).absolute())
    lines: dict[str, str] = {}
    masks = said.masks and said.masks.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that the masks' file is named the same everywhere
        learn = [
            "train",
            "weights/mask_llm",
            "2:4",
            "--model",
            model,
            "-o",
            "masks.npz",
            "--prior",
            "weights/sparse_gpt 2:4",
        ]
        if masks:
            shutil.copy(masks, "masks.npz")
        elif fewer([*learn, "--device", said.device]):
            raise SystemExit("the masks could not be learnt")
        for names, budgets, where in groups():
            points = frontier(model, ("weights",), budgets, names, where, Text(), out="part.jsonl", jobs=said.jobs,
                              device=said.device, found=lambda p: print(p.step or "dense", p.perplexity, p.error or "", flush=True))  # fmt: skip
            told = Path("part.jsonl").read_text(encoding="utf-8").splitlines()
            lines |= {p.step: line for p, line in zip(points, told, strict=True)}
            out.write_text("".join(f"{line}\n" for line in lines.values()), encoding="utf-8")


if __name__ == "__main__":
    main()
