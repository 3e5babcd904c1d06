"""Learning dictionaries: scale and mean of the data do not matter, many are learnt as one is, and a kill changes nothing."""

import pytest
import torch

from fewer.core import budget, find
from fewer.features.batch_top_k import BatchTopK
from fewer.features.matching_pursuit import MatchingPursuit
from fewer.features.top_k import TopK
from fewer.train import Apart, Lesson, Pupil, Rows, Summed, learn

SITES = {"one": {"a": 8}, "transcoder": {"a": 8, "b": 6}, "crosscoder": {"a": 5, "b": 4}}
TEN = Lesson(10, rate=1e-2, dead_after=100)


def data(width, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(400, 12, generator=make) @ torch.randn(12, width, generator=make) + torch.randn(
        width, generator=make
    )


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("sparsifier", [TopK(), BatchTopK()], ids=lambda m: m.name)
def test_scale_and_mean_of_a_site_come_back_as_they_went_in(kind, sparsifier, skip):
    sites = SITES[kind]
    widths, pair = [*sites.values()], (("a",), ("b",)) if kind == "transcoder" else ()
    x = data(sum(widths))
    scale = torch.cat([torch.full((w,), 3.0 + 2 * i) for i, w in enumerate(widths)])
    shift = torch.linspace(-5, 5, sum(widths))
    pupil, lesson = Pupil(sparsifier, budget("4"), 20, 0, *pair), Lesson(10, rate=1e-2, skip=skip)
    (plain,), (moved,) = (learn([pupil], Rows(rows, 50), lesson, sites) for rows in (x, x * scale + shift))
    at, said = (slice(0, 8), slice(8, None)) if pair else (slice(None), slice(None))
    read, truth = x[:, at], plain(x[:, at]).double() * scale[said] + shift[said]
    apart = (moved(read * scale[at] + shift[at]).double() - truth).abs().amax(1)
    assert (apart < 2e-3).double().mean() > 0.97  # where rounding has not made another latent the last that speaks
    (before,) = learn([pupil], Rows(x, 50), Lesson(1, rate=1e-9), sites)
    missed = [(d(read) - x[:, said]).square().mean() for d in (plain, before)]
    assert missed[0] < missed[1]  # and it has learnt something


def test_many_are_learnt_as_each_alone():
    pupils = [Pupil(TopK(), budget("4"), 20), Pupil(BatchTopK(), budget("3"), 30, seed=1)]
    together = learn(pupils, Rows(data(8), 50), TEN)
    for pupil, one in zip(pupils, together, strict=True):
        (alone,) = learn([pupil], Rows(data(8), 50), Lesson(10, rate=1e-2, dead_after=100))
        assert torch.equal(alone.encoder, one.encoder) and torch.equal(alone.decoder, one.decoder)


def test_several_sites_from_one_stream_are_each_a_dictionary_of_its_own():
    x = data(8 + 6)
    pupils = [Pupil(TopK(), budget("4"), 20, 0, ("a",)), Pupil(TopK(), budget("4"), 20, 0, ("b",))]
    together = learn(pupils, Rows(x, 50), Lesson(10, rate=1e-2), {"a": 8, "b": 6})
    for one, rows in zip(together, (x[:, :8], x[:, 8:]), strict=True):
        (alone,) = learn([Pupil(TopK(), budget("4"), 20)], Rows(rows.contiguous(), 50), Lesson(10, rate=1e-2))
        assert torch.allclose(alone.decoder, one.decoder, atol=1e-5) and one.reads == one.writes != ()


def test_a_cross_layer_transcoder_adds_up():
    """Planted: what layer 2 says is one direction read at layer 1 and another read at layer 2; only the sum explains it."""
    make = torch.Generator().manual_seed(0)
    read = [torch.rand(4000, 6, generator=make) * (torch.rand(4000, 6, generator=make) < 0.3) for _ in range(2)]
    maps = [torch.randn(6, 5, generator=make) for _ in range(3)]
    written = [read[0] @ maps[0], read[0] @ maps[1] + read[1] @ maps[2]]
    sites, rows = {"in1": 6, "in2": 6, "out1": 5, "out2": 5}, torch.cat([*read, *written], 1)
    pupils = [
        Pupil(TopK(), budget("6"), 24, 0, ("in1",), ("out1", "out2")),
        Pupil(TopK(), budget("6"), 24, 1, ("in2",), ("out2",)),
    ]
    missed = {}
    for together in (Apart(), Summed()):
        found = learn(pupils, Rows(rows, 100), Lesson(500, rate=1e-2), sites, together=together)
        said = [d(x) for d, x in zip(found, read, strict=True)]
        second = said[0][:, 5:] + said[1] if together.adds else said[1]
        missed[together.adds] = (
            (second - written[1]).square().sum() / (written[1] - written[1].mean(0)).square().sum()
        ).item()
        assert ((said[0][:, :5] - written[0]).square().mean() / written[0].var(0).mean()).item() < 0.1
    assert missed[True] < 0.05 < 0.3 < missed[False]


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["batch_top_k", "mutual_choice", "matryoshka", "gated", "matching_pursuit"])
def test_a_killed_run_goes_on_to_the_bit(name, tmp_path):
    pupils, x = [Pupil(find(f"features/{name}")(), budget("4"), 60)], data(8)
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
    assert all(torch.equal(t, halves.own[key]) for key, t in whole.own.items())
    assert whole.about["dead"] == halves.about["dead"]


def test_the_dead_are_counted_in_tokens():
    """A latent that points away from all data never speaks: it is dead after so many tokens, not before."""
    x = data(8).abs()
    for steps, dead_after, most in ((9, 500, 0), (12, 500, 64)):
        (found,) = learn(
            [Pupil(TopK(), budget("1"), 64)], Rows(x, 50), Lesson(steps, rate=1e-9, aux=0.0, dead_after=dead_after)
        )
        latents = found.encode(x).index.unique().numel()
        assert (found.about["dead"] == 0) if most == 0 else (64 - latents <= found.about["dead"] <= most)


def never(row):
    raise AssertionError("a step was taken")


def checked(unseen):
    return learn([Pupil(TopK(), budget("4"), 20)], Rows(data(8), 50), TEN, told=never, unseen=Rows(unseen, 50))


def test_other_settings_do_not_replace_what_was_learnt(tmp_path):
    pupil, x = [Pupil(TopK(), budget("4"), 20)], data(8)
    learn(pupil, Rows(x, 50), TEN, out=tmp_path / "sae")
    other, held = Lesson(10, rate=2e-2, dead_after=100), (tmp_path / "sae.partial").read_bytes()
    with pytest.raises(ValueError, match=r"holds 10 steps of .*rate=0.01 there, rate=0.02 here.*--force"):
        learn(pupil, Rows(x, 50), other, out=tmp_path / "sae", told=never)
    assert (tmp_path / "sae.partial").read_bytes() == held
    (found,) = learn(pupil, Rows(x, 50), other, out=tmp_path / "sae", force=True)
    assert torch.equal(found.decoder, learn(pupil, Rows(x, 50), other)[0].decoder)


@pytest.mark.parametrize("m", [TopK(), BatchTopK()], ids=lambda m: m.name)
def test_what_cannot_be_coded_is_a_sentence(m):
    (d,) = learn([Pupil(m, budget("4"), 20)], Rows(data(8), 50), TEN)
    x, bad = torch.zeros(3, 8), torch.zeros(3, 8)
    bad[1, 2] = torch.nan
    cases = (
        (x[:, :7], r"inputs of shape \(3, 7\): this dictionary reads rows, \[batch, 8\]$"),
        (x[None], r"inputs of shape \(1, 3, 8\): .*x.reshape\(-1, 8\)"),
        (x.double(), r"inputs in torch.float64, the dictionary in torch.float32: write x.to\(torch.float32\)"),
        (bad, "inputs: row 1 is NaN or infinite"),
    )
    for call in (d.encode, d):
        for given, says in cases:
            with pytest.raises(ValueError, match=says):
                call(given)
        call(x + 1e38), call(x[:0])  # large is not infinite; none is none


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda: Pupil(TopK(), budget("21"), 20), "keep at most 20"),
        (lambda: Pupil(TopK(), budget("4"), 0), "latents=0: ask for at least 1"),
        (
            lambda: learn([Pupil(TopK(), budget("4"), 20)], Rows(data(8), 50), TEN, {"a": 4, "b": 5}),
            "batches have 8, which they must share out",
        ),
        (
            lambda: learn([Pupil(MatchingPursuit(), budget("4"), 20)], Rows(data(8), 50), Lesson(10, skip=True)),
            "features/matching_pursuit compares what is read",
        ),
        (lambda: learn([Pupil(TopK(), budget("4"), 20)], Rows(data(8) * torch.nan, 50), TEN), "NaN or infinite"),
        (
            lambda: learn([Pupil(TopK(), budget("4"), 20, 0, ("b",))], Rows(data(8), 50), TEN, {"a": 8}),
            "'b' is not in the stream",
        ),
        (lambda: learn([], Rows(data(8), 50), TEN), "there is no dictionary to learn: give at least one Pupil"),
        (lambda: checked(data(7)), r"the held-out data \(`unseen`\).*rows of 7 columns.*from have 8"),
        (lambda: checked(data(8) * torch.nan), r"the held-out data \(`unseen`\).*NaN or infinite"),
        (
            lambda: learn([Pupil(TopK(), budget("4"), 20)], Rows(torch.ones(400, 8), 50), TEN),
            "there is nothing to learn",
        ),
    ],
)
def test_bad_input_is_a_sentence(do, says):
    with pytest.raises(ValueError, match=says):
        do()
