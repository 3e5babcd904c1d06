"""Others beside ours: each learns from the same rows in an environment of its own, and is judged as ours is.

Environment variables name their pythons, as `tests/parity/test_dictionaries.py` says; who is not named is left out.
FEWER_PEER_PATH is a folder with packages that these environments have not.
"""

import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator

import torch
from safetensors.torch import load_file, save_file

from fewer.core import budget
from fewer.features import Dictionary
from fewer.features.top_k import TopK

PEERS = pathlib.Path(__file__).parent / "peers"
NAMES = ("sparsify", "dictionary_learning", "saelens")


def there() -> Iterator[tuple[str, str]]:
    """The peers that can be asked, and their pythons."""
    for name in NAMES:
        if python := os.environ.get(f"FEWER_PEER_{name.upper()}"):
            yield name, python


ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def asked(name: str, python: str, rows: torch.Tensor, k: int, **given: object) -> tuple[Dictionary, dict]:
    """What a peer learns from these rows, and what a step cost it in CPU-seconds of one thread; `given` is as in peers/_learn.py."""
    with tempfile.TemporaryDirectory() as folder:
        place, out, settings = (pathlib.Path(folder, end) for end in ("rows", "out", "settings"))
        save_file({"rows": rows.cpu()}, place)
        settings.write_text(json.dumps({"rows": str(place), "dim": rows.shape[1], "k": k, **given}))
        triton = "0" if given.get("device") == "cuda" else "1"  # sparsify's kernels want a GPU
        env = {
            **os.environ,
            **ALONE,
            "SPARSIFY_DISABLE_TRITON": triton,
            "PYTHONPATH": os.environ.get("FEWER_PEER_PATH", ""),
        }
        call = [python, str(PEERS / f"with_{name}.py"), str(settings), str(out)]
        said = subprocess.run(call, capture_output=True, text=True, env=env)
        if said.returncode:
            raise RuntimeError(f"{name}: {said.stderr[-2000:]}")
        t = load_file(out)
    spent = json.loads(next(line for line in said.stdout.splitlines() if line.startswith("spent: "))[7:])
    parts = (t["encoder"], t["encoder_bias"], t["decoder"], t["decoder_bias"])
    return Dictionary(TopK(), budget(str(k)), *parts), spent
