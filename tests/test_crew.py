"""Several processes, on CPUs through gloo, do what one does."""

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny import batch, build

from fewer.calibrate import (
    Crew,
    GradMean,
    GradSquares,
    Gram,
    HessianGradient,
    InputMean,
    InputSquares,
    InputVariance,
    OutNorms,
    Quantiles,
)
from fewer.layout import find_layout
from fewer.recipe import sparsify

pytestmark = pytest.mark.slow
EVERY = (GradMean, GradSquares, HessianGradient, Gram, InputMean, InputSquares, InputVariance, OutNorms, Quantiles)


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(script, *words, size=2):
    """`script` in processes that torchrun might have started."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(sys.path)
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *map(str, words)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes, seconds=500):
    told = [p.communicate(timeout=seconds) for p in processes]
    assert all(p.returncode == 0 for p in processes), "\n".join(err for _, err in told)
    return [out for out, _ in told]


def test_a_crew_of_one_does_everything_itself():
    crew = Crew()
    assert crew.share([1, 2], cost=float, do=lambda n: n * 10) == [10, 20] and crew.gather("a") == ["a"]
    assert crew.first(lambda: 7) == 7 and Crew.here() == crew


def test_the_costliest_are_dealt_out_first_and_errors_are_everybodys():
    out = ended(start("""
        from fewer.calibrate import launched
        with launched() as crew:
            who = crew.share([1, 9, 2, 8, 5], cost=float, do=lambda n: (n, crew.rank))
            def fail(n):
                raise ValueError(f"no {n}")
            try:
                crew.share([1, 2], cost=float, do=fail)
            except ValueError as error:
                print(who, error, crew.first(lambda: crew.rank), crew.gather(crew.rank))
    """))  # fmt: skip
    assert out[0] == out[1] == "[(1, 0), (9, 0), (2, 0), (8, 1), (5, 1)] no 1 0 [0, 1]\n"


def test_every_statistic_of_two_streams_is_that_of_the_joined_one(tmp_path):
    torch.manual_seed(0)
    stream = {"w": torch.randn(3, 5), "x": torch.randn(90, 5) * 3 + 2, "g": torch.randn(9, 3, 5)}
    torch.save(stream, tmp_path / "stream.pt")
    names = " ".join(k.__name__ for k in EVERY)
    ended(start("""
        import sys, torch, fewer.calibrate as c
        stream = torch.load(sys.argv[1] + "/stream.pt", weights_only=True)
        with c.launched() as crew:
            cut, grads = [slice(0, 20), slice(20, 90)][crew.rank], [slice(0, 2), slice(2, 9)][crew.rank]
            kinds = tuple(getattr(c, name) for name in sys.argv[2].split())
            seen = c.observe(kinds, stream["w"], stream["x"][cut], stream["g"][grads], stream["g"][grads] * 2)
            for stat in seen.values():
                stat.merge(crew)
            torch.save({k.__name__: seen[k].value for k in kinds}, f"{sys.argv[1]}/{crew.rank}.pt")
            assert seen[c.Gram].tokens == 90 and seen[c.GradMean].windows == 9
    """, tmp_path, names))  # fmt: skip
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    x, g = stream["x"].double(), stream["g"].double()
    truth = {
        "GradMean": g.mean(0),
        "GradSquares": g.square().mean(0),
        "HessianGradient": 2 * g.mean(0),
        "Gram": x.T @ x / 90,
        "InputMean": x.mean(0),
        "InputSquares": x.square().mean(0),
        "InputVariance": x.var(0, correction=0),
        "OutNorms": stream["w"].double().norm(dim=0),
        "Quantiles": x.abs().flatten().sort().values,
    }
    for name, expected in truth.items():
        assert torch.equal(one[name].sort(0).values, two[name].sort(0).values), "both know the same"
        value = one[name].sort().values if name == "Quantiles" else one[name]
        torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=1e-6)


PRUNE = """
import json, sys, torch
from fewer.calibrate import launched
from fewer.layout import find_layout
from fewer.recipe import sparsify
source, data, out, steps = sys.argv[1:]
with launched() as crew:
    applied = sparsify(source, json.loads(steps), torch.load(data, weights_only=True), out=out, format="dense")
print(len(applied.changes), applied.out)
"""


@pytest.mark.parametrize(
    "name, steps",
    [
        ("llama", ["weights/sparse_gpt 50% + eora(rank=2) @ attention", "weights/wanda 50% by owl + dsnot @ mlp"]),
        ("llama", ["weights/wanda 40% per layer"]),
        ("mixtral", ["weights/wanda 50% @ mlp,experts"]),
        ("gpt2", ["weights/sparse_gpt 2:4"]),
    ],
)
def test_two_processes_prune_as_one_does(name, steps, tmp_path):
    build(name).save_pretrained(tmp_path / "source")
    data = batch(name, rows=6, length=24)["input_ids"]
    torch.save(data, tmp_path / "data.pt")
    alone = sparsify(tmp_path / "source", steps, data, out=tmp_path / "one", format="dense")
    words = [tmp_path / "source", tmp_path / "data.pt", tmp_path / "two", json.dumps(steps)]
    told = ended(start(PRUNE, *words))
    assert told[0] == told[1] == f"{len(alone.changes)} {tmp_path / 'two'}\n"
    for shard in sorted((tmp_path / "one").glob("model-*.safetensors")):
        one, two = load_file(shard), load_file(tmp_path / "two" / shard.name)
        assert one.keys() == two.keys()
        for key in one:
            low_rank = "eora" in steps[0] and "attn" in key  # dense, but for rounding the same
            assert low_rank or torch.equal(one[key] != 0, two[key] != 0), f"the mask of {key}"
            torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-4)
    log = [json.loads(line)["site"] for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert log == [c.site for c in alone.changes], "one process writes"


def test_what_cannot_be_shared_is_refused(tmp_path):
    build("llama").save_pretrained(tmp_path / "source")
    torch.save(batch("llama", rows=1)["input_ids"], tmp_path / "data.pt")
    words = [tmp_path / "source", tmp_path / "data.pt", tmp_path / "two", '["weights/wanda 50%"]']
    for process in start(PRUNE, *words):
        assert "1 windows are too few for 2 processes" in process.communicate(timeout=520)[1]
        assert process.returncode == 1
    assert not (tmp_path / "two").exists()


def test_who_waits_for_the_dead_does_not_wait_for_ever():
    first, second = start("""
        import os, signal, sys
        from datetime import timedelta
        from fewer.calibrate import launched
        with launched(timedelta(seconds=10)) as crew:
            crew.gather(crew.rank)
            if crew.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            crew.gather("all well?")
    """)
    begun = time.monotonic()
    first.communicate(timeout=500)
    second.communicate(timeout=500)
    assert first.returncode not in (0, None) and second.returncode == -signal.SIGKILL and time.monotonic() > begun


def test_torchrun_runs_the_command(tmp_path):
    out, words = tmp_path / "out", ["--calibration", "4", "--length", "32", "--device", "cpu", "--json"]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port())]
    done = subprocess.run(
        [*run, "-m", "fewer", "sparsify", "bundled", "weights/wanda 50% @ *.0.mlp.*", "-o", str(out), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 and (out / "log.jsonl").is_file(), "one of the two prints"


@pytest.mark.parametrize("name", ["bitmask", "csr", "nm", "delta", "dense", "bsr", "tiles"])
def test_a_layout_told_to_another_process_is_the_same(name):
    x, keep = torch.randn(64, 64).bfloat16(), torch.zeros(64, 64, dtype=torch.bool)
    keep.view(64, -1, 4)[..., :2] = True
    one = find_layout(name).pack(x, keep)
    two = copy.deepcopy(one)  # by what a process would be told
    assert one.numbers() == two.numbers() and torch.equal(one.dense(), two.dense())
    for a, b in zip(one.tensors().values(), two.tensors().values(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
