"""One dictionary for many layers: groups that were planted are found, variances are those of a brute force over all draws."""

import itertools
import math

import pytest
import torch
from tiny import build

from fewer.core import budget
from fewer.dictionaries import load, save, spliced
from fewer.dictionaries.judge import judge
from fewer.dictionaries.layered import at_layers, heard, layer_report, layered
from fewer.features.top_k import TopK
from fewer.layout import Codes
from fewer.measure.layers import amad, angular_distance, layer_cosine, layer_groups, layer_spread
from fewer.models import find_taps
from fewer.train import Lesson, Live, Pupil, learn


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(ends=(0, 3, 4, 9), width=64, tokens=200):
    """Within a group layers are one activation and a little noise; groups have nothing in common."""
    groups = [range(a, b) for a, b in itertools.pairwise(ends)]
    base = draw(len(groups), tokens, width)
    which = [i for i, group in enumerate(groups) for _ in group]
    return groups, base[which] * torch.linspace(1, 5, len(which))[:, None, None] + 0.2 * draw(
        len(which), tokens, width, seed=1
    )


def test_planted_groups_are_found():
    groups, x = planted()
    distance = angular_distance(x.split(50, dim=1))
    assert layer_groups(distance, 3) == groups
    values = [amad(distance, layer_groups(distance, n)) for n in range(1, 10)]
    assert values == sorted(values, reverse=True) and values[-1] == 0
    assert values[1] > 0.2 > 0.1 > values[2]  # three groups are enough, two are not


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_contiguous_cover_all_layers_and_are_those_of_complete_linkage(seed):
    d = draw(7, 7, seed=seed).abs()
    d = (d + d.T).fill_diagonal_(0)
    for count in range(1, 8):
        groups = layer_groups(d, count)
        assert [i for group in groups for i in group] == list(range(7)) and len(groups) == count
    before, after = layer_groups(d, 4), layer_groups(d, 3)
    ways = []
    for i in range(3):
        merged = [*before[:i], range(before[i].start, before[i + 1].stop), *before[i + 2 :]]
        ways.append((max(d[a, b].item() for a in merged[i] for b in merged[i]), merged))
    assert after == min(ways, key=lambda way: way[0])[1]


def test_angles_and_cosines_in_loops():
    x = draw(3, 5, 4)
    angle, cosine = angular_distance(x.split(2, dim=1)), layer_cosine([x])
    for a, b in itertools.product(range(3), repeat=2):
        each = [
            (torch.dot(p, q) / p.norm() / q.norm()).clamp(-1, 1).item()
            for p, q in zip(x[a].double(), x[b].double(), strict=True)
        ]
        assert cosine[a, b].item() == pytest.approx(sum(each) / 5, abs=1e-9)
        assert angle[a, b].item() == pytest.approx(sum(map(math.acos, each)) / 5 / math.pi, abs=1e-7)


def codes_of(z):
    return [Codes.pack(layer, layer != 0) for layer in z]


def test_variances_are_those_of_every_draw_counted():
    """E[Var(L | ...)] over the joint distribution, by enumeration."""
    prompts = [draw(3, n, 4, seed=n).relu() for n in (2, 5)]
    found = layer_spread(codes_of(z) for z in prompts)
    draws = [
        (z[layer, t, f].item(), layer, (number, t), f)
        for number, z in enumerate(prompts)
        for layer, t, f in itertools.product(range(3), range(z.shape[1]), range(4))
    ]
    whole = sum(w for w, *_ in draws)

    def expected(key):
        total = 0.0
        for where in {key(*d[1:]) for d in draws}:
            here = [(d[0], d[1]) for d in draws if key(*d[1:]) == where]
            if (mass := sum(w for w, _ in here)) > 0:
                middle = sum(w * layer for w, layer in here) / mass
                total += sum(w * (layer - middle) ** 2 for w, layer in here) / whole
        return total

    assert found.of_token == pytest.approx(expected(lambda layer, t, f: (t, f)))
    assert found.of_prompt == pytest.approx(expected(lambda layer, t, f: (t[0], f)))
    assert found.of_latent == pytest.approx(expected(lambda layer, t, f: f))
    assert found.of_all == pytest.approx(expected(lambda layer, t, f: 0))
    assert 0 < found.ratio_token < found.ratio_prompt < 1 and 0 < found.ratio_latent < 1
    assert torch.allclose(found.shares.sum(0), torch.ones(4, dtype=torch.float64))


def test_latents_of_one_layer_a_token_and_of_one_layer_ever():
    layer = torch.arange(3)
    one_each = torch.zeros(3, 30, 6)
    one_each[layer[torch.arange(30) % 3], torch.arange(30), :] = 1.0  # another layer at each token, all latents
    found = layer_spread([codes_of(one_each)])
    assert found.ratio_token == 0 and found.ratio_latent == pytest.approx(1) and found.of_latent == pytest.approx(2 / 3)
    fixed = torch.zeros(3, 30, 6)
    fixed[layer[torch.arange(6) % 3], :, torch.arange(6)] = 1.0  # each latent its layer
    found = layer_spread([codes_of(fixed)])
    assert found.of_latent == 0 and found.ratio_latent == 0 and found.of_all == pytest.approx(2 / 3)
    everywhere = layer_spread([codes_of(torch.ones(3, 4, 2))])
    assert everywhere.ratio_token == pytest.approx(1) and everywhere.ratio_latent == pytest.approx(1)


def test_what_does_not_fit_is_a_sentence():
    for count in (0, 4):
        with pytest.raises(ValueError, match="ask for 1 to 3"):
            layer_groups(torch.zeros(3, 3), count)
    with pytest.raises(ValueError, match="no latent said anything"):
        layer_spread([codes_of(torch.zeros(2, 3, 4))])
    with pytest.raises(ValueError, match="of 2 and of 3 layers"):
        layer_spread([codes_of(torch.ones(n, 3, 4)) for n in (2, 3)])
    with pytest.raises(ValueError, match="no token was heard"):
        angular_distance([])


def test_one_dictionary_over_layers_is_put_in_judged_and_told_at_each(tmp_path):
    model, ids = build("llama"), torch.randint(3, 99, (24, 8), generator=torch.Generator().manual_seed(0))
    taps = find_taps(model, ["layers.0", "layers.1"])
    source = Live(model, taps, ids, 64, frozenset({5}), spread=True)
    (learnt,) = learn([Pupil(TopK(), budget("4"), 40)], source, Lesson(20, rate=1e-2))
    d = layered(learnt, list(map(str, taps)))
    save(d, tmp_path / "d")
    assert [at.reads for at in at_layers(load(tmp_path / "d"))] == [("model.layers.0",), ("model.layers.1",)]
    rows, spread = layer_report(d, model, ids, {5})
    for at, row in zip(at_layers(d), rows, strict=True):
        alone = judge(at, model, ids, frozenset({5}), controls=False)[0]
        assert alone["fvu"] == pytest.approx(row["fvu"], rel=1e-5) and alone["l0"] == row["l0"] and "kl" in alone
        with torch.no_grad(), spliced(model, at):
            assert not torch.equal(model(ids).logits, build("llama")(ids).logits)
    x = torch.stack([*torch.cat(list(heard(model, taps, ids, {5})), 1)])
    cosine = torch.nn.functional.cosine_similarity(x[0].double(), x[1].double(), dim=-1).mean().item()
    assert rows[0]["cosine"] == pytest.approx(cosine, abs=1e-6) and "cosine" not in rows[1]
    said = [d.encode(layer).value.sum().item() for layer in x]
    assert (
        rows[0]["share"] == pytest.approx(said[0] / sum(said), rel=1e-4)
        and 0 <= spread.ratio_token <= spread.ratio_prompt <= 1
    )
    with pytest.raises(ValueError, match="is for one site"):
        layer_report(at_layers(d)[0], model, ids)
