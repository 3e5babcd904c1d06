"""Cross entropy recovered against L0: many selections at many budgets on one stream of activations, and what papers claim of it.

`python -m bench.features.frontier --device cuda` learns and judges them all (in parts: `--part 0/4`, ...) into
results/frontier-*.json (`--part 4/1 --jobs adaptive_k:4 ...` adds some); `python -m bench.features.frontier --table` writes docs/dictionaries.md and its figure from these.
"""

import argparse
import json
import pathlib
import platform
import time
from dataclasses import replace

import torch

HERE = pathlib.Path(__file__).parent
KS = (4, 8, 16, 32, 64)
METHODS = (
    *("top_k", "batch_top_k", "abs_top_k", "feature_choice", "mutual_choice", "matryoshka"),
    *("relu_l1", "gated", "jump_relu", "prox", "top_afa", "matching_pursuit"),
)
SITE, BATCH, LENGTH, TEST = "layers.4", 2048, 256, 64
RATES = (0.003, 0.01)  # each is learnt at both, and the one is judged that misses less of unseen text


def jobs(named: list[str]) -> list[tuple[str, int]]:
    """Each method at each budget, the slow ones spread; HierarchicalTopK once, for all budgets. Or some, as in `top_k:8`."""
    if named:
        return [(name, int(k)) for name, k in (job.split(":") for job in named)]
    return [*((name, k) for k in KS for name in METHODS), ("hierarchical_top_k", max(KS))]


def text(tokens: int):
    from fewer.data import corpus, every_window
    from fewer.models import locate, tokenizer_of
    from fewer.train.dictionaries import HELD

    tokenizer = tokenizer_of(locate("bundled"))
    seen = [*corpus("stdlib", "calibration"), *corpus("stdlib", "validation")]
    ids = every_window(seen, tokenizer, LENGTH, -(-(tokens + HELD * BATCH) // LENGTH), 0)
    later = HELD * BATCH // LENGTH if tokens > HELD * BATCH else len(ids) // 5
    test = every_window(corpus("stdlib", "test"), tokenizer, LENGTH, TEST, 0)
    return ids[:-later], ids[-later:], test, frozenset(tokenizer.all_special_ids)


def read(model, ids, leave, device):
    """What the site says at every token that is not left alone."""
    from fewer.models import find_taps
    from fewer.models.tap import activations, all_but

    taps = find_taps(model, [SITE])
    real = all_but(leave)(ids)
    with torch.no_grad():
        parts = [
            activations(model, taps, some)[keep].float()
            for some, keep in zip(ids.split(32), real.split(32), strict=True)
        ]
    return torch.cat(parts).to(device)


def measure(mine: list[tuple[str, int]], tokens: int, device: str, latents: int) -> dict:
    from fewer.core import budget, find
    from fewer.dictionaries.judge import judge
    from fewer.models import open_model
    from fewer.train import Lesson, Pupil, Rows, learn

    model, _ = open_model("bundled", device)
    ids, later, test, leave = text(tokens)
    rows, unseen = (read(model, some, leave, device) for some in (ids, later))
    pupils = [Pupil(find(f"features/{name}")(), budget(str(k)), latents) for name, k in mine]
    began = time.monotonic()
    steps, sites = max(1, tokens // BATCH), {SITE: rows.shape[1]}
    tried = [
        learn(pupils, Rows(rows, BATCH), Lesson(steps, rate), sites, told=_told(began), unseen=Rows(unseen, BATCH))
        for rate in RATES
    ]
    spent, found = time.monotonic() - began, []
    for (name, k), *each in zip(mine, *tried, strict=True):
        left = [missed(d, unseen) for d in each]
        rate, d = min(zip(left, RATES, each, strict=True), key=lambda tried: tried[0])[1:]
        for level in KS if name == "hierarchical_top_k" else (k,):
            served = replace(d, budget=budget(str(level)))
            for row in judge(served, model, test, leave, batch=16, controls=name == "top_k"):
                if row["name"] == "dictionary" or name == "top_k":
                    found.append(
                        {"method": name if row["name"] == "dictionary" else row["name"], "k": level, "rate": rate} | row
                    )
        print(name, k, rate, [round(x, 4) for x in left], f"{time.monotonic() - began:.0f} s", flush=True)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    about = {"device": where, "torch": torch.__version__, "python": platform.python_version(), "tokens": len(rows)}
    return {
        "about": about | {"latents": latents, "steps": steps, "rates": RATES, "learning_s": round(spent)},
        "rows": found,
    }


def missed(d, x) -> float:
    """The share of the variance that is missed: what chooses the rate, on text that no test reads."""
    from fewer.measure import reconstruction

    coded = ((some, d.encode(some)) for some in x.split(BATCH))
    return reconstruction((some, d.decode(codes, some), codes) for some, codes in coded).fvu.value


def _told(began: float):
    def told(row):
        if row["step"] in (10, 100) or row["step"] % 250 == 0:
            print(f"[{row['step']}/{row['steps']}] {time.monotonic() - began:.0f} s", flush=True)

    return told


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--part", default="0/1")
    ask.add_argument("--jobs", nargs="*", default=[], help="these alone, as METHOD:K, into frontier-PART.json")
    ask.add_argument("--tokens", type=int, default=2_000_000)
    ask.add_argument("--latents", type=int, default=4096)
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    ask.add_argument("--table", action="store_true", help="write the page from what was measured")
    a = ask.parse_args()
    if a.table:
        from bench.features._page import page

        page([json.loads(file.read_text()) for file in sorted(a.out.glob("frontier-*.json"))])
        return
    part, parts = map(int, a.part.split("/"))
    mine = jobs(a.jobs) if a.jobs else jobs([])[part::parts]
    found = measure(mine, a.tokens, a.device, a.latents)
    (a.out / f"frontier-{part}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
