"""Dictionaries whose truth is known: how much of it is found, and whether a threshold keeps to k however short the run.

`python -m bench.features.planted` writes results/planted.json. 256 true atoms in 64 dimensions, Zipf's law, 12 a row, mean 0.5;
512 latents, k = 12, batches of 1024, 2000 steps at default settings, three seeds; judged on rows that were not seen.
"""

import json
import pathlib
import platform

import torch
import torch.nn.functional as F

from fewer.core import budget, find
from fewer.measure import reconstruction
from fewer.measure.planted import Planted
from fewer.train import Lesson, Pupil, Rows, learn

OUT = pathlib.Path(__file__).parent / "results" / "planted.json"
METHODS = ("top_k", "batch_top_k", "matching_pursuit")
K, LATENTS, BATCH, SEEDS = 12, 512, 1024, 3


def learnt(name: str, rows: torch.Tensor, steps: int, k: int = K, seed: int = 0):
    """On all rows but the last 40 batches, which settle what inference needs."""
    seen, unseen = rows[: -40 * BATCH], rows[-40 * BATCH :]
    pupil = Pupil(find(f"features/{name}")(), budget(str(k)), LATENTS, seed)
    return learn([pupil], Rows(seen, BATCH), Lesson(steps, seed=seed), unseen=Rows(unseen, BATCH))[0]


def found(name: str, truth: Planted, rows: torch.Tensor, new: torch.Tensor, seed: int) -> dict:
    d = learnt(name, rows, 2000, seed=seed)
    codes = d.encode(new)
    r = reconstruction([(new, d.decode(codes), codes)])
    near = (truth.atoms @ F.normalize(d.decoder, dim=1).T).amax(1)
    return {
        "method": name,
        "seed": seed,
        "l0": r.l0.value,
        "fvu": r.fvu.value,
        "mean max cosine": near.mean().item(),
        "atoms above 0.9": (near > 0.9).float().mean().item(),
        "dead": r.dead.value,
    }


def main() -> None:
    truth = Planted.make(256, 64, K, mean=0.5)
    rows, new = truth.draw(400 * BATCH)[0], truth.draw(64 * BATCH, seed=1)[0]
    kept = {}
    for steps in (20, 50, 200, 1000):
        d = learnt("batch_top_k", rows, steps, k=16)
        kept[steps] = (d.encode(new).value != 0).sum(1).float().mean().item()
        print(f"BatchTopK at 16 after {steps} steps: L0 {kept[steps]:.2f}", flush=True)
    rows_found = []
    for name in METHODS:
        for seed in range(SEEDS):
            rows_found.append(found(name, truth, rows, new, seed))
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows_found[-1].items()}, flush=True)
    about = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    OUT.write_text(json.dumps({"about": about, "l0 at 16 by steps": kept, "found": rows_found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
