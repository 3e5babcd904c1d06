"""Steps of a kind: room for the dead changes nothing that is learnt, and what a GPU repeats is what it would have been told."""

import json

import pytest
import torch
import torch.nn.functional as F

from fewer.core import budget, find
from fewer.features.top_k import TopK
from fewer.train import Lesson, Pupil, Rows, learn, recorded
from fewer.train.known import Known
from fewer.train.one import LOOK, One
from fewer.train.rows import RowAdam

DIM, LATENTS, BATCH = 16, 96, 32
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")


def rows(n, seed=0):
    make = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(40, DIM, generator=make), dim=1)
    z = (torch.rand(n, 40, generator=make) < 0.1) * torch.rand(n, 40, generator=make)
    return z @ atoms + 0.01 * torch.randn(n, DIM, generator=make)


def run(steps, alike):
    """Losses and tensors, and how many were dead and had room at each step."""
    x = rows(4096)
    known = Known.of(x, {"": DIM})
    one = One(Pupil(TopK(), budget("2"), LATENTS, seed=3).at([""]), known, Lesson(aux=0.3, dead_after=800), BATCH)
    assert one.alike
    one.alike = alike
    optimizer = RowAdam(one.tensors, one.rows, ["decoder"])
    optimizer.param_groups[0]["lr"] = 1e-2
    losses, room = [], []
    for step in range(steps):
        room.append((one.kind(step), int((one.tensors["silent"] > one.dead_after - BATCH).sum())))
        optimizer.zero_grad()
        loss = one.loss(known.seen(x[step * BATCH :][:BATCH]), 0.5)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, one.tensors, room


def test_room_for_the_dead_is_never_too_small_and_changes_nothing():
    losses, tensors, room = run(70, True)
    plain, same, _ = run(70, False)
    assert any(dead for _, dead in room), "nobody died: nothing was tested"
    assert all(dead <= place for place, dead in room)
    assert len({place for place, _ in room}) > 1
    assert losses == pytest.approx(plain, rel=1e-4)
    for name, t in same.items():
        assert torch.allclose(tensors[name], t, atol=1e-4), name


def test_where_one_looks_changes_nothing():
    """A run that goes on looks at once, not when the whole run would have."""
    _, tensors, _ = run(LOOK + 5, True)
    x = rows(4096)
    known = Known.of(x, {"": DIM})
    ones = [
        One(Pupil(TopK(), budget("2"), LATENTS).at([""]), known, Lesson(aux=0.3, dead_after=800), BATCH) for _ in "ab"
    ]
    for one in ones:
        for name, t in tensors.items():
            one.tensors[name].data.copy_(t)
    ones[0].kind(0)
    ones[1].kind(LOOK + 5)
    ones[1].room = min(LATENTS, 2 * ones[1].room)
    found = [one.loss(known.seen(x[:BATCH]), 0.5) for one in ones]
    for loss in found:
        loss.backward()
    assert torch.equal(found[0], found[1])
    assert torch.equal(ones[0].tensors["encoder_bias"].grad, ones[1].tensors["encoder_bias"].grad)


def test_other_kinds_are_done_as_they_are():
    done = []
    step = recorded.Recorded(lambda x: done.append(x) or x, on_gpu=False)
    for kind in (None, 1, 1, 1, 1, 1):
        step(kind, torch.ones(1))
    assert len(done) == 6


@CUDA
@pytest.mark.parametrize("name", ["top_k", "abs_top_k", "hierarchical_top_k"])
def test_a_recorded_run_is_a_launched_one_to_the_bit(name, monkeypatch, tmp_path):
    x = rows(20_000).cuda()

    def learnt(out, steps=120):
        told = []
        pupil = Pupil(find(f"features/{name}")(), budget("4"), LATENTS)
        lesson = Lesson(steps, dead_after=2000, save_after=0.0)
        (d,) = learn([pupil], Rows(x, 256), lesson, out=tmp_path / out, told=told.append)
        return d, told

    d, told = learnt("recorded")
    monkeypatch.setattr(recorded, "FIRST", 10**9)
    plain, same = learnt("launched")
    assert d.about["dead"] or any(row["loss"] for row in told)
    assert json.dumps(told) == json.dumps(same)
    for word, t in plain.tensors().items():
        assert torch.equal(d.tensors()[word], t), word
