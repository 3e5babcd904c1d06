"""What a gate has learnt, in the attention's mass that is read: `python -m bench.attention.learnt_mass`.

SeerAttention's gate is distilled on the bundled model, frozen, for some steps on text for calibration (`fewer.train.Distilled`), and
then judged as in `kept_mass`, in prefill on text that it has not seen, beside itself before the first step, the means of blocks,
random blocks and the oracle, at equal budgets. Writes results/learnt_mass.json.
"""

import argparse
import json
import pathlib
import tempfile
import time

import torch

from bench.attention.kept_mass import BUDGETS, Tally, ask, queries_and_keys
from fewer.attention.bi_level import BiLevel
from fewer.attention.seer import Seer

OUT = pathlib.Path(__file__).parent / "results" / "learnt_mass.json"


def main() -> None:
    from fewer.core import budget
    from fewer.data import corpus, windows
    from fewer.models import open_model
    from fewer.train import Cosine, Distilled, Training

    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--steps", type=int, default=60)
    said.add_argument("--rate", type=float, default=1e-3)
    said.add_argument("--length", type=int, default=1024)
    said.add_argument("--windows", type=int, default=4)
    said.add_argument("--out", type=pathlib.Path, default=OUT)
    a = said.parse_args()
    start, (model, tokenizer) = time.time(), open_model("bundled")
    model = model.float()
    text = windows(corpus("stdlib", "calibration"), tokenizer, a.length, a.steps, 0)
    first = Seer(rows=64, block=16, gate=64)
    with tempfile.TemporaryDirectory() as place:
        how = Training(a.steps, Cosine(a.rate, a.rate / 10))
        job = Distilled(model, pathlib.Path(place) / "gate.safetensors", "*.2.*,*.5.*,*.8.*", how)
        gate = job.fit(first, budget("10%"), list(text.split(1)))
        log = [
            json.loads(line)["loss"]
            for line in (pathlib.Path(place) / "gate.safetensors.jsonl").read_text().splitlines()
        ]
        gates = {layer: gate.at(f"model.layers.{layer}.self_attn") for layer in (2, 5, 8)}
    spent = time.time() - start
    tally = Tally()
    for window, ids in enumerate(windows(corpus("stdlib", "test"), tokenizer, a.length, a.windows, 0)):
        for layer, (q, k) in queries_and_keys(model, ids[None]).items():
            some = {"seer learnt": gates[layer], "seer untrained": first, "bi_level": BiLevel(rows=64, block=16)}
            ask(tally, "prefill", window, some, q, k, a.length // 2)
    rows = [
        {"method": name, "budget": text, "kept": kept.value, "low": kept.low, "high": kept.high}
        for (_, name, _, text), kept, _ in tally.rows()
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        print(f"{name:16}", "  ".join(f"{r['budget']:>5} {r['kept']:.3f}" for r in rows if r["method"] == name))
    found = {
        "model": "bundled",
        "torch": torch.__version__,
        "steps": a.steps,
        "length": a.length,
        "seconds_of_learning": round(spent),
    }
    found |= {"loss": [sum(log[:5]) / 5, sum(log[-5:]) / 5], "windows": a.windows, "budgets": BUDGETS, "rows": rows}
    a.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
