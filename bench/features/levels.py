"""One HierarchicalTopK beside a TopK for each k: `python -m bench.features.levels --device cuda` writes results/levels.json.

The share of the variance missed on unseen text at k = 8, 16, 32, 64; the same stream, each at several rates, of which the best counts
(for the one dictionary: by the mean over its k). Short and long runs, all prefixes and only the four levels that are served.
"""

import argparse
import json
import pathlib
from dataclasses import replace

import torch

from bench.features.frontier import BATCH, SITE, missed, read, text

KS, RATES = (8, 16, 32, 64), (0.003, 0.01, 0.02)
OUT = pathlib.Path(__file__).parent / "results" / "levels.json"


def one_run(tokens: int, rows: torch.Tensor, unseen: torch.Tensor, latents: int) -> dict:
    from fewer.core import budget
    from fewer.features.hierarchical_top_k import HierarchicalTopK
    from fewer.features.top_k import TopK
    from fewer.train import Lesson, Pupil, Rows, learn

    one = {"all prefixes": HierarchicalTopK(), "four levels": HierarchicalTopK((1 / 8, 1 / 4, 1 / 2, 1.0))}
    pupils = [Pupil(TopK(), budget(str(k)), latents) for k in KS]
    pupils += [Pupil(m, budget(str(max(KS))), latents) for m in one.values()]
    found: dict[str, dict[float, list[float]]] = {}
    for rate in RATES:
        steps, sites = tokens // BATCH, {SITE: rows.shape[1]}
        each = learn(pupils, Rows(rows, BATCH), Lesson(steps, rate), sites, unseen=Rows(unseen, BATCH))
        found.setdefault("own", {})[rate] = [missed(d, unseen) for d in each[: len(KS)]]
        for name, d in zip(one, each[len(KS) :], strict=True):
            served = [replace(d, budget=budget(str(k))) for k in KS]
            found.setdefault(name, {})[rate] = [missed(d, unseen) for d in served]
        print(tokens, rate, {name: [round(x, 4) for x in by[rate]] for name, by in found.items()}, flush=True)
    own = [min(by) for by in zip(*found["own"].values(), strict=True)]
    best = {name: min(by.values(), key=sum) for name, by in found.items() if name != "own"}
    over = {name: [round(a / b - 1, 4) for a, b in zip(by, own, strict=True)] for name, by in best.items()}
    return {"k": KS, "fvu": found, "over the best of its own": over}


def main() -> None:
    from fewer.models import open_model

    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--latents", type=int, default=4096)
    ask.add_argument("--tokens", type=int, nargs="+", default=[2_000_000, 16_000_000])
    ask.add_argument("--out", type=pathlib.Path, default=OUT)
    a = ask.parse_args()
    model, _ = open_model("bundled", a.device)
    ids, later, _, leave = text(min(a.tokens))
    rows, unseen = (read(model, some, leave, a.device) for some in (ids, later))
    where = torch.cuda.get_device_name() if a.device == "cuda" else "CPU"
    found: dict = {"device": where, "torch": torch.__version__, "distinct": len(rows), "latents": a.latents}
    for tokens in a.tokens:
        found[f"{tokens:,} tokens"] = one_run(tokens, rows, unseen, a.latents)
        print(found[f"{tokens:,} tokens"]["over the best of its own"], flush=True)
        a.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
