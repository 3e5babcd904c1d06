"""Dictionaries whose truth is known: how much of it is found, and whether a threshold keeps to k however short the run.

`python -m bench.features.planted` writes results/planted.json. 256 true atoms in 64 dimensions, mean 0.5; 512 latents, k = 12,
batches of 1024, 2000 steps, judged on rows that were not seen; two kinds of data. Ours at default settings, three seeds; random
directions; others that are there (bench/features/beside.py) at the rates 0.001 and 0.003, Adam.
"""

import argparse
import json
import pathlib
import platform
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.nn.functional as F

from bench.features.beside import asked, there
from fewer.core import budget, find
from fewer.features import Dictionary
from fewer.measure import reconstruction
from fewer.measure.planted import Planted
from fewer.train import Lesson, Pupil, Rows, learn

OUT = pathlib.Path(__file__).parent / "results" / "planted.json"
METHODS = ("top_k", "batch_top_k", "matching_pursuit")
K, LATENTS, BATCH, STEPS, SEEDS = 12, 512, 1024, 2000, 3
TRUTH = 40  # no dictionary begins with this seed: its first atoms would be the truth
DATA = {"12 a row, Zipf's law": (12, 1.0), "8 a row, its root": (8, 0.5)}


def learnt(name: str, rows: torch.Tensor, steps: int, k: int = K, seed: int = 0) -> Dictionary:
    """On all rows but the last 40 batches, which settle what inference needs."""
    seen, unseen = rows[: -40 * BATCH], rows[-40 * BATCH :]
    pupil = Pupil(find(f"features/{name}")(), budget(str(k)), LATENTS, seed)
    return learn([pupil], Rows(seen, BATCH), Lesson(steps, seed=seed), unseen=Rows(unseen, BATCH))[0]


def judged(d: Dictionary, truth: Planted, new: torch.Tensor) -> dict:
    codes = d.encode(new)
    r = reconstruction([(new, d.decode(codes), codes)])
    near = (truth.atoms.to(new.device) @ F.normalize(d.decoder, dim=1).T).amax(1)
    return {
        "l0": r.l0.value,
        "fvu": r.fvu.value,
        "mean max cosine": near.mean().item(),
        "atoms above 0.9": (near > 0.9).float().mean().item(),
        "dead": r.dead.value,
    }


def others(rows: torch.Tensor, pool: ThreadPoolExecutor) -> dict[str, Future]:
    """Each in a process of its own."""
    given = {"latents": LATENTS, "batch": BATCH, "steps": STEPS, "device": rows.device.type}
    return {
        f"{name}, rate {rate}": pool.submit(asked, name, python, rows, K, rate=rate, **given)
        for name, python in there()
        for rate in (1e-3, 3e-3)
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--jobs", type=int, default=1, help="others that learn at a time")
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--data", type=int, choices=(0, 1), help="one kind of data alone")
    ask.add_argument("--out", type=pathlib.Path, default=OUT)
    a = ask.parse_args()
    where = torch.cuda.get_device_name() if a.device == "cuda" else platform.machine()
    found: dict = {"torch": torch.__version__, "python": platform.python_version(), "machine": where}
    kinds = [*DATA.items()]
    for data, (active, zipf) in kinds if a.data is None else [kinds[a.data]]:
        truth = Planted.make(256, 64, active, zipf, mean=0.5, seed=TRUTH)
        rows, new = truth.draw(400 * BATCH)[0].to(a.device), truth.draw(64 * BATCH, seed=1)[0].to(a.device)
        table = found.setdefault(data, [])

        def told(who: str, d: Dictionary, truth=truth, new=new, table=table, data=data) -> None:
            table.append({"who": who, **judged(d, truth, new)})
            print(data, {k: round(v, 4) if isinstance(v, float) else v for k, v in table[-1].items()}, flush=True)
            a.out.write_text(json.dumps(found, indent=1) + "\n")

        with ThreadPoolExecutor(a.jobs) as pool:
            theirs = others(rows, pool)
            for name in METHODS:
                for seed in range(SEEDS):
                    told(f"{name}, seed {seed}", learnt(name, rows, STEPS, seed=seed))
            told("directions at first", learnt("top_k", rows, 1))
            for who, future in theirs.items():
                told(who, future.result()[0].to(a.device))
        if data == kinds[0][0]:
            for steps in (20, 50, 200, 1000):
                l0 = (learnt("batch_top_k", rows, steps, k=16).encode(new).value != 0).sum(1).float().mean().item()
                found.setdefault("BatchTopK at 16: L0 by steps", {})[steps] = l0
                print(f"BatchTopK at 16 after {steps} steps: L0 {l0:.2f}", flush=True)
        a.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
