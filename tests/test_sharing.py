"""Several processes learn a dictionary as one does: rows shared out, or latents."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_crew import ended, start

from fewer.calibrate import Crew
from fewer.core import budget
from fewer.features.abs_top_k import AbsTopK
from fewer.features.batch_top_k import BatchTopK
from fewer.features.feature_choice import FeatureChoice
from fewer.features.hierarchical_top_k import HierarchicalTopK
from fewer.features.jump_relu import JumpRelu
from fewer.features.matryoshka import Matryoshka
from fewer.features.mutual_choice import MutualChoice
from fewer.features.top_k import TopK
from fewer.train import ByLatents, ByRows, Lesson, Pupil, Rows, learn
from fewer.train.kept import Kept

pytestmark = pytest.mark.slow
LATENTS, STEPS = 64, 10
DEAD = Lesson(STEPS, rate=1e-2, dead_after=45, aux=0.5, aux_latents=9)  # some soon count as dead, and are taught
PAIR = Lesson(STEPS, rate=1e-2, skip=True)
# name: who learns, how, and how it is shared
CASES = {
    "top_k": (TopK(), "4", DEAD, "ByRows ByLatents"),
    "transcoder": (TopK(), "12", PAIR, "ByRows ByLatents"),  # where summed gradients are fewer bytes
    "abs_top_k": (AbsTopK(), "36", DEAD, "ByLatents"),  # more than a process holds
    "matryoshka": (Matryoshka(), "4", DEAD, "ByRows"),
    "mutual_choice": (MutualChoice(), "4", DEAD, "ByRows"),
    "hierarchical_top_k": (HierarchicalTopK(), "4", DEAD, "ByRows"),
}
LEARN = """
import sys, torch
from test_sharing import CASES, learnt, stopped
from fewer.calibrate import launched
from fewer.train import ByLatents, ByRows
place = sys.argv[1]
with launched() as crew:
    for name, (*_, how) in CASES.items():
        for kind in how.split():
            found = learnt(name, {"ByRows": ByRows, "ByLatents": ByLatents}[kind](crew), f"{place}/{name}-{kind}")
            torch.save(found, f"{place}/{name}-{kind}-{crew.rank}.pt")
    for kind in (ByRows, ByLatents):
        out = f"{place}/stopped-{kind.__name__}"
        stopped(kind(crew), out)
        crew.gather("the first has written")
        torch.save(learnt("top_k", kind(crew), out), f"{out}-{crew.rank}.pt")
        stopped(kind(crew), f"{place}/left-{kind.__name__}")
"""


def data():
    """Few directions, far from zero, and on a scale of its own."""
    make = torch.Generator().manual_seed(0)
    seeds = torch.rand(800, 20, generator=make) * (torch.rand(800, 20, generator=make) < 0.2)
    return seeds @ torch.randn(20, 14, generator=make) * 3 + 5 + torch.randn(800, 14, generator=make) / 10


def learnt(name, by=None, out=None, told=None):
    m, kept, lesson, _ = CASES[name]
    sites = {"a": 8, "b": 6} if name == "transcoder" else {"a": 14}
    places = (("a",), ("b",)) if name == "transcoder" else ()
    source, shared = Rows(data(), 40), {"by": by} if by else {}
    (found,) = learn([Pupil(m, budget(kept), LATENTS, 0, *places)], source, lesson, sites, out=out, told=told, **shared)
    return {**found.tensors(), **found.own, "dead": torch.tensor(found.about["dead"])}


class Killed(Exception):
    pass


def stopped(by, out, after=5):
    """A run of which all processes are killed when its state is kept after so many steps."""
    whole, plain = CASES["top_k"], Kept.save

    def save(self, done, *rest):
        plain(self, done, *rest)
        if done == after:
            raise Killed

    Kept.save, CASES["top_k"] = save, (*whole[:2], replace(DEAD, save_after=0.0), "")
    with pytest.raises(Killed):
        learnt("top_k", by, out)
    Kept.save, CASES["top_k"] = plain, whole


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = tmp_path_factory.mktemp("sharing")
    ended(start(LEARN, found))
    return found


def loaded(file):
    return torch.load(file, weights_only=True)


def same(one, two):
    assert one.keys() == two.keys()
    for name, t in one.items():
        torch.testing.assert_close(t, two[name], rtol=2e-3, atol=2e-4, msg=lambda said, name=name: f"{name}: {said}")


ALL = [(name, kind) for name, (*_, how) in CASES.items() for kind in how.split()]


@pytest.mark.parametrize("name, kind", ALL)
def test_two_processes_learn_what_one_does(name, kind, place):
    found = [loaded(place / f"{name}-{kind}-{rank}.pt") for rank in (0, 1)]
    alone = learnt(name, out=place / f"{name}-{kind}-alone")
    same(found[0], alone)
    assert all(torch.equal(t, found[1][word]) for word, t in found[0].items()), "both know the same"
    lines = [
        [json.loads(x) for x in (place / f"{name}-{kind}{end}.jsonl").read_text().splitlines()]
        for end in ("", "-alone")
    ]
    assert len(lines[0]) == len(lines[1]) == STEPS, "one of the two writes"
    for a, b in zip(*lines, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["step"] == b["step"]
    states = [load_file(place / f"{name}-{kind}{end}.partial") for end in ("", "-alone")]
    same(*states)


@pytest.mark.parametrize("kind", ["ByRows", "ByLatents"])
def test_a_killed_run_goes_on_with_two_or_alone(kind, place):
    whole = loaded(place / f"top_k-{kind}-0.pt")
    again = loaded(place / f"stopped-{kind}-0.pt")
    assert all(torch.equal(t, again[name]) for name, t in whole.items()), "to the bit with as many"
    left = place / f"left-{kind}"
    assert len(left.with_suffix(".jsonl").read_text().splitlines()) == 5
    told = []
    same(learnt("top_k", None, left, told.append), whole)
    assert told[0]["step"] == 6


def test_the_dead_are_taught_in_these_runs():
    taught, lesson = learnt("top_k"), replace(DEAD, aux=0.0)
    CASES["untaught"] = (TopK(), "4", lesson, "")
    assert (taught["encoder"] - learnt("untaught")["encoder"]).abs().max() > 0.01


THREE = Crew(0, 3)


@pytest.mark.parametrize(
    ("by", "pupil", "says"),
    [
        (ByRows(THREE), Pupil(TopK(), budget("4"), 63), "batches of 40 rows cannot be dealt out evenly to 3 processes"),
        (
            ByRows(Crew(0, 2)),
            Pupil(FeatureChoice(), budget("4"), 64),
            "features/feature_choice '4' looks at whole batches",
        ),
        (ByRows(Crew(0, 2)), Pupil(JumpRelu(), budget("4"), 64), "features/jump_relu '4' looks at whole batches"),
        (ByLatents(THREE), Pupil(TopK(), budget("4"), 64), "64 latents cannot be dealt out evenly to 3 processes"),
        (
            ByLatents(THREE),
            Pupil(BatchTopK(), budget("4"), 63),
            "features/batch_top_k '4' looks at all latents at once",
        ),
        (ByLatents(THREE), Pupil(HierarchicalTopK(), budget("4"), 63), "looks at all latents at once"),
    ],
)
def test_what_cannot_be_shared_is_a_sentence(by, pupil, says):
    with pytest.raises(ValueError, match=says):
        learn([pupil], Rows(data(), 40), Lesson(2), by=by)


def test_parts_are_the_batches():
    whole, parts = Rows(data(), 40), [Rows(data(), 40).share(rank, 4) for rank in range(4)]
    for _, batch, *some in zip(range(5), whole.since(18), *(part.since(18) for part in parts), strict=False):
        assert torch.equal(batch, torch.cat(some))
