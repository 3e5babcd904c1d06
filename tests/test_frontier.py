"""The frontier: the right jobs, each done once, whatever is killed; and the claims that are read off it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from operator import call

import pytest
import torch

from fewer.core import find
from fewer.core import methods as names
from fewer.measure import Estimate
from fewer.measure.estimate import share
from fewer.models import open_model
from fewer.recipe import jobs, kind, parallel, results, step
from fewer.recipe.claims import FAILS, HOLDS, WEAKER, Better, check, markdown, read
from fewer.recipe.frontier import Bench, Text
from fewer.recipe.frontier import frontier as measured
from fewer.recipe.point import Point
from fewer.recipe.recalling import Questions, steps_of

SMALL = Text(calibration=1, test=2, length=32)
# how bad each step is, in nats above dense; anything else is random's 5
WORSE = {"magnitude": 0.5, "wanda": 0.2, "sparse_gpt": 0.1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def done(monkeypatch):
    """Jobs that take no time; the list of what was done."""
    seen = []

    def measure(job):
        seen.append(job.step)
        empty = job.unmeasured()
        worse = 0.0 if empty.method == "dense" else WORSE.get(empty.method, 5.0)
        p = math.exp(2 + worse)
        kept = 1.0 if not empty.budget else 0.3 if empty.budget.startswith("30") else 0.5
        numbers = {
            "kept": kept,
            "bits": 16 * kept,
            "flops": kept,
            "seconds": 0.0,
            "bytes_before": 100,
            "bytes_after": 50,
        }
        return Point(
            empty.axis, empty.step, empty.method, empty.budget, **numbers,
            perplexity=Estimate(p, p * 0.9, p * 1.1, 2), kl=Estimate(worse, worse, worse, 2), losses=(2 + worse, 2.1 + worse),
        )  # fmt: skip

    monkeypatch.setattr(sys.modules["fewer.recipe.frontier"], "measure", measure)
    return seen


def run(**how):
    return measured("bundled", data=SMALL, jobs=1, **how)


def test_every_pruner_meets_every_budget_beside_dense_and_random(done):
    steps = [p.step for p in run(budgets=["50%", "2:4"])]
    pruners = [name for name in names("weights") if kind(find(name)) == "Pruner" and find(name).quick]
    assert steps[0] == "dense" and len(pruners) >= 4
    assert {f"{name} {budget}" for name in pruners for budget in ("50%", "2:4")} <= set(steps)


def test_correctors_and_allocators_go_on_the_best_of_those_that_only_choose(done):
    methods = {p.method for p in run()}
    assert {"wanda + dsnot", "wanda + eora", "wanda by owl"} <= methods  # wanda < magnitude; sparse_gpt moves weights
    assert not any(m.startswith(("magnitude ", "sparse_gpt ", "random ")) for m in methods)


def test_an_allocator_is_not_given_a_budget_it_cannot_divide(done):
    assert not any("by owl" in p.method and p.budget == "2:4" for p in run())


def test_only_the_methods_asked_for_and_the_controls(done):
    points = run(methods=["magnitude", "weights/wanda + eora(rank=4)"], budgets=["50%"])
    assert [p.method for p in points] == ["dense", "random", "magnitude", "wanda + eora(rank=4)"]
    assert [p.control for p in points] == [True, True, False, False]


def test_a_rerun_measures_only_what_is_new(done):
    run(methods=["magnitude"], budgets=["50%"])
    assert len(done) == 3
    run(methods=["magnitude"], budgets=["50%", "30%"])
    assert done[3:] == ["weights/random 30%", "weights/magnitude 30%"]


def test_other_data_is_another_job(done):
    run(methods=["magnitude"], budgets=["50%"])
    measured(
        "bundled", data=Text(calibration=1, test=2, length=32, seed=1), jobs=1, methods=["magnitude"], budgets=["50%"]
    )
    assert len(done) == 6


def test_the_key_depends_on_the_code_that_runs_and_on_no_other(monkeypatch, tmp_path):
    tokens = torch.arange(8).reshape(2, 4)
    job = jobs.Job("bundled", "weights/magnitude 50%", "*", tokens, tokens)
    files = {p.name for p in jobs._sources(step("weights/wanda 50% by owl + eora"))}
    assert {"wanda.py", "owl.py", "eora.py", "_act.py", "engine.py", "budget.py"} <= files
    assert not {"magnitude.py", "sparse_gpt.py", "figure.py"} & files
    before = jobs.key(job)
    monkeypatch.setattr(jobs, "_file", lambda path: path.name.encode() * (2 if path.name == "magnitude.py" else 1))
    changed = jobs.key(job)
    monkeypatch.setattr(jobs, "_file", lambda path: path.name.encode())
    assert len({before, changed, jobs.key(job)}) == 3


def test_a_failed_job_is_a_row_and_is_tried_again(done, monkeypatch):
    module = sys.modules["fewer.recipe.frontier"]
    good = module.measure

    def measure(job):
        if "magnitude" in job.step:
            raise ValueError("no such luck")
        return good(job)

    monkeypatch.setattr(module, "measure", measure)
    points = run(methods=["magnitude"], budgets=["50%"])
    assert points[-1].error == "ValueError: no such luck" and points[-1].perplexity is None
    monkeypatch.setattr(module, "measure", good)
    assert not run(methods=["magnitude"], budgets=["50%"])[-1].error


def test_all_failed_is_an_error(monkeypatch):
    def measure(job):
        raise ValueError("no such luck")

    monkeypatch.setattr(sys.modules["fewer.recipe.frontier"], "measure", measure)
    with pytest.raises(RuntimeError, match="every job failed.*no such luck"):
        run(budgets=["50%"], methods=["magnitude"])


def test_stopped_in_the_middle_what_was_done_is_kept(done, monkeypatch):
    module = sys.modules["fewer.recipe.frontier"]
    good = module.measure

    def measure(job):
        if "magnitude" in job.step:
            raise KeyboardInterrupt
        return good(job)

    monkeypatch.setattr(module, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run(methods=["magnitude"], budgets=["50%"])
    monkeypatch.setattr(module, "measure", good)
    run(methods=["magnitude"], budgets=["50%"])
    assert done == ["", "weights/random 50%", "weights/magnitude 50%"]


def test_progress_knows_how_many_will_come(done):
    told = []
    points = run(progress=lambda label, at, total: told.append((at, total)))
    assert told == [(i + 1, len(points)) for i in range(len(points))]


def test_out_holds_a_json_object_a_line(done, tmp_path):
    points = run(methods=["magnitude"], budgets=["50%"], out=tmp_path / "points.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert [Point.from_dict(row) for row in rows] == points


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"axes": ["wieghts"]}, "no axis 'wieghts'; there are: weights"),
        ({"axes": ["experts"]}, "cannot be measured on a model yet"),
        ({"budgets": ["half"]}, "not a budget: 'half'; write '50%'"),
        ({"budgets": ["7:9"]}, "do not divide into groups of 9; M may be one of"),
        ({"budgets": ["9999"]}, "write 256 or less"),
        ({"methods": ["wandaa"]}, "no method 'weights/wandaa'; close: weights/wanda"),
        ({"methods": ["dsnot"]}, "goes with a pruner"),
        ({"where": "*.mpl.*"}, "no linear map matches"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(done, how, says):
    with pytest.raises((ValueError, LookupError), match=says.replace("*", r"\*")):
        run(**how)
    assert done == []


def test_too_little_text_is_refused_before_any_work(done, tmp_path):
    (tmp_path / "short.txt").write_text("x = 1\n" * 8)
    with pytest.raises(ValueError, match="give more text"):
        measured("bundled", data=Text(str(tmp_path / "short.txt")), jobs=1)
    assert done == []


def test_a_point_measured_here_is_what_the_formulas_say():
    """One real job, on few tokens: bytes and bits by hand, dense against itself, and an undone model."""
    tokens = Text(calibration=1, test=2, length=64).windows(open_model("bundled")[1])
    dense, half = (jobs.measure(jobs.Job("bundled", s, "*", *tokens)) for s in ("", "weights/magnitude 50%"))
    again = jobs.measure(jobs.Job("bundled", "", "*", *tokens))
    assert dense.bits == 16 and dense.kl.value == pytest.approx(0, abs=1e-6) and dense.flops == 1
    assert half.bits == pytest.approx(16 / 2 + 1, rel=0.03)  # half the bf16 values, and a bit for each place
    assert half.kept == 0.5 and 0.5 < half.flops < 0.9
    assert half.perplexity.value > dense.perplexity.value and half.kl.value > 0.1
    assert again.losses == dense.losses, "the model was not put back"
    assert math.exp(sum(dense.losses) / 2) == pytest.approx(dense.perplexity.value)


def test_points_survive_json():
    point = Point(
        "weights",
        "weights/wanda 50%",
        "wanda",
        "50%",
        0.5,
        9.0,
        10,
        5,
        0.6,
        Estimate(7.0, 6.0, 8.0, 2),
        None,
        1.0,
        (1.9, 2.0),
    )
    assert Point.from_dict(json.loads(json.dumps(point.as_dict()))) == point


def test_a_damaged_result_is_measured_again(own_cache):
    point = Point("", "dense", "dense", "", losses=(1.0,))
    results.remember("k", point)
    assert results.recall("k") == point
    (own_cache / "k.json").write_text('{"axis": "wei')
    assert results.recall("k") is None and results.recall("other") is None


def test_processes_keep_outcomes_errors_and_deaths_apart():
    good, wrong, dies, fine = work = [
        partial(math.sqrt, 4.0),
        partial(math.sqrt, -1.0),
        partial(os._exit, 3),
        partial(math.sqrt, 9.0),
    ]
    found = {str(job): outcome for job, outcome in parallel.processes(work, call, 2)}
    assert found[str(good)] == 2 and found[str(fine)] == 3
    assert isinstance(found[str(wrong)], ValueError) and isinstance(found[str(dies)], MemoryError)


RUNS_FOR_LONG = """
import time
from functools import partial
from operator import call
from fewer.recipe import parallel
if __name__ == "__main__":
    for _ in parallel.processes([partial(print, "up", flush=True), partial(time.sleep, 600)], call, 1):
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path, ending):
    (tmp_path / "long.py").write_text(RUNS_FOR_LONG)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "long.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    assert parent.stdout.readline() == b"up\n"
    parent.send_signal(ending)
    parent.wait(30)
    deadline = time.monotonic() + 30
    while _alive(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    parent.stdout.close()
    assert not _alive(parent.pid)


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_does_the_same_jobs():
    pytest.importorskip("ray")
    work = [partial(math.sqrt, 4.0), partial(math.sqrt, -1.0), partial(math.sqrt, 9.0)]
    found = {str(job): outcome for job, outcome in parallel.cluster(work, call)}
    assert found[str(work[0])] == 2 and found[str(work[2])] == 3 and isinstance(found[str(work[1])], ValueError)


def claim(ours, baseline, factor=1.0):
    return Better(
        "weights/wanda", "Better.", ours=f"weights/{ours} 50%", baseline=f"weights/{baseline} 50%", factor=factor
    )


def test_claims_are_judged_by_paired_intervals(done):
    found = check(
        [claim("wanda", "magnitude"), claim("magnitude", "wanda"), claim("wanda", "magnitude", 0.5)],
        Bench.at(data=SMALL, jobs=1),
    )
    assert [f.verdict for f in found] == [HOLDS, FAILS, WEAKER]  # exp(-0.3) = 0.74 of the baseline's perplexity
    assert "-25.9 %" in found[0].here and len(done) == 2
    assert f"**{HOLDS}**" in markdown(found, {"model": "bundled"}) and "1 of 3 hold" in markdown(found, {})


def test_claims_are_files_with_a_list(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no claims in"):
        read(tmp_path)
    (tmp_path / "bad.py").write_text("CLAIMS = ['better']")
    with pytest.raises(ValueError, match="no list CLAIMS"):
        read(tmp_path)


def test_our_claims_can_be_read_and_measured(done):
    import pathlib

    claims = read(pathlib.Path(__file__).parents[1] / "claims")
    assert {c.method for c in claims} >= {
        "weights/wanda",
        "weights/sparse_gpt",
        "weights/dsnot",
        "weights/eora",
        "weights/owl",
    }
    for c in claims:
        assert all(step(text).method for text in c.steps)


def test_questions_are_asked_on_the_axes_that_run(monkeypatch, tmp_path):
    """Jobs that take no time: random on each axis and methods of both, density and answers, in one page."""
    from fewer.report import compared, finding, front, page

    def measure(job):
        empty = job.unmeasured()
        right = {"dense": 0.9, "cache/key_norm": 0.6, "attention/quest": 0.8}.get(empty.method, 0.1)
        kept = 0.25 if empty.budget else 1.0
        more = {
            "kept": kept,
            "read": kept,
            "remembered": 1.0,
            "held": 1.0,
            "seconds": 1.0,
            "questions": 36,
            "turns": (right,) * 3,
        }
        return Point(empty.axis, empty.step, empty.method, empty.budget, accuracy=share(round(36 * right), 36), **more)

    monkeypatch.setattr("fewer.recipe.frontier.measure", measure)
    asked = Questions(tokens=300, count=2)
    points = measured(
        "bundled", ("attention", "cache"), ["25%"], ["quest", "key_norm"], jobs=1, data=SMALL, questions=asked,
        out=tmp_path / "points.jsonl",
    )  # fmt: skip
    assert [p.method for p in points] == [
        "dense",
        "attention/random",
        "cache/random",
        "attention/quest",
        "cache/key_norm",
    ]
    assert [p.control for p in points] == [True] * 3 + [False] * 2
    assert all(Point.from_dict(json.loads(json.dumps(p.as_dict()))) == p for p in points)
    rows = compared([p.as_dict() for p in points])
    assert finding(rows) == "At 25 %, attention/quest answers 81 % right, dense 89 %, attention/random 11 %"
    assert {r["method"] for r in front(rows)} == {"dense", "attention/quest"}
    written = page(rows, {"model": "bundled", "data": str(asked)})
    assert "share of questions answered wrongly" in written and 'id="logy" >' in written
    again = measured("bundled", ("cache",), ["25%"], ["key_norm"], jobs=1, data=SMALL, questions=asked)
    assert again[0] == points[0]
    with pytest.raises(ValueError, match="measured by questions"):
        measured("bundled", ("weights", "cache"))


@pytest.mark.parametrize(
    "axes, methods, words",
    [
        (
            ["cache"],
            ["attention/quest"],
            "of the axis attention, which is not measured here; write --axes cache,attention",
        ),
        (["cache"], ["quest"], "no method 'cache/quest'"),
        (["weights"], None, "not one that reads or remembers"),
    ],
)
def test_no_method_is_passed_over(axes, methods, words):
    with pytest.raises((ValueError, LookupError), match=words):
        steps_of(axes, ["25%"], methods)


def test_short_names_are_found_on_any_of_the_axes():
    found = steps_of(
        ["attention", "cache"], ["25%"], ["snap_kv(window=4) by ada", "random", "attention/quest(block=8)"]
    )
    assert [str(s) for s in found[3:]] == ["cache/snap_kv(window=4) 25% by ada", "attention/quest(block=8) 25%"]
