"""Streams of any module's activations: images, embedders, several models at once; and dictionaries that learn from them."""

import itertools

import pytest
import torch
from tiny import batch, build
from torch import nn

from fewer.core import budget
from fewer.features.top_k import TopK
from fewer.models import find_taps
from fewer.models.tap import tapped
from fewer.train import Beside, Lesson, Live, Pupil, Rows, learn


def some(source, count, since=0):
    return [b.clone() for b in itertools.islice(source.since(since), count)]


def said(model, tap, *args, **inputs):
    with torch.no_grad(), tapped(model, [tap]) as heard:
        model(*args, **inputs)
    return heard[tap].flatten(0, -2).clone()


def same_rows(found, truth):
    """Each row once at most, each one of the truth's."""
    near = torch.cdist(found.double(), truth.double())
    return near.min(1).values.max() < 1e-4 and len(set(near.argmin(1).tolist())) == len(found)


def test_patches_of_images_come_once_a_pass_and_are_learnt():
    model, images = build("vit"), torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (tap,) = find_taps(
        model, ["layers.1"] if any(n.endswith("layers.1") for n, _ in model.named_modules()) else ["layer.1"]
    )
    source = Live(model, [tap], images, batch=20, pool=6, at_once=4)
    each = 12 * 17 // 20  # 16 patches and the class token; what does not fill a batch of a pool is left out
    found, truth = torch.cat(some(source, each)), said(model, tap, pixel_values=images)
    assert len(truth) == 12 * 17 and same_rows(found, truth)
    assert all(map(torch.equal, some(source, 3, 2), some(source, 5)[2:]))
    (d,) = learn([Pupil(TopK(), budget("4"), 64)], source, Lesson(60, rate=1e-2))
    spread = (truth - truth.mean(0)).square().sum()
    assert (d(truth) - truth).square().sum() / spread < 0.5


def test_an_embedder_gives_its_tokens_or_one_row_a_text():
    model, ids = build("bert"), batch("bert", rows=30, length=10)["input_ids"]
    (tap,) = find_taps(
        model, ["layer.1" if any(n.endswith("layer.1") for n, _ in model.named_modules()) else "layers.1"]
    )
    source = Live(model, [tap], ids, batch=25, pool=15)
    assert same_rows(torch.cat(some(source, 12)), said(model, tap, input_ids=ids))
    (d,) = learn([Pupil(TopK(), budget("4"), 64)], source, Lesson(40, rate=1e-2))
    x = said(model, tap, input_ids=ids)
    assert (d(x) - x).square().sum() / (x - x.mean(0)).square().sum() < 0.6

    class Pooled(nn.Module):
        """One row a text, as sentence embeddings are."""

        def __init__(self):
            super().__init__()
            self.inner, self.pool = model, nn.Identity()

        def forward(self, ids):
            return self.pool(self.inner.base_model(ids).last_hidden_state.mean(1))

    whole = Pooled()
    (pool,) = find_taps(whole, ["pool"])
    found = torch.cat(some(Live(whole, [pool], ids, batch=5), 6))
    assert same_rows(found, said(whole, pool, ids)) and len(found) == 30
    with pytest.raises(ValueError, match=r"leave=\[3\] are token ids, and a window has 1 rows"):
        Live(whole, [pool], ids, batch=5, leave=frozenset([3]))


def test_what_takes_more_than_one_input_is_called_as_told():
    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(6, 4)

        def forward(self, x, time):
            return self.map(x) * time

    model, x = Timed(), torch.randn(20, 6)
    (tap,) = find_taps(model, ["map"])
    found = torch.cat(some(Live(model, [tap], x, batch=5, call=lambda x: model(x, 2.0)), 4))
    assert same_rows(found, model.map(x).detach())


def test_two_models_side_by_side_speak_of_the_same_token():
    ids = batch("llama", rows=20, length=12)["input_ids"]
    models = build("llama"), build("gpt2", seed=1)
    taps = [find_taps(m, [name])[0] for m, name in zip(models, ("layers.1", "h.0"), strict=True)]
    lives = [Live(m, [tap], ids, batch=30, pool=8, seed=2) for m, tap in zip(models, taps, strict=True)]
    source = Beside(lives)
    rows, truth = torch.cat(some(source, 6)), [said(m, tap, ids) for m, tap in zip(models, taps, strict=True)]
    at = [torch.cdist(part.double(), t.double()).argmin(1) for part, t in zip(rows.split(32, 1), truth, strict=True)]
    assert torch.equal(*at) and len(set(at[0].tolist())) > 100
    assert all(map(torch.equal, some(source, 2, 3), some(source, 5)[3:]))
    (cross,) = learn([Pupil(TopK(), budget("8"), 128)], source, Lesson(60, rate=1e-2), {"llama": 32, "gpt2": 32})
    both = torch.cat(truth, 1)
    assert cross.reads == ("llama", "gpt2") and cross.decoder.shape == (128, 64)
    assert (cross(both) - both).square().sum() / (both - both.mean(0)).square().sum() < 0.6


def test_other_orders_do_not_stand_side_by_side():
    x = torch.randn(40, 3)
    with pytest.raises(ValueError, match="sources 0 and 1 mix otherwise"):
        Beside([Rows(x, 4), Rows(x, 4, seed=1)])
    model, ids = build("llama"), batch("llama", rows=6, length=12)["input_ids"]
    (tap,) = find_taps(model, ["layers.0"])
    with pytest.raises(ValueError, match="mix otherwise"):
        Beside([Live(model, [tap], ids, batch=8), Live(model, [tap], ids + 1, batch=8)])
    with pytest.raises(ValueError, match="no source"):
        Beside([])


def test_sites_of_other_numbers_of_rows_are_refused():
    model, images = build("vit"), torch.randn(4, 3, 16, 16)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    taps = find_taps(model, [names[0], "layernorm"])
    with pytest.raises(ValueError, match="as many rows each are needed"):
        Live(model, taps, images, batch=8)
