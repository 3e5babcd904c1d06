"""One dictionary learnt by several GPUs, against one alone: what is learnt, and how long a step takes.

`torchrun --nproc-per-node 2 -m bench.features.sharing` writes results/sharing.json.
"""

import itertools
import json
import pathlib
import statistics
import sys
import time

import torch

from fewer.calibrate import launched
from fewer.core import budget
from fewer.features.top_k import TopK
from fewer.train import ByLatents, ByRows, Lesson, Pupil, Rows, learn

SHAPES = {"small": (256, 4096, 32, 2048), "Gemma-2-2B": (2304, 65536, 64, 4096)}  # dim, latents, k, rows
KINDS = {"by rows": ByRows, "by latents": ByLatents}


def rows(dim: int, batch: int, device: str) -> torch.Tensor:
    """Sums of few directions, far from zero."""
    make = torch.Generator(device).manual_seed(0)
    seeds = torch.randn(20 * batch, dim, generator=make, device=device).relu()
    return (seeds * (seeds > 1.5)) @ torch.randn(dim, dim, generator=make, device=device) / dim**0.5 + 1


def once(shape: str, steps: int, half: bool, device: str, **by) -> tuple[torch.Tensor, dict]:
    dim, latents, k, batch = SHAPES[shape]
    told: list[tuple[float, float]] = []
    lesson = Lesson(steps, half=half, dead_after=10 * batch)

    def hear(row):
        told.append((time.perf_counter(), row["loss"]))

    pupil = Pupil(TopK(), budget(str(k)), latents)
    (found,) = learn([pupil], Rows(rows(dim, batch, device), batch), lesson, told=hear, **by)
    gaps = [1e3 * (b - a) for (a, _), (b, _) in itertools.pairwise(told[5:])]
    return found.decoder, {"losses": [x for _, x in told], "step, ms": statistics.median(gaps) if gaps else None}


def main() -> None:
    with launched() as crew:
        device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        found: dict = {"processes": crew.size, "torch": torch.__version__}
        found["device"] = torch.cuda.get_device_name() if device != "cpu" else "cpu"
        for shape, steps, half in (("small", 60, False), ("Gemma-2-2B", 40, True)):
            alone, told = once(shape, steps, half, device)
            found[shape] = {"alone": told}
            for name, kind in KINDS.items():
                decoder, told = once(shape, steps, half, device, by=kind(crew))
                near = (decoder * alone).sum(1) / decoder.norm(dim=1) / alone.norm(dim=1)
                told["rows of the decoder that agree to 1e-4"] = ((1 - near) < 1e-4).float().mean().item()
                told["largest difference"] = (decoder - alone).abs().max().item()
                found[shape][name] = told
            if not crew.rank:
                short = {k: {n: v for n, v in t.items() if n != "losses"} for k, t in found[shape].items()}
                print(
                    shape,
                    json.dumps(short),
                    [t["losses"][-1] for t in found[shape].values() if t["losses"]],
                    flush=True,
                )
        if not crew.rank:
            out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "results")
            (out / "sharing.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
