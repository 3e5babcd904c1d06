"""Studies: what they say of points that are made up, so that the right answer is known."""

import json
import math
import sys

import pytest
import torch

from fewer.cli import main
from fewer.measure import Estimate, mean
from fewer.recipe.claims import FAILS, HOLDS, WEAKER, check
from fewer.recipe.frontier import Bench, Text
from fewer.recipe.point import Point
from fewer.recipe.steps import step
from fewer.recipe.studies import Knee, LargeSmall, Search, Sensitivity
from fewer.recipe.studies.knee import KneeAt, knee
from fewer.report.study import drawn, study_columns
from fewer.report.table import plain

SMALL = Text(calibration=1, test=4, length=16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def say(monkeypatch):
    """Make every job's losses (one a window) and bytes what a function of its step says."""

    def use(losses, size=lambda job: 100):
        def measure(job):
            empty, found = job.unmeasured(), losses(job.step)
            p = math.exp(sum(found) / len(found))
            kept = float(step(job.step).budget.keep) if job.step and ":" not in empty.budget else 0.5
            return Point(
                empty.axis, empty.step, empty.method, empty.budget, kept, 16.0, 200, size(job), 0.5,
                Estimate(p, p, p, 4), Estimate(0.1, 0.1, 0.1, 4), 0.0, tuple(found),
            )  # fmt: skip

        monkeypatch.setattr(sys.modules["fewer.recipe.frontier"], "measure", measure)
        return Bench.at(data=SMALL, jobs=1)

    return use


def test_a_knee_lies_where_the_loss_leaves_its_tangent():
    x = [0.0, 0.1, 0.2, 0.3, 0.4]
    flat = torch.tensor([2.0, 2.1, 2.2, 2.3, 2.4])[:, None].repeat(1, 6)
    assert knee(x, flat, 0.05).value == pytest.approx(0.4)  # a straight line never turns
    turned = flat + torch.tensor([0.0, 0.0, 0.0, 0.2, 3.0])[:, None]
    assert knee(x, turned, 0.05).value == pytest.approx(0.225)
    assert knee(x, turned, 0.9).value == pytest.approx(0.3 + 0.1 * (0.9 - 0.2) / 2.8)


def test_a_knee_has_the_interval_of_the_windows_it_was_seen_on():
    torch.manual_seed(0)
    x, steep = [0.0, 0.1, 0.2, 0.3], torch.rand(40) + 0.5
    losses = torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None] * steep + 2
    found = knee(x, losses, 0.25)
    assert found == knee(x, losses, 0.25)  # repeatable
    assert found.value == pytest.approx(0.2 + 0.1 * 0.25 / steep.mean().item(), rel=1e-5)
    draws = [0.2 + 0.025 / steep[torch.randint(40, (40,))].mean().item() for _ in range(4000)]
    low, high = torch.tensor(draws).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert found.low == pytest.approx(low, abs=4e-4) and found.high == pytest.approx(high, abs=4e-4)


def test_a_knee_needs_a_curve():
    for x in ([0.0, 0.1], [0.0, 0.2, 0.1]):
        with pytest.raises(ValueError, match="at least three removals that rise"):
            knee(x, torch.zeros(len(x), 2), 0.1)


def turning(at):
    """Losses that turn up when more than `at` is removed; random turns at once."""

    def losses(text):
        if not text:
            return [2.0] * 4
        amount = step(text).budget
        removed = 1 - float(amount.keep / amount.group if amount.group else amount.keep)
        base = 2 + 10 * max(0.0, removed - (0.0 if "random" in text else at))
        return [base + 0.01 * i * (removed > at) for i in range(4)]

    return losses


def test_the_knee_study_finds_the_turn_of_each_curve(say):
    found = Knee(removed=(10, 20, 30, 40)).ask(say(turning(0.2)))
    knees = {row["curve"]: row["knee"] for row in found.rows}
    assert set(knees) == {"magnitude", "magnitude N:8", "random", "random N:8"}
    assert 0.2 <= knees["magnitude"] < 0.22 and "magnitude 21" in found.says
    assert [r["removed"] for r in found.rows if r["curve"] == "magnitude"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_the_claim_of_a_knee_is_judged_by_its_interval(say):
    bench = say(turning(0.3))
    claims = [KneeAt("weights/magnitude", "A knee.", removed) for removed in (0.3, 0.6)]
    claims.append(KneeAt("weights/magnitude", "A knee.", 0.3, study=Knee("weights/random", (20, 30, 40))))
    found = check(claims, bench)
    assert [f.verdict for f in found] == [HOLDS, WEAKER, FAILS] and "knee at 30" in found[0].here
    assert found[0].paper.id == "2306.03805"


def test_a_search_is_judged_on_windows_it_did_not_choose_on(say):
    torch.manual_seed(0)
    noise = torch.randn(64, 4).double()

    def losses(text):
        return noise[step(text).method.seed].tolist()

    found = Search(budgets=("50%",), masks=4, repeats=6).ask(say(losses))
    diffs = []
    for r in range(6):
        own = noise[4 * r : 4 * r + 4]
        best = min(range(4), key=lambda i: own[i, 0] + own[i, 2])
        diffs.append(own[best, 1] / 2 + own[best, 3] / 2 - own[0, 1] / 2 - own[0, 3] / 2)
    expected = mean(torch.stack(diffs))
    (row,) = found.rows
    assert row["gain"] == pytest.approx(expected.value, rel=1e-5) and row["gain_low"] == pytest.approx(
        expected.low, rel=1e-5
    )
    assert "no different" in found.says


def test_a_search_that_finds_something_says_so(say):
    found = Search(budgets=("50%",), masks=4, repeats=8).ask(
        say(lambda text: [float((step(text).method.seed * 7) % 4)] * 4)
    )
    assert found.rows[0]["best"] == 0.0
    with pytest.raises(ValueError, match="at least 2 of each"):
        Search(masks=1).ask(say(lambda text: [1.0] * 4))


def test_large_and_small_are_compared_at_equal_bytes(say):
    sizes = {"": 200, "60%": 300, "30%": 190, "10%": 90}

    def losses(text):
        return (
            [2.0, 2.1, 2.2, 2.3]
            if not text
            else {"60%": [1.0] * 4, "30%": [1.8, 1.9, 2.0, 2.1], "10%": [9.0] * 4}[budget_of(text)]
        )

    def budget_of(text):
        return str(step(text).budget) if text else ""

    bench = say(losses, lambda job: sizes[budget_of(job.step)])
    found = LargeSmall(Bench.at(data=SMALL, jobs=1), budgets=("60%", "30%", "10%")).ask(bench)
    assert "30% is better than" in found.says and "-0.200" in found.says
    assert [row["fits"] for row in found.rows if row["model"] == "large"][1:] == [False, True, True]


def test_models_of_two_tokenizers_are_not_compared(say):
    bench, other = say(lambda text: [1.0] * 4), Bench.at(data=Text(calibration=1, test=4, length=8), jobs=1)
    with pytest.raises(ValueError, match="share one"):
        LargeSmall(other).ask(bench)


@pytest.mark.parametrize(("by", "count"), [("block", 10), ("role", 7)])
def test_sensitivity_prunes_one_part_at_a_time(say, by, count):
    asked = []

    def losses(text):
        asked.append(text)
        return [2.0] * 4 if not text else [2.0 + 0.1 * len(asked)] * 4

    found = Sensitivity(budgets=("50%",), by=by).ask(say(losses))
    assert len(found.rows) == count + 1 == len(set(asked)) - 1
    last = found.rows[-1]
    assert last["part"] == "all" and last["weights"] == sum(r["weights"] for r in found.rows[:-1]) == 7864320
    assert last["each"] == pytest.approx(last["worse"] / 3.932160)
    with pytest.raises(ValueError, match="--by block or --by role"):
        Sensitivity(by="letter").ask(say(losses))


def test_a_study_is_a_table_and_a_picture(say):
    for study in (Knee(removed=(10, 20)), Sensitivity(budgets=("50%",), by="role")):
        found = study.ask(say(turning(0.1)))
        text = plain(found.rows, study_columns(found.rows, found.titles))
        assert len(text.splitlines()) == len(found.rows) + 1
        spec = drawn(found.rows, found.titles, found.x, found.y, found.by, found.says, {"model": "bundled"}).to_dict()
        assert len(spec["layer"]) >= 3 and spec["title"]["text"] == found.says


def test_the_command_prints_draws_and_remembers(say, tmp_path, capsys):
    say(turning(0.2))
    how = ["--jobs", "1", "--test", "4", "--length", "16", "--removed", "10,20,30", "--png", str(tmp_path / "k.png")]
    assert main(["study", "knee", "bundled", *how, "-o", str(tmp_path / "k.jsonl")]) == 0
    said = capsys.readouterr()
    assert "Removable before the loss turns up: magnitude 21" in said.out and "share removed" in said.out
    rows = [json.loads(line) for line in (tmp_path / "k.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * (4 + 7) and (tmp_path / "k.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["study", "knee", "bundled", *how, "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


@pytest.mark.parametrize("name", ["knee", "search", "large-small", "sensitivity"])
def test_help_has_an_example(capsys, name):
    assert main(["study", name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Example" in text and f"fewer study {name}" in text and "arXiv" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["knee", "./nowhere"], "no such directory"),
        (["knee", "bundled", "--png", "k.txt"], "must end in .png"),
        (["sensitivity", "bundled", "--by", "letter"], "--by block or --by role"),
        (["sensitivity", "bundled", "--budgets", "3:5"], "do not divide into groups of 5"),
        (["search", "bundled", "--budgets", "120%"], "at most everything"),
        (["large-small", "bundled", "./nowhere"], "no such directory"),
    ],
)
def test_bad_input_is_a_sentence(capsys, monkeypatch, arguments, says):
    def work(*args):
        raise AssertionError("work was begun")

    monkeypatch.setattr(sys.modules["fewer.recipe.frontier"], "measure", work)
    assert main(["study", *arguments, "--jobs", "1"]) == 2
    assert says in capsys.readouterr().err
