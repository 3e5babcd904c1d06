"""Sections of the page that set others beside ours, written from what the other scripts here measured."""

import json
import pathlib
from collections.abc import Iterable

RESULTS = pathlib.Path(__file__).parent / "results"


def sections() -> list[str]:
    found = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    return [
        *(_levels(found["levels"]) if "levels" in found else ()),
        *(_through(found["end_to_end"]) if "end_to_end" in found else ()),
        *(_planted(found["planted"]) if "planted" in found else ()),
        *(_speed(found["cpu"], found["beside-gpu"]) if "beside-gpu" in found else ()),
    ]


def _levels(found: dict) -> list[str]:
    rows = []
    for run, part in found.items():
        if not isinstance(part, dict):
            continue
        for name, over in part["over the best of its own"].items():
            rows.append([run, name, *(f"{x:+.1%}" for x in over)])
    return [
        "## One dictionary for every k",
        "",
        "How much more of the variance one HierarchicalTopK, learnt at 64, misses at each k than the best of the TopKs that were learnt for "
        "that k alone; the same stream, each at several rates (`python -m bench.features.levels --device cuda`). The paper's claim is for "
        "2,304 columns; here there are 256, of which 64 are a quarter, and what the first eight must explain alone is then far from what "
        "they would say among 64.",
        "",
        *_table(["run", "prefixes that count", "k = 8", "k = 16", "k = 32", "k = 64"], rows),
    ]


def _through(found: dict) -> list[str]:
    about, names = found["about"], ("l0", "explained", "delta_ce", "kl", "kl_low", "kl_high")
    rows = [[row["name"], *(f"{row[name]:.3f}" for name in names)] for row in found["rows"]]
    return [
        "## For the model's predictions",
        "",
        f"TopK {about['k']} of {about['latents']:,} latents at {about['site']}, {about['steps']:,} steps, {about['tokens']:,} tokens each: learnt for what "
        "the site says, and through the frozen model for what it predicts, by KL (`python -m bench.features.end_to_end --device cuda --steps 3000`). "
        "As Braun et al. 2024 (2405.12241) claim, the model loses less at equal L0, and the site is explained less well.",
        "",
        *_table(["way", "L0", "explained", "delta CE", "KL", "from", "to"], rows),
    ]


def _planted(found: dict) -> list[str]:
    names = ("fvu", "mean max cosine", "atoms above 0.9", "dead")
    rows = [
        [data, row["who"], *(f"{row[name]:.3f}" for name in names)]
        for data, table in found.items()
        if isinstance(table, list)
        for row in table
    ]
    return [
        "## A truth that is known, and others beside",
        "",
        "256 true atoms in 64 dimensions, 512 latents, k = 12, 2,000 steps of 1,024 rows, the same rows for all; others with Adam at two "
        "rates, ours at default settings and three seeds (`python -m bench.features.planted`).",
        "",
        *_table(["data", "who", "FVU", "mean max cosine", "atoms above .9", "dead"], rows),
    ]


def _speed(cpu: dict, gpu: dict) -> list[str]:
    shapes = {"gpt2": "768 → 16,384, k 32", "gemma": "2,304 → 65,536, k 64"}
    who = [name for name in gpu["gemma"] if "ms" in gpu["gemma"][name]]
    steps = [[name, *(f"{gpu[shape][name]['ms']:.2f}" for shape in shapes)] for name in who]
    ks = (32, 64, 128)
    nested = [
        [name, dtype, *(f"{gpu[f'hierarchical, {k}'][key.format(dtype)]['ms']:.2f}" for k in ks)]
        for dtype in ("torch.bfloat16", "torch.float32")
        for name, key in (("ours", "{}, forward and backward"), ("flex-sae", "flex-sae {}"))
    ]
    here = [["ours", f"{cpu['cpu_seconds']['step']['least']:.2f}", f"{cpu['peak_bytes'] / 1e9:.2f}"]]
    here += [[n, f"{row['least']:.2f}", f"{row['peak_bytes'] / 1e9:.2f}"] for n, row in cpu.get("others", {}).items()]
    return [
        "## Speed, and others beside",
        "",
        f"Milliseconds of a training step of 4,096 rows, {gpu['machine']['gpu']}, in one process "
        "(`python -m bench.features.gpu_beside`). Launched one by one where nothing else is said: at the small shape the host takes the time, "
        "and plain torch launches less. `learn` is `fewer.train.learn` with all that it does between two batches: steps of TopK are recorded "
        "once and repeated, to the bit.",
        "",
        *_table(["", *shapes.values()], steps),
        "The loss of all prefixes with its gradients, 65,536 atoms of 2,304 columns, 4,096 rows. Ours comes out the same to the bit twice, "
        "and takes more memory; flex-sae adds by atomics, in whatever order.",
        "",
        *_table(["", "dtype", *(f"K = {k}" for k in ks)], nested),
        "CPU-seconds of a step, 512 → 16,384, k 32, 2,048 rows, float32, one thread, and the peak of a process's memory in GB "
        "(`python -m bench.features.step`).",
        "",
        *_table(["", "CPU-seconds", "peak GB"], here),
    ]


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]
