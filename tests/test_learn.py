"""Learning dictionaries: scale and mean of the data do not matter, many are learnt as one is, and a kill changes nothing."""

import pytest
import torch

from fewer.core import budget
from fewer.features.batch_top_k import BatchTopK
from fewer.features.top_k import TopK
from fewer.train import Lesson, Pupil, Rows, learn

WIDTHS = {"one": [8], "transcoder": [8, 6], "crosscoder": [5, 4]}
TEN = Lesson(10, rate=1e-2, dead_after=100)


def data(width, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(400, 12, generator=make) @ torch.randn(12, width, generator=make) + torch.randn(
        width, generator=make
    )


def sites(kind):
    names = [f"s{i}" for i in range(len(WIDTHS[kind]))]
    return (names[:1], names[1:]) if kind == "transcoder" else (names, [])


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("sparsifier", [TopK(), BatchTopK()], ids=lambda m: m.name)
def test_scale_and_mean_of_a_site_come_back_as_they_went_in(kind, sparsifier, skip):
    widths, (reads, writes) = WIDTHS[kind], sites(kind)
    x = data(sum(widths))
    scale = torch.cat([torch.full((w,), 3.0 + 2 * i) for i, w in enumerate(widths)])
    shift = torch.linspace(-5, 5, sum(widths))
    lesson = Lesson(10, rate=1e-2, skip=skip)
    (plain,), (moved,) = (
        learn([Pupil(sparsifier, budget("4"), 20)], Rows(rows, 50), lesson, reads, writes, widths)
        for rows in (x, x * scale + shift)
    )
    cut = widths[0] if writes else 0
    read, said = (x[:, :cut], slice(cut, None)) if writes else (x, slice(None))
    at = slice(0, cut) if writes else slice(None)
    truth = plain(read).double() * scale[said] + shift[said]
    apart = (moved(read * scale[at] + shift[at]).double() - truth).abs().amax(1)
    assert (apart < 2e-3).double().mean() > 0.97  # where rounding has not made another latent the last that speaks
    (before,) = learn([Pupil(sparsifier, budget("4"), 20)], Rows(x, 50), Lesson(1, rate=1e-9), reads, writes, widths)
    missed = [(d(read) - x[:, said]).square().mean() for d in (plain, before)]
    assert missed[0] < missed[1]  # and it has learnt something


def test_many_are_learnt_as_each_alone():
    pupils = [Pupil(TopK(), budget("4"), 20), Pupil(BatchTopK(), budget("3"), 30, seed=1)]
    together = learn(pupils, Rows(data(8), 50), TEN)
    for pupil, one in zip(pupils, together, strict=True):
        (alone,) = learn([pupil], Rows(data(8), 50), Lesson(10, rate=1e-2, dead_after=100))
        assert torch.equal(alone.encoder, one.encoder) and torch.equal(alone.decoder, one.decoder)


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    pupils, x = [Pupil(BatchTopK(), budget("4"), 60)], data(8)
    lesson = Lesson(12, rate=1e-2, dead_after=60, save_after=0.0)
    (whole,) = learn(pupils, Rows(x, 50), lesson, out=tmp_path / "whole")

    def die(row):
        if row["step"] == 7:
            raise Killed

    told = []
    with pytest.raises(Killed):
        learn(pupils, Rows(x, 50), lesson, out=tmp_path / "two", told=die)
    (halves,) = learn(pupils, Rows(x, 50), lesson, out=tmp_path / "two", told=told.append)
    assert told[0]["step"] == 8
    assert all(torch.equal(t, halves.tensors()[name]) for name, t in whole.tensors().items())
    assert torch.equal(whole.own["threshold"], halves.own["threshold"]) and whole.about["dead"] == halves.about["dead"]


def test_the_dead_are_counted_in_tokens():
    """A latent that points away from all data never speaks: it is dead after so many tokens, not before."""
    x = data(8).abs()
    for steps, dead_after, most in ((9, 500, 0), (12, 500, 64)):
        (found,) = learn(
            [Pupil(TopK(), budget("1"), 64)], Rows(x, 50), Lesson(steps, rate=1e-9, aux=0.0, dead_after=dead_after)
        )
        latents = found.encode(x).index.unique().numel()
        assert (found.about["dead"] == 0) if most == 0 else (64 - latents <= found.about["dead"] <= most)


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda: Pupil(TopK(), budget("21"), 20), "keep at most 20"),
        (lambda: Pupil(TopK(), budget("4"), 0), "latents=0: ask for at least 1"),
        (
            lambda: learn([Pupil(TopK(), budget("4"), 20)], Rows(data(8), 50), TEN, ["a"], ["b"], [4, 5]),
            "batches have 8 columns",
        ),
        (lambda: learn([Pupil(TopK(), budget("4"), 20)], Rows(data(8) * torch.nan, 50), TEN), "NaN or infinite"),
        (
            lambda: learn([Pupil(TopK(), budget("4"), 20)], Rows(torch.ones(400, 8), 50), TEN),
            "there is nothing to learn",
        ),
    ],
)
def test_bad_input_is_a_sentence(do, says):
    with pytest.raises(ValueError, match=says):
        do()
