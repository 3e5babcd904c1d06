"""Dictionaries that choose by what matters to the model: the slopes that come with the stream, and what is made of them."""

import pytest
import torch
import torch.nn.functional as F
from tiny import build

from fewer.core import budget
from fewer.features.gradient_top_k import GradientTopK
from fewer.features.top_k import TopK
from fewer.models.tap import Tap, activations, find_taps, hooked
from fewer.train import Lesson, Live, Pupil, Rows, learn
from fewer.train.known import Known
from fewer.train.one import One

SITES = {"a": 8, "a:gradient": 8}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("site", ["layers.0", "layers.1.mlp:in"])
def test_the_stream_brings_the_slope_of_the_next_token_loss(site):
    """Against finite differences along a random way, in float64, at a few tokens."""
    model = build("llama").double()
    (tap,) = find_taps(model, [site])
    ids = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    slope = Tap(tap.path, tap.hears, True)
    assert Tap.read(str(slope)) == slope
    both = activations(model, [tap, slope], ids)
    width = both.shape[-1] // 2
    assert torch.allclose(both[..., :width], activations(model, [tap], ids))
    way, h = draw(2, 6, width).double(), 1e-3  # norms are taken in float32

    def loss(step):
        with torch.no_grad(), hooked(model, {tap: lambda x: x + step * way}):
            said = model(ids, use_cache=False).logits
        return F.cross_entropy(said[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()

    right = (loss(h) - loss(-h)) / (2 * h)
    assert (both[..., width:].double() * way).sum().item() == pytest.approx(right, rel=1e-2)
    assert not any(p.grad is not None for p in model.parameters())


def test_uniform_slopes_are_top_k_to_the_bit():
    pre, x = draw(12, 20), draw(400, 8)
    for pull in ({"pull": torch.full((12, 20), 0.5)}, {}):
        assert torch.equal(GradientTopK().code(pre, budget("3"), pull), TopK().code(pre, budget("3")))
    plain = learn([Pupil(TopK(), budget("4"), 24, 0, ("a",))], Rows(x, 50), Lesson(10), {"a": 8})[0]
    known = Known.of(torch.cat([x, torch.ones(400, 8)], 1), SITES)
    one = One(Pupil(GradientTopK(), budget("4"), 24).at([*SITES]), known, Lesson(10), 50)
    assert torch.equal(known.seen(torch.cat([x, torch.ones(400, 8)], 1))[:, 8:], torch.ones(400, 8)), (
        "slopes stay as they are"
    )
    assert one.pupil.reads == ("a",) and plain.decoder.shape == one.tensors["decoder"].shape


def test_who_speaks_is_told_by_amount_times_slope_along_the_atom():
    x = torch.cat([3 * draw(50, 8) + 1, draw(50, 8, seed=1)], 1)
    known = Known.of(x, SITES)
    one = One(Pupil(GradientTopK(), budget("4"), 24).at([*SITES]), known, Lesson(aux=0.0), 50)
    rows, t = known.seen(x), {k: v.detach().double() for k, v in one.tensors.items()}
    pre = rows[:, :8].double() @ t["encoder"].T
    plain = t["decoder"] * known.scale[:8].double()  # atoms in the units of the data
    right = torch.zeros_like(pre)
    for i in range(50):
        score = [(pre[i, j] * abs(x[i, 8:].double() @ plain[j])).item() for j in range(24)]
        for j in sorted(range(24), key=lambda j: -score[j])[:4]:
            right[i, j] = pre[i, j].clamp(min=0)
    loss = (rows[:, :8].double() - right @ t["decoder"]).square().mean().item()
    assert one.loss(rows, 0.0).item() == pytest.approx(loss, rel=1e-5)


def test_it_learns_from_a_running_model_and_needs_no_slope_afterwards():
    model = build("llama")
    (tap,) = find_taps(model, ["layers.0"])
    windows = torch.randint(1, 50, (24, 16), generator=torch.Generator().manual_seed(0))
    sites = {"layers.0": 32, "layers.0:gradient": 32}
    source = Live(model, [tap, Tap(tap.path, False, True)], windows, 64)
    (d,) = learn([Pupil(GradientTopK(), budget("4"), 64)], source, Lesson(10), sites)
    x = activations(model, [tap], windows).flatten(0, 1)
    assert d.reads == d.writes == ("layers.0",) and d.encoder.shape == (64, 32)
    assert ((d.encode(x).value != 0).sum(1) <= 4).all()
    with pytest.raises(ValueError, match="needs layers.0:gradient in the stream"):
        learn([Pupil(GradientTopK(), budget("4"), 64)], Live(model, [tap], windows, 64), Lesson(10), {"layers.0": 32})
    learnt = learn([Pupil(TopK(), budget("4"), 64)], source, Lesson(10), sites)[0]
    assert learnt.encoder.shape == (64, 32), "a stream with slopes teaches others too"
