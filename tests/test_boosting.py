"""Boosting: the first dictionary stays, the second knows the new domain and keeps silent elsewhere, and both are one."""

import pytest
import torch
import torch.nn.functional as F
from tiny import build

from fewer.core import budget
from fewer.dictionaries import load, save, spliced
from fewer.dictionaries.judge import judge
from fewer.features import Dictionary
from fewer.features.abs_top_k import AbsTopK
from fewer.features.batch_top_k import BatchTopK
from fewer.features.boosted import Boosted
from fewer.features.jump_relu import JumpRelu
from fewer.features.matching_pursuit import MatchingPursuit
from fewer.features.top_k import TopK
from fewer.measure import reconstruction
from fewer.models import Tap, hooked
from fewer.train import Lesson, Pupil, Rows, boosted, learn, learn_boost
from fewer.train.boosting import Missed

MAKE = torch.Generator().manual_seed(0)
ATOMS = F.normalize(torch.randn(40, 24, generator=MAKE), dim=1)


def text(count, domain, seed):
    """Sums of three of the first 32 directions; in the domain, also of one of the last 8, loud."""
    make = torch.Generator().manual_seed(seed)
    z = torch.zeros(count, 40)
    z.scatter_(1, torch.rand(count, 32, generator=make).argsort(1)[:, :3], 1 + torch.rand(count, 3, generator=make))
    if domain:
        z.scatter_(1, 32 + torch.randint(8, (count, 1), generator=make), 3 + torch.rand(count, 1, generator=make))
    return z @ ATOMS + 0.5


def quality(d, x):
    return reconstruction([(part, d(part), d.encode(part)) for part in x.split(500)])


def test_the_domain_is_learnt_and_the_rest_stays():
    lesson = Lesson(250, rate=1e-2)
    (base,) = learn([Pupil(BatchTopK(), budget("3"), 64)], Rows(text(8000, False, 1), 200), lesson)
    before = {name: t.clone() for name, t in base.tensors().items()}
    both = learn_boost(base, Pupil(BatchTopK(), budget("1"), 16, 1), Rows(text(8000, True, 2), 200), lesson)
    for name, t in base.tensors().items():
        assert torch.equal(t, before[name])
        whole = both.tensors()[name]
        assert torch.equal(whole[: len(t)], t), name
    general, domain = text(2000, False, 3), text(2000, True, 4)
    old, new = (quality(d, domain) for d in (base, both))
    assert new.fvu.value < old.fvu.value / 2
    old, new = (quality(d, general) for d in (base, both))
    assert new.explained.value > old.explained.value - 0.01
    second = domain @ both.encoder[64:].T + both.encoder_bias[64:] > both.own["1.threshold"]
    alone = quality(base, domain).l0.value + second.sum(1).float().mean().item()
    assert quality(both, domain).l0.value == pytest.approx(alone)
    assert torch.equal(both.decoder_bias, base.decoder_bias)  # the second has none


def some(sparsifier, k, latents, seed, own=None, width=32):
    make = torch.Generator().manual_seed(seed)
    w = [torch.randn(latents, width, generator=make) for _ in range(2)]
    b = torch.randn(latents, generator=make), torch.randn(width, generator=make)
    site = ("model.layers.0",)
    return Dictionary(sparsifier, budget(str(k)), w[0], b[0], w[1], b[1], own or {}, None, site, site)


def three():
    return (
        some(TopK(), 4, 20, 0),
        some(BatchTopK(), 3, 30, 1, {"threshold": torch.tensor(2.0)}),
        some(JumpRelu(bandwidth=0.2), 5, 25, 2, {"threshold": torch.linspace(3, 9, 25)}),
    )


def test_what_they_say_adds_up_in_any_order_of_adding_and_is_kept(tmp_path):
    one, two, three_ = three()
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(3))
    truth = one(x) + two(x) + three_(x)
    for both in (boosted(boosted(one, two), three_), boosted(one, boosted(two, three_))):
        assert torch.allclose(both(x), truth, atol=1e-4) and both.latents == 75
        l0 = sum((d.encode(x).value != 0).sum(1) for d in (one, two, three_))
        assert torch.equal((both.encode(x).value != 0).sum(1), l0) and l0.float().mean() > 6
    save(both, tmp_path / "both")
    found = load(tmp_path / "both")
    assert found.sparsifier == both.sparsifier and torch.equal(found(x), both(x))
    assert "jump_relu(bandwidth=0.2) 5 of 25" in found.sparsifier.parts


def test_a_sum_is_spliced_and_judged_as_any_other():
    model, (one, two, _) = build("llama"), three()
    both, ids = boosted(one, two), torch.randint(3, 99, (3, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), spliced(model, both):
        ours = model(ids).logits
    with (
        torch.no_grad(),
        hooked(model, {Tap("model.layers.0"): lambda x: (one(x.flatten(0, 1)) + two(x.flatten(0, 1))).view_as(x)}),
    ):
        assert torch.allclose(ours, model(ids).logits, atol=1e-4)
    row = judge(both, model, ids, controls=False)[0]
    assert row["l0"] > 4 and "kl" in row


def test_what_a_transcoder_misses_lies_beside_what_it_reads():
    d = some(AbsTopK(), 4, 20, 0)
    d = Dictionary(
        d.sparsifier,
        d.budget,
        d.encoder,
        d.encoder_bias,
        d.decoder[:, :5],
        d.decoder_bias[:5],
        reads=("a",),
        writes=("b",),
    )
    rows = torch.randn(40, 37, generator=torch.Generator().manual_seed(0))
    batch = next(iter(Missed(Rows(rows, 40), d)))
    whole = next(iter(Rows(rows, 40)))
    assert torch.equal(batch[:, :32], whole[:, :32]) and torch.allclose(batch[:, 32:], whole[:, 32:] - d(whole[:, :32]))
    with pytest.raises(ValueError, match="37 columns, the dictionary reads 32 and writes 32"):
        next(iter(Missed(Rows(rows, 40), some(TopK(), 4, 20, 0))))


def test_what_does_not_fit_is_a_sentence():
    one = some(TopK(), 4, 20, 0)
    with pytest.raises(ValueError, match="dictionaries of one width add up"):
        boosted(one, some(TopK(), 4, 20, 0, width=16))
    for parts, says in (
        ("features/top_k 4", "not a part: 'features/top_k 4'"),
        ("features/top_k 4 of 9", "says 9 latents, there are 20"),
        ("features/matching_pursuit 4 of 20", "by pre-activations alone"),
    ):
        with pytest.raises(ValueError, match=says):
            Boosted(parts).code(torch.zeros(2, 20), budget("4"))
    with pytest.raises(ValueError, match="compares what is read"):
        learn_boost(one, Pupil(MatchingPursuit(), budget("4"), 20), Rows(torch.randn(400, 32), 40))
