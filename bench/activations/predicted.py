"""How many of the neurons that will matter a predictor names, beside the token before and chance, and what a model then loses.

    python -m bench.activations.predicted [--model DIR] [--device cuda] [--steps 300] [--batch 8] [--out FILE]

The budget is a share of each MLP's hidden neurons. Recall is the mean over MLPs, on held-out modules; the loss, in nats a token, that of the model
which computes the named neurons alone, beside one that computes the true ones (`cats` sees their gates first).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

import fewer
from fewer.core.budget import budget
from fewer.core.spell import method_of, spell
from fewer.data import corpus, windows
from fewer.measure import mean, nll
from fewer.models import locate, open_model, tokenizer_of
from fewer.train import Cosine, Predicted, Training, recalls

METHODS = ("deja_vu", "shadow")
DENSITIES = ("50%", "30%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("model", "bundled"), ("device", "cpu"), ("out", "predicted.jsonl")):
        parser.add_argument(f"--{name}", default=default)
    for name, count in (("steps", 300), ("batch", 8), ("length", 256), ("held", 16)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--rate", type=float, default=3e-3)
    a = parser.parse_args()
    tokenizer, model = tokenizer_of(locate(a.model)), open_model(a.model, a.device)[0].float()
    text = windows(corpus("stdlib", "calibration"), tokenizer, a.length, 512, 0)
    held = windows(corpus("stdlib", "test"), tokenizer, a.length, a.held, 1).to(a.device)
    how = Training(a.steps, Cosine(a.rate, a.rate / 10))

    def loss(step: str) -> float:
        with fewer.apply(model, f"{step} @ mlp"):
            return mean(nll(model, held).cpu()).value

    with tempfile.TemporaryDirectory() as place, Path(a.out).open("w") as rows:
        for name in METHODS:
            for share in DENSITIES:
                start, file = time.monotonic(), Path(place) / f"{name}-{share[:-1]}.safetensors"
                job = Predicted(model, file, "mlp", how)
                learnt = job.fit(
                    method_of(f"activations/{name}", "activations"), budget(share), list(text.split(a.batch))
                )
                seconds = time.monotonic() - start
                with torch.no_grad():
                    scores = recalls(model, "mlp", held, learnt, budget(share))
                row = {
                    "method": name, "budget": share, "steps": a.steps, "seconds": seconds, "device": a.device,
                    **{kind: sum(s.value for s in some) / len(some) for kind, some in scores.items()},
                    "layers": [s.value for s in scores["predicted"]], "dense": mean(nll(model, held).cpu()).value,
                    "loss": loss(f"{spell(learnt)} {share}"), "cats": loss(f"activations/cats {share}"),
                    "bytes": file.stat().st_size, "model_bytes": 4 * sum(p.numel() for p in model.parameters()),
                }  # fmt: skip
                print(json.dumps(row), file=rows, flush=True)
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
