"""What a model that learnt to compute less loses: density against held-out loss, beside the dense fine-tune and choices without training.

    python -m bench.activations.trained [--model DIR] [--device cuda] [--steps 300] [--batch 8] [--out FILE]

Every model learns from the same windows of text, in the same order, for as many steps, at the same rate. The loss is that of held-out
modules of the standard library, nats a token; `density` is the share of the gated inputs that were computed, `on` that of hidden neurons
that are not zero.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import fewer
from fewer.core.budget import budget
from fewer.core.spell import method_of
from fewer.data import corpus, windows
from fewer.measure import mean, nll
from fewer.models import locate, open_model, sites, tokenizer_of
from fewer.models.activation import put_activation
from fewer.models.tap import Tap, tapped
from fewer.recipe import apply
from fewer.train import Cosine, Training, Tuned

ALL, MLP = "q,k,v,o,gate,up,down", "mlp"
DENSITIES = ("50%", "30%")
# what is trained: (gate while learning, budget, where, activation); then how it is used: (gate, where, cut)
FREE = [("random", ALL), ("magnitude", ALL), ("random", MLP), ("cats", MLP)]
TRAINED: list[tuple[str, str, str, str | None]] = [
    ("q_sparse", "100%", ALL, None),  # plain fine-tuning
    *((g, d, ALL, None) for d in DENSITIES for g in ("q_sparse", "magnitude")),
    *(("cats", d, MLP, None) for d in DENSITIES),
    ("q_sparse", "100%", ALL, "relu"),
    ("pro_sparse", "100%", MLP, "relu"),
    ("pro_sparse(stages=1)", "100%", MLP, "relu"),
    ("deft", "100%", MLP, "relu"),
    ("q_sparse", "100%", ALL, "relu2"),
    ("q_sparse", "50%", ALL, "relu2"),
]


def uses(gate: str, share: str, where: str, act: str | None) -> list[tuple[str, str, str]]:
    """How a model is judged: (step, budget, where)."""
    whole = [("dense", "100%", "*")]
    if share != "100%":
        return [(gate, share, where)]
    if act is not None:
        return whole + [("cats", f"{d}{cut}", MLP) for d in DENSITIES for cut in ("", " + threshold")]
    return whole + [(g, d, w) for g, w in FREE for d in DENSITIES]


def taught(
    dense: nn.Module, job: tuple[str, str, str, str | None], out: Path, batches: Sequence[Tensor], how: Training
) -> nn.Module:
    gate, share, where, act = job
    if act is not None:
        put_activation(dense, act)
    method = method_of(f"activations/{gate}", "activations")
    Tuned(dense, out, apply, where, how, weights=True, force=True).fit(method, budget(share), list(batches))
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).to(next(dense.parameters()).device).eval()


@contextlib.contextmanager
def using(model: nn.Module, use: tuple[str, str, str], data: Tensor) -> Iterator[Any]:
    gate, share, where = use
    if gate == "dense":
        yield None
    else:
        with fewer.apply(model, f"activations/{gate} {share} @ {where}", data) as applied:
            yield applied


def on(model: nn.Module, tokens: Tensor) -> float:
    """The share of hidden neurons that are not zero."""
    taps, shares = [Tap(s.name, hears=True) for s in sites(model, "down")], []
    with torch.no_grad(), tapped(model, taps) as seen:
        model(input_ids=tokens[:4])
        shares = [(seen[t] != 0).float().mean().item() for t in taps]
    return sum(shares) / len(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("model", "bundled"), ("device", "cpu"), ("out", "trained.jsonl")):
        parser.add_argument(f"--{name}", default=default)
    for name, count in (("steps", 300), ("batch", 8), ("length", 256), ("held", 32)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--only", default="", help="Gates to train, with commas.")
    a = parser.parse_args()
    tokenizer = tokenizer_of(locate(a.model))
    text = windows(corpus("stdlib", "calibration"), tokenizer, a.length, 1024, 0)
    held = windows(corpus("stdlib", "test"), tokenizer, a.length, a.held, 1).to(a.device)
    how = Training(a.steps, Cosine(a.rate, a.rate / 10))
    with tempfile.TemporaryDirectory() as place, Path(a.out).open("w") as rows:
        for number, job in enumerate(TRAINED):
            if a.only and job[0] not in a.only.split(","):
                continue
            start = time.monotonic()
            dense = open_model(a.model, a.device)[0].float()
            model = taught(dense, job, Path(place) / str(number), text.split(a.batch), how)
            seconds = time.monotonic() - start
            for use in uses(*job):
                with using(model, use, text[:16].to(a.device)) as applied:
                    e = mean(nll(model, held).cpu())
                kept = [c.kept for c in applied.changes] if applied else [1.0]
                row = {
                    "learnt": " ".join(w for w in (job[0], job[1], job[3]) if w), "where": job[2], "used": " ".join(use[:2]),
                    "used_where": use[2], "loss": e.value, "low": e.low, "high": e.high, "density": sum(kept) / len(kept),
                    "on": on(model, held), "seconds": seconds, "steps": a.steps, "device": a.device,
                }  # fmt: skip
                print(json.dumps(row), file=rows, flush=True)
                print(
                    f"{row['learnt']:32} {row['used']:18} {use[2][:5]:6} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}] on {row['on']:.1%} {seconds:.0f} s"
                )


if __name__ == "__main__":
    main()
