"""The loop: AdamW by its formula, and the same result to the bit wherever it was killed."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import batch, build

from fewer.core import budget, find
from fewer.train import Board, Cosine, Flat, Linear, Masks, Training, learner_of, train
from fewer.train.kept import Kept
from fewer.train.loop import tensor_cores
from fewer.weights.mask_llm import MaskLlm

DATA = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]]), torch.tensor([[0.5, 4.0]])]


def parameter():
    return {"p": torch.tensor([1.0, -2.0], requires_grad=True)}


def noisy(parameters):
    """A loss that draws random numbers and changes with progress."""
    return lambda x, progress: ((x * parameters["p"]).sum() - 1 + progress + torch.randn(())).square()


def test_a_step_is_adamw_by_its_formula():
    ours = parameter()
    how = Training(steps=1, rate=Flat(0.1), decay=0.5, clip=1e9)
    train(ours, lambda x, _: (x * ours["p"]).sum(), DATA, how)
    p, g = torch.tensor([1.0, -2.0], dtype=torch.float64), DATA[0][0].double()
    p = p - 0.1 * 0.5 * p - 0.1 * g / (g.square().sqrt() + 1e-8)  # the first step: both moments are unbiased
    assert torch.allclose(ours["p"].detach().double(), p, atol=1e-6)


def test_accumulated_batches_are_one_batch_of_their_mean():
    one, two = parameter(), parameter()
    joined = torch.stack(DATA[:2]).mean(0)
    train(one, lambda x, _: (x * one["p"]).sum(), [joined], Training(steps=1, rate=Flat(0.1)))
    train(two, lambda x, _: (x * two["p"]).sum(), DATA[:2], Training(steps=1, rate=Flat(0.1), accumulate=2))
    assert torch.allclose(one["p"], two["p"])


def test_batches_come_again_in_their_order_and_progress_runs_from_0_to_1():
    seen, ours = [], parameter()

    def loss(x, progress):
        seen.append((x[0, 0].item(), progress))
        return ours["p"].sum()

    train(ours, loss, DATA, Training(steps=5))
    assert [x for x, _ in seen] == [1.0, 3.0, 0.5, 1.0, 3.0]
    assert [p for _, p in seen] == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("end", [1, 2, 5])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path, end):
    how = Training(steps=6, rate=Cosine(0.1, 0.01, warm=0.2), accumulate=2, save_after=0.0)
    whole, halves = parameter(), parameter()
    kept = Kept(tmp_path / "whole", "key")
    train(whole, noisy(whole), DATA, how, kept)

    def stop(row):
        if row["step"] == end:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(halves, noisy(halves), DATA, how, Kept(tmp_path / "halves", "key"), stop)
    halves, told = parameter(), []
    train(halves, noisy(halves), DATA, how, Kept(tmp_path / "halves", "key"), told.append)
    assert torch.equal(whole["p"], halves["p"]) and told[0]["step"] == end + 1
    logs = [
        [json.loads(line) for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in ("whole", "halves")
    ]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == [1, 2, 3, 4, 5, 6]


def test_another_job_and_a_torn_file_are_replaced_by_force_alone(tmp_path):
    how, ours, again, file = Training(steps=2, save_after=0.0), parameter(), parameter(), tmp_path / "out.partial"
    train(ours, noisy(ours), DATA, how, Kept(tmp_path / "out", "a=1, rate=2"))
    refused = (
        (lambda: None, r"holds 2 steps of a run with other settings \(rate=2 there, rate=3 here\): .*--force"),
        (lambda: file.write_bytes(b"torn"), "is no state of a run that can be read: .*--force"),
    )
    for spoil, says in refused:
        spoil()
        before, log = file.read_bytes(), (tmp_path / "out.jsonl").read_text()
        with pytest.raises(ValueError, match=says):
            train(again, noisy(again), DATA, how, Kept(tmp_path / "out", "a=1, rate=3"))
        assert file.read_bytes() == before and (tmp_path / "out.jsonl").read_text() == log
        told: list = []
        train(again, noisy(again), DATA, how, Kept(tmp_path / "out", "a=1, rate=3", force=True), told.append)
        assert told[0]["step"] == 1


@pytest.mark.parametrize("at", ["loss", "step", "told"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_breaks_in_on_a_run_loses_no_whole_step(tmp_path, at, error):
    """However seldom it is saved; and a step that was not whole leaves no trace, nor what it counted."""
    how = Training(steps=6, rate=Cosine(0.1, 0.01), save_after=1e9)

    def start(armed):
        ours = parameter() | {"count": torch.zeros(1)}
        moved = torch.optim.AdamW([*ours.values()], 1.0)
        noise, plain = noisy(ours), moved.step
        now = [0]

        def loss(x, progress):
            ours["count"] += 1
            now[0] += 1
            if armed and at == "loss" and now[0] == 4:
                raise error
            return noise(x, progress)

        def step(*args):
            if armed and at == "step" and now[0] == 4 and error is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)  # waits for the end of the step
            plain(*args)
            if armed and at == "step" and now[0] == 3 and error is not KeyboardInterrupt:
                raise error  # torn: not kept

        moved.step = step
        told = []

        def tell(row):
            told.append(row["step"])
            if armed and at == "told" and row["step"] == 3:
                raise error

        return ours, loss, tell, moved, told

    whole, loss, tell, moved, _ = start(False)
    train(whole, loss, DATA, how, Kept(tmp_path / "whole", "key"), tell, moved)
    ours, loss, tell, moved, _ = start(True)
    with pytest.raises(error):
        train(ours, loss, DATA, how, Kept(tmp_path / "halves", "key"), tell, moved)
    ours, loss, tell, moved, told = start(False)
    train(ours, loss, DATA, how, Kept(tmp_path / "halves", "key"), tell, moved)
    assert told[0] == (4 if at != "step" else 5 if error is KeyboardInterrupt else 1)
    assert all(torch.equal(whole[name], ours[name]) for name in whole)
    assert (tmp_path / "whole.jsonl").read_text() == (tmp_path / "halves.jsonl").read_text()


def test_tensorboard_reads_what_was_told_also_of_a_run_that_went_on(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [{"step": i, "steps": 4, "loss": 1.0 / i, "rate": 0.5} for i in (1, 2, 3, 3, 4)]
    rows[3]["loss"] = 9.0
    for some in (rows[:3], rows[3:]):  # killed after step 3, which was not kept
        with Board(tmp_path / "events") as told:
            for row in some:
                told(row)
    found = EventAccumulator(str(tmp_path / "events"))
    found.Reload()
    assert {*found.Tags()["scalars"]} == {"loss", "rate"}
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 9.0), (4, 0.25)]


def test_without_tensorboard_it_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fewer\[board\]'"):
        Board(tmp_path)


def test_tf32_is_on_inside_alone():
    flag = torch.backends.cuda.matmul
    assert not flag.allow_tf32
    with pytest.raises(KeyError), tensor_cores(True):
        assert flag.allow_tf32
        raise KeyError
    with tensor_cores(False):
        assert not flag.allow_tf32
    assert not flag.allow_tf32


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    ours = parameter()
    train(ours, noisy(ours), DATA, Training(steps=2))
    assert torch.equal(torch.rand(2), expected)


def test_what_cannot_be_learnt_is_a_sentence():
    ours = parameter()
    with pytest.raises(ValueError, match="no batch to learn from"):
        train(ours, noisy(ours), [], Training(steps=1))
    with pytest.raises(ValueError, match="step 1: the loss is nan; lower the rate"):
        train(ours, lambda x, _: ours["p"].sum() * math.nan, DATA, Training(steps=1))
    with pytest.raises(ValueError, match="at least 1"):
        Training(steps=0)
    with pytest.raises(ValueError, match=r"weights/wanda has nothing to learn.*weights/mask_llm"):
        learner_of(find("weights/wanda"))
    assert learner_of(MaskLlm) is Masks


def test_rates_are_their_formulas():
    assert Linear(1.0, 0.5).at(0.5) == 0.75 and Flat(2.0).at(0.9) == 2.0
    rate = Cosine(1.0, 0.2, warm=0.5)
    assert [rate.at(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.2])
    assert rate.at(0.75) == pytest.approx(0.6)


KILLED = """
import os, sys, pathlib
sys.path.insert(0, "tests")
from tiny import batch, build
from fewer.core import budget
from fewer.train import Masks, Training
from fewer.weights.mask_llm import MaskLlm
die = lambda row: os._exit(9) if row["step"] == 3 else None
how = Training(steps=5, save_after=0.0)
Masks(build("llama"), pathlib.Path(sys.argv[1]), how=how, told=die).fit(MaskLlm(), budget("2:4"), [batch("llama")["input_ids"]])
"""


def test_masks_are_the_same_whether_the_process_died_or_not(tmp_path):
    out = tmp_path / "masks.npz"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", KILLED, str(out)], env=env, cwd=root).returncode == 9
    assert not out.exists() and (tmp_path / "masks.npz.partial").exists()
    told: list = []
    how, data = Training(steps=5, save_after=0.0), [batch("llama")["input_ids"]]
    for place, hear in ((out, told), (tmp_path / "whole.npz", [])):
        Masks(build("llama"), place, how=how, told=hear.append).fit(MaskLlm(), budget("2:4"), data)
    assert [row["step"] for row in told] == [4, 5]
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes() and not (tmp_path / "masks.npz.partial").exists()
