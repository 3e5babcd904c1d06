"""The share of the attention's mass that each method reads, on a real model: `python -m bench.attention.kept_mass`.

Queries and keys (rotated) of the bundled model over windows of standard-library text that it has not seen. Two ways of asking: in
prefill whole windows at once, judged on the second half; in decoding one query at some places of the second half, a group of heads
together. Mass is exact softmax attention, a mean over heads, queries and layers; the interval is over windows. Beside every
method stands the oracle, which ranks blocks of the same size by their true mass, and random. Blocks are of 16 keys, or of one
where a method picks tokens, so that methods can be compared. What fits, is shown as it
comes and fitted on text for calibration. Writes results/kept_mass.json.
"""

import argparse
import json
import math
import pathlib
import time
from collections import defaultdict
from dataclasses import replace

import torch

from fewer.attention import Keep, Pattern, newest, reads
from fewer.core import budget, find, methods

OUT = pathlib.Path(__file__).parent / "results" / "kept_mass.json"
BUDGETS = {"1/4": "25%", "1/8": "12.5%", "1/16": "6.25%"}
LAYERS = (2, 5, 8)
APART = (
    "random",
    "edges",
    "labels",
    "reuse",
    "seer",
)  # the control; those that say nothing unless they are told something


def queries_and_keys(model, ids):
    """[layer] -> (q, k) as attention sees them: hooks on the attention modules, rotary positions included."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    found, handles = {}, []

    def hear(layer, module):
        def hook(_, args, given):
            x = args[0] if args else given["hidden_states"]
            q, k = (p(x).unflatten(-1, (-1, module.head_dim)).transpose(1, 2) for p in (module.q_proj, module.k_proj))
            found[layer] = apply_rotary_pos_emb(q, k, *given["position_embeddings"])

        return hook

    for layer in LAYERS:
        module = model.model.layers[layer].self_attn
        handles.append(module.register_forward_pre_hook(hear(layer, module), with_kwargs=True))
    try:
        with torch.no_grad():
            model(ids)
    finally:
        for handle in handles:
            handle.remove()
    return found


def true_mass(q, k):
    """[batch, heads, queries, keys], causal; the last query at the last key."""
    group, past = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    score = q @ k.repeat_interleave(group, 1).mT * q.shape[-1] ** -0.5
    future = torch.ones(score.shape[2:], dtype=torch.bool).triu(past + 1)
    return score.masked_fill_(future, -torch.inf).softmax(-1)


def pooled(a, rows, block):
    """Summed over each block of keys, the mean over each block of queries."""
    a = torch.nn.functional.pad(a, (0, -a.shape[-1] % block)).unflatten(-1, (-1, block)).sum(-1)
    return torch.stack([part.mean(2) for part in a.split(rows, 2)], 2)


def share(mass, keep: Keep) -> float:
    """Of the mass, what is read; a group's heads may share what they read."""
    keep = keep.repeat_interleave(mass.shape[1] // keep.shape[1], 1)
    return (mass * keep).sum(-1).mean().item()


def candidates(phase: str) -> dict[str, Pattern]:
    """Every method at home in this phase, reading tokens if it does so, else blocks of 16; in prefill 64 queries ask together."""
    found = {}
    for name in methods("attention"):
        m = find(name)()
        if name.partition("/")[2] in APART or phase not in m.phases or (phase == "prefill" and m.rows == 1):
            continue
        if name == "attention/lserve":
            m = replace(m, part=4)
        found[name] = replace(m, rows=64 if phase == "prefill" else 1, block=1 if m.block == 1 else 16)
    return found


class Tally:
    """Means over layers and places, one for each window."""

    def __init__(self):
        self.kept, self.read = defaultdict(lambda: defaultdict(list)), defaultdict(lambda: defaultdict(list))

    def add(self, key, window, kept, read):
        self.kept[key][window].append(kept)
        self.read[key][window].append(read)

    def rows(self):
        from fewer.measure.estimate import mean

        for key, by_window in self.kept.items():
            kept = mean(torch.tensor([sum(x) / len(x) for x in by_window.values()]))
            read = [x for part in self.read[key].values() for x in part]
            yield key, kept, sum(read) / len(read)


def ask(tally, phase, window, some, q, k, late):
    """All methods, all budgets, on one layer's queries; judged on the blocks of queries from `late` on."""
    mass = true_mass(q, k)
    cut: dict = {}
    for name, m in some.items():
        size = (m.rows, m.block)
        if size not in cut:
            cut[size] = pooled(mass, *size)
            control = replace(find("attention/random")(window), rows=m.rows, block=m.block)
            for text, form in BUDGETS.items():
                true = reads(cut[size].clamp(min=1e-30).log(), q, k.shape[1:3], budget(form), control)
                for who, keep in (("random", control.attend(q, k, budget(form))), ("oracle", true)):
                    put(tally, (phase, who, m.block, text), window, cut[size], keep, late // m.rows, q, k, control)
        for text, form in BUDGETS.items():
            keep = m.attend(q, k, budget(form))
            put(tally, (phase, name, m.block, text), window, cut[size], keep, late // m.rows, q, k, m)


def put(tally, key, window, mass, keep, first, q, k, m):
    could = newest(q, k.shape[2], m)[first:] + 1
    read = (keep[:, :, first:].sum(-1) / could).mean().item()
    tally.add(key, window, share(mass[:, :, first:], keep[:, :, first:]), read)


def table(rows) -> str:
    """Sorted by what is kept at the smallest budget."""
    by_method: dict = defaultdict(dict)
    for (phase, name, block, text), kept, read in rows:
        by_method[phase, name, block][text] = (kept, read)
    lines = [f"{'phase':8} {'method':32} {'block':>5}  " + "  ".join(f"{text:>22}" for text in BUDGETS)]
    order = sorted(by_method.items(), key=lambda item: (item[0][0], -item[1]["1/16"][0].value))
    for (phase, name, block), found in order:
        cells = [f"{kept!s:>15} ({read:5.1%})" for kept, read in (found[text] for text in BUDGETS)]
        lines.append(f"{phase:8} {name.removeprefix('attention/'):32} {block:5}  " + "  ".join(cells))
    return "\n".join(lines)


def main() -> None:
    from fewer.data import corpus, windows
    from fewer.models import open_model

    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--windows", type=int, default=6)
    said.add_argument("--length", type=int, default=2048)
    said.add_argument("--places", type=int, default=4, help="queries of a window that are decoded")
    said.add_argument("--out", type=pathlib.Path, default=OUT)
    a = said.parse_args()
    start, (model, tokenizer) = time.time(), open_model("bundled")
    text = windows(corpus("stdlib", "test"), tokenizer, a.length, a.windows, 0)
    first = queries_and_keys(model, windows(corpus("stdlib", "calibration"), tokenizer, a.length, 2, 0))
    tally, some = Tally(), {phase: candidates(phase) for phase in ("prefill", "decode")}
    learnt = {layer: {n: f for n, m in some["decode"].items() if (f := m.fit(*first[layer])) != m} for layer in LAYERS}
    for window, ids in enumerate(text):
        for layer, (q, k) in queries_and_keys(model, ids[None]).items():
            ask(tally, "prefill", window, some["prefill"], q, k, a.length // 2)
            every = some["decode"] | {f"{name} fitted": m for name, m in learnt[layer].items()}
            for place in torch.linspace(a.length / 2, a.length - 1, a.places).long().tolist():
                ask(tally, "decode", window, every, q[:, :, place : place + 1], k[:, :, : place + 1], 0)
        print(f"window {window}: {time.time() - start:.0f} s", flush=True)
    rows = list(tally.rows())
    print(table(rows))
    found = {
        "model": "bundled",
        "torch": torch.__version__,
        "windows": a.windows,
        "length": a.length,
        "layers": LAYERS,
        "places": a.places,
        "rows": [
            {"phase": p, "method": n, "block": b, "budget": t, "kept": k.value, "low": k.low, "high": k.high, "read": r}
            for (p, n, b, t), k, r in rows
            if math.isfinite(k.high) or a.windows == 1
        ],
    }
    a.out.parent.mkdir(exist_ok=True)
    a.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
