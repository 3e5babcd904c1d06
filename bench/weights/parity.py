"""The same pruning by fewer and by llm-compressor: which weights go, how far the answers move, what it costs.

    python -m bench.weights.parity LLMC_PYTHON RESULT.json [--model random|bundled] [--rounds 2] [--only 'wanda 50%'] [--modelopt PYTHON]

`LLMC_PYTHON` is the interpreter of an environment with `llmcompressor==0.13.0`, that of `--modelopt` has
`nvidia-modelopt==0.47.0`, whose SparseGPT at 2:4 is then measured too. Each run is a process of its own, one
thread, ours and theirs in turn, the same weights in float32 and the same 16 windows of 256 tokens; imports, opening the
model and a first call on a tiny model are not counted. CPU-seconds are those of the fastest round.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from fewer.calibrate import InputSquares, watching
from fewer.data import corpus, windows
from fewer.models import locate, open_model, sites, tokenizer_of

HERE = Path(__file__).parent
SIZE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
REST = {"num_key_value_heads": 8, "vocab_size": 8192, "max_position_embeddings": 512, "tie_word_embeddings": False}
CASES = [("wanda", "50%"), ("wanda", "2:4"), ("sparse_gpt", "50%"), ("sparse_gpt", "2:4")]
WINDOWS, LENGTH = 16, 256


def prepare(kind: str, folder: Path) -> tuple[Path, Path]:
    """The model and the tokens, as files that both can read."""
    torch.manual_seed(0)
    place = folder / kind
    if kind == "random":
        LlamaForCausalLM(LlamaConfig(**SIZE, **REST)).save_pretrained(place)
        for file in Path(locate("bundled")).glob("tokenizer*"):
            shutil.copy(file, place)
        ids = torch.randint(REST["vocab_size"], (WINDOWS, LENGTH))
    else:
        shutil.copytree(locate(kind), place)
        ids = windows(corpus("stdlib", "calibration"), tokenizer_of(str(place)), LENGTH, WINDOWS)
    save_file({"ids": ids.contiguous()}, folder / "ids.safetensors")
    return place, folder / "ids.safetensors"


def run(python: str, script: list[str], words: list[str]) -> dict[str, float]:
    """One pruning in its own process."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    env = {**os.environ, **one, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(["src", "."])}
    done = subprocess.run([python, *script, *words], capture_output=True, text=True, env=env, cwd=HERE.parents[1])
    line = next((x for x in reversed(done.stdout.splitlines()) if x.startswith("spent: ")), None)
    if line is None:
        raise RuntimeError(f"{python} {script} {words} failed:\n{done.stderr[-2000:]}")
    return json.loads(line.removeprefix("spent: "))


@torch.no_grad()
def logits(place: Path, weights: dict | None, ids: torch.Tensor) -> torch.Tensor:
    model, _ = open_model(place)
    if weights is not None:
        model.load_state_dict(weights, strict=False)
    return torch.cat([model(row[None]).logits.log_softmax(-1) for row in ids[:8]])


def divergence(dense: torch.Tensor, other: torch.Tensor) -> float:
    """KL from the dense model's answers, nats a token."""
    return (dense.exp() * (dense - other)).sum(-1).mean().item()


def masks(ours: dict, theirs: dict) -> dict[str, int | list[int]]:
    """How many weights are zero in one and not in the other, in all and block by block."""
    maps = [k for k in ours if k.endswith("_proj.weight")]
    differ: dict[int, int] = {}
    for k in maps:
        block = int(k.split("layers.")[1].split(".")[0])
        differ[block] = differ.get(block, 0) + int(((ours[k] == 0) != (theirs[k] == 0)).sum())
    zeros = [sum(int((t[k] == 0).sum()) for k in maps) for t in (ours, theirs)]
    sizes = {"weights": sum(ours[k].numel() for k in maps), "zeros": zeros[0], "their zeros": zeros[1]}
    return sizes | {"differ": sum(differ.values()), "by block": [differ[n] for n in sorted(differ)]}


@torch.no_grad()
def gap(place: Path, ids: torch.Tensor, ours: dict, theirs: dict) -> float:
    """Wanda in block 0, where both hear the same: the scores, in float64, of weights that one keeps and the other prunes
    in the same row or group. How far apart are they, in parts of themselves, at most? 0 if the masks are one."""
    model, _ = open_model(place)
    found = [s for s in sites(model.double()) if s.layer == 0]
    with watching(found, (InputSquares,)) as seen:
        for row in ids:
            model(row[None])
    worst = 0.0
    for s in found:
        a, b = (t[f"{s.name}.weight"] != 0 for t in (ours, theirs))
        score = s.read().abs() * seen[s.name][InputSquares].value.double().sqrt()
        for row in (a != b).any(1).nonzero().flatten():
            torn = score[row][(a != b)[row]]
            worst = max(worst, (1 - torn.min() / torn.max()).item())
    return worst


def case(python: str, place: Path, tokens: Path, method: str, pattern: str, rounds: int) -> dict:
    """Ours and theirs in turn; theirs in batches of 8, which is their fastest, and ours as always."""
    folder = place.parent
    words = lambda who: [method, pattern, "8", str(place), str(tokens), str(folder / f"{who}.safetensors")]  # noqa: E731
    spent: dict[str, list] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        spent["theirs"].append(run(python, ["bench/weights/peers/llm_compressor.py"], words("theirs")))
        spent["ours"].append(run(sys.executable, ["-m", "bench.weights.peers.ours"], words("ours")))
    ids = load_file(tokens)["ids"]
    left = {who: load_file(folder / f"{who}.safetensors") for who in spent}
    dense = logits(place, None, ids)
    kl = {who: divergence(dense, logits(place, left[who], ids)) for who in spent}
    same = masks(*left.values())
    if method == "wanda" and pattern == "50%":
        same["gap"] = gap(place, ids, *left.values())
    return {"method": method, "pattern": pattern, "kl": kl, "masks": same, "spent": spent}


def modelopt(python: str, place: Path, tokens: Path) -> dict:
    """ModelOpt's SparseGPT at 2:4: how far the answers move, and how many of the kept weights are not what they were."""
    out = place.parent / "modelopt.safetensors"
    told = run(python, ["bench/weights/peers/model_opt.py"], ["2:4", "8", str(place), str(tokens), str(out)])
    ids, left, dense = load_file(tokens)["ids"], load_file(out), open_model(place)[0].state_dict()
    kl = divergence(logits(place, None, ids), logits(place, left, ids))
    maps = [k for k in left if k.endswith("_proj.weight")]
    moved = sum(int(((left[k] != dense[k]) & (left[k] != 0)).sum()) for k in maps)
    zeros = sum(int((left[k] == 0).sum()) for k in maps)
    return {"kl": kl, "zeros": zeros, "kept and moved": moved, "spent": told}


def main(python: str, out: str, kind: str, rounds: int, only: str, other: str) -> None:
    peer = "import importlib.metadata as m; print(m.version('llmcompressor'))"
    told = subprocess.run([python, "-c", peer], capture_output=True, text=True, check=True).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    chip = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine())
    about = {"model": kind, "peer": f"llm-compressor {told}", "torch": version("torch"), "cpu": chip, "threads": 1}
    with tempfile.TemporaryDirectory() as name:
        place, tokens = prepare(kind, Path(name))
        before = json.loads(Path(out).read_text()) if Path(out).is_file() else {"cases": []}
        about |= {k: before[k] for k in ("modelopt",) if k in before}
        found = {(c["method"], c["pattern"]): c for c in before["cases"]}
        for method, pattern in CASES:
            if only not in f"{method} {pattern}":
                continue
            found[method, pattern] = case(python, place, tokens, method, pattern, rounds)
            rows = [found[c] for c in CASES if c in found]
            Path(out).write_text(json.dumps({**about, "cases": rows}, indent=1) + "\n")
            print(json.dumps(found[method, pattern]), flush=True)
        if other:
            about["modelopt"] = modelopt(other, place, tokens)
            rows = [found[c] for c in CASES if c in found]
            Path(out).write_text(json.dumps({**about, "cases": rows}, indent=1) + "\n")
            print(json.dumps(about["modelopt"]))


if __name__ == "__main__":
    import argparse

    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("python")
    ask.add_argument("out")
    ask.add_argument("--model", default="random")
    ask.add_argument("--rounds", type=int, default=2)
    ask.add_argument("--only", default="", help="a part of METHOD BUDGET; other cases stay as they are in RESULT")
    ask.add_argument("--modelopt", default="", help="an interpreter")
    said = ask.parse_args()
    main(said.python, said.out, said.model, said.rounds, said.only, said.modelopt)
