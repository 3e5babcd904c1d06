"""What attention methods compute, against formulas written out and against what was planted."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from fewer.attention import ByScore, Pattern, in_blocks, reads
from fewer.core import find, methods
from fewer.core.budget import budget
from fewer.core.spell import method_of

REMEMBER = [name for name in methods("attention") if issubclass(find(name), ByScore)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(q, k):
    """q.k / sqrt(d) in float64, by repeated keys."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1).double()
    return q.double() @ k.mT / math.sqrt(q.shape[-1])


def attention(q, k):
    """Causal, in float64; the last query at the last key."""
    far = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return logits(q, k).masked_fill(~far, -torch.inf).softmax(-1)


def by_blocks(x, rows, block, how):
    """`how` over each block of `[.., queries, keys]`, one after another; the last may be short."""
    cut = [[how(part) for part in strip.split(block, -1)] for strip in x.split(rows, -2)]
    return torch.stack([torch.stack(strip, -1) for strip in cut], -2)


def highest(x):
    return x.amax((-1, -2))


@pytest.mark.parametrize("m", [method_of("quest", "attention"), method_of("lserve(part=4, block=16)", "attention")])
def test_a_box_never_promises_less_than_a_page_holds(m):
    m = replace(m, rows=2)
    for seed in range(200):
        q, k = draw(2, 4, 6, 8, seed=seed), 3 * draw(2, 2, 37, 8, seed=seed + 1000)
        true = by_blocks(logits(q, k), 2, 16, highest)
        scale = math.sqrt(8) if m.name == "attention/quest" else 1.0
        assert (m.score(q, m.digest(k)) >= scale * true - 1e-5).all()


def test_boxes_of_parts_are_no_wider_than_one_box():
    q, k = draw(1, 4, 3, 8), draw(1, 2, 64, 8, seed=1)
    bounds = [m.score(q, m.digest(k)) for m in (method_of(f"lserve(part={n})", "attention") for n in (1, 4, 16, 64))]
    assert all((a <= b + 1e-6).all() for a, b in itertools.pairwise(bounds))
    assert torch.allclose(bounds[0].double(), by_blocks(logits(q, k), 1, 64, highest), atol=1e-6)


@pytest.mark.parametrize("name", REMEMBER)
@pytest.mark.parametrize("keys", [1, 15, 64, 65, 100, 127])
def test_a_short_last_block_is_known_by_its_own_keys(name, keys):
    m, k = find(name)(), draw(2, 2, 128, 8)[:, :, :keys]
    last = (keys - 1) // m.block * m.block
    for whole, alone in zip(m.digest(k), m.digest(k[:, :, last:]), strict=True):
        assert whole.shape[:3] == (2, 2, -(-keys // m.block)) and alone.shape[2] == 1
        assert torch.equal(whole[:, :, -1:], alone), "the last block hears of the others, or of what is not there"
        assert not whole.float().isnan().any()


@pytest.mark.parametrize("name", ["bi_level", "seer", "probe_query"])
def test_a_mean_is_over_what_is_there(name):
    k = draw(1, 2, 70, 8)
    (mean,) = find(f"attention/{name}")().digest(k)
    assert torch.allclose(mean[:, :, 1], k[:, :, 64:].mean(2), atol=1e-6)


def test_heavy_channels_are_those_of_the_largest_products():
    q, k = draw(1, 4, 9, 12) * torch.rand(12), draw(1, 2, 11, 12, seed=1) * torch.rand(12)
    m = method_of("heavy_channels(width=3)", "attention").fit(q, k)
    for h in range(2):
        size = torch.zeros(12)
        for head, t, j in itertools.product((2 * h, 2 * h + 1), range(9), range(11)):
            size += (q[0, head, t] * k[0, h, j]).abs()
        heavy = sorted(size.topk(3).indices.tolist())
        assert list(m.heavy[h]) == heavy
        true = q[:, 2 * h : 2 * h + 2][..., heavy] @ k[:, h : h + 1][..., heavy].mT / math.sqrt(12)
        assert torch.allclose(m.score(q, m.digest(k))[:, 2 * h : 2 * h + 2], true, atol=1e-6)


def test_without_a_fit_channels_are_those_of_the_query():
    q, k = draw(1, 2, 5, 12), draw(1, 1, 11, 12, seed=1)
    said = method_of("heavy_channels(width=3)", "attention")
    said = said.score(q, said.digest(k))
    for t in range(5):
        few = q[0, :, t].abs().sum(0).topk(3).indices
        assert torch.allclose(said[0, :, t], q[0, :, t, few] @ k[0, 0, :, few].T / math.sqrt(12), atol=1e-6)


def test_principal_coordinates_are_those_of_a_singular_value_decomposition():
    k = draw(2, 2, 200, 12) @ draw(12, 12, seed=1) + 3
    q = draw(2, 4, 5, 12, seed=2)
    m = method_of("pca_keys(width=4)", "attention").fit(q, k)
    for h in range(2):
        x = k[:, h].flatten(0, 1).double()
        _, _, v = torch.linalg.svd(x - x.mean(0))
        onto = v[:4].T @ v[:4]
        mine = q[:, 2 * h : 2 * h + 2].double() @ onto @ k[:, h : h + 1].double().mT / math.sqrt(12)
        assert torch.allclose(m.score(q, m.digest(k))[:, 2 * h : 2 * h + 2].double(), mine, atol=1e-4)
    whole = method_of("pca_keys(width=12)", "attention").fit(q, k)
    assert torch.allclose(whole.score(q, whole.digest(k)).double(), logits(q, k), atol=1e-4)


@pytest.mark.parametrize("p", [0.3, 0.8, 0.99])
def test_top_p_reads_the_fewest_that_hold_the_share(p):
    m = replace(method_of("twilight", "attention"), p=p)
    q, k = draw(2, 2, 40, 8), draw(2, 2, 40, 8, seed=1)
    score = 2 * draw(2, 2, 40, 40, seed=2)
    keep = reads(score, q, k.shape[1:3], budget("100%"), m)
    prob = score.double().masked_fill(~torch.ones(40, 40, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    held = (prob * keep).sum(-1)
    assert (held >= p - 1e-6).all()
    own = torch.eye(40, dtype=torch.bool).expand_as(keep)
    others = (prob.masked_fill(~keep | own, 2.0)).amin(-1)  # the least that was read beside itself
    assert (held - others < p)[keep.sum(-1) > 1].all(), "one fewer would have done"
    few = reads(score, q, k.shape[1:3], budget("4"), m)
    assert (few.sum(-1) == keep.sum(-1).clamp(max=4)).all() and not (few & ~keep).any()


def test_twilight_holds_the_share_of_the_true_attention():
    q, k = 2 * draw(1, 2, 60, 16), draw(1, 2, 60, 16, seed=1)
    m = method_of("twilight(p=0.9, bits=8)", "attention")
    held = (attention(q, k) * m.attend(q, k, budget("100%"))).sum(-1)
    assert held.min() > 0.89 and m.attend(q, k, budget("100%")).float().mean() < 0.3


def test_one_query_of_a_group_stops_at_the_share_of_the_mean():
    q, k = 2 * draw(1, 4, 1, 16), draw(1, 1, 200, 16, seed=1)
    m = method_of("twilight(p=0.9, bits=8)", "attention")
    keep = m.attend(q, k, budget("100%"))
    held = (attention(q, k).mean(1, keepdim=True) * keep).sum()
    assert keep.shape[1] == 1 and 0.89 < held < 0.93 and keep.sum() < 150


def last_row(m, i, heads):
    """What the last of i + 1 blocks reads, with as many blocks as its pattern has there."""
    q = torch.zeros(1, heads, 1, 4)
    score = m.score_places(torch.tensor([i]), i + 1, heads).expand(-1, heads, -1, -1)[0, :, 0]
    for h in range(heads):
        count = int((score[h] > -torch.inf).sum())
        yield h, m.attend(q, torch.zeros(1, heads, i + 1, 4), budget(str(max(1, count))))[0, h, 0]


def under_one_parent(i, j, f):
    return any(j % f**level == 0 and j // f ** (level + 1) == i // f ** (level + 1) for level in range(8))


DEFINED = {
    "strided(stride=4)": lambda i, j, h: i - j < 4 or (i - j) % 4 == 0,
    "fixed(chunk=4, summary=2)": lambda i, j, h: j // 4 == i // 4 or j % 4 >= 2,
    "dilated(gap=3)": lambda i, j, h: (i - j) % 3 == 0,
    "shifted_groups(group=6, shifts=2)": lambda i, j, h: (i + (h // 2) * 3) // 6 == (j + (h // 2) * 3) // 6,
    "shifted_groups(group=8, shifts=4)": lambda i, j, h: (i + h * 2) // 8 == (j + h * 2) // 8,
    "shards(window=2, stride=3)": lambda i, j, h: i - j < 2 or j % 3 == h % 3,
    "hierarchy(fanout=3)": lambda i, j, h: under_one_parent(i, j, 3),
    "edges(edges=((3, 9), (9, 5), (2, 20), (20, 7), (0, 1)))": lambda i, j, h: (
        j in {9: (3, 5), 20: (2, 7), 1: (0,)}.get(i, ())
    ),
    "labels(labels=((0, 1, 1, 2, 2, 1, 3), (1, 2, 1, 2, 1, 2, 1)))": lambda i, j, h: (
        (a := ((0, 1, 1, 2, 2, 1, 3), (1, 2, 1, 2, 1, 2, 1))[h % 2])[min(i, 6)] == a[min(j, 6)] or a[min(j, 6)] == 0
    ),
    "union(parts='dilated(gap=3) + shifted_groups(group=4, shifts=1)')": lambda i, j, h: (
        (i - j) % 3 == 0 or i // 4 == j // 4
    ),
}


@pytest.mark.parametrize("text", DEFINED)
def test_a_pattern_by_place_is_what_its_definition_says(text):
    m = replace(method_of(text, "attention"), rows=1, block=1)
    for i in range(30):
        for h, keep in last_row(m, i, 4):
            true = [DEFINED[text](i, j, h) or j == i for j in range(i + 1)]
            assert keep.tolist() == true, f"block {i}, head {h}"


def test_permuted_chunks_are_those_of_the_permutation():
    m = method_of("permuted_chunks(chunks=4)", "attention")
    score = m.score_places(torch.arange(16), 16, 5)
    for h, i, j in itertools.product(range(5), range(16), range(16)):
        assert (score[0, h, i, j] > -torch.inf) == (j // 4 == (i // 4 - h) % 4)


def test_sinks_and_window_share_the_budget():
    m = method_of("streaming(sinks=5)", "attention")
    keep = m.attend(torch.zeros(1, 2, 40, 4), torch.zeros(1, 2, 40, 4), budget("16"))
    assert keep.shape[-1] == 1  # of blocks of 64 there is one
    m = replace(m, rows=4, block=4)
    keep = m.attend(torch.zeros(1, 2, 40, 4), torch.zeros(1, 2, 40, 4), budget("16"))[0, 0]
    for i, row in enumerate(keep):
        assert row.nonzero().flatten().tolist() == sorted({0, min(1, i), max(0, i - 1), i})[: 4 if i > 2 else i + 1]


def test_big_bird_has_window_and_first_blocks_and_draws_the_rest_evenly():
    m = method_of("big_bird(window=2, first=2)", "attention")
    m, n = replace(m, rows=1, block=1), 60
    keep = torch.stack([replace(m, seed=s).attend(*2 * [torch.zeros(1, 4, n, 4)], budget("8"))[0] for s in range(50)])
    last = keep[:, :, -1].float().mean((0, 1))
    assert last[[0, 1, -2, -1]].tolist() == [1, 1, 1, 1]
    rest = last[2:-2]  # each of 56 is drawn with 4 / 56, 200 times: mean 14.3, deviation 3.6
    assert rest.sum().item() == pytest.approx(4, abs=1e-4) and (rest * 200 - 200 * 4 / 56).abs().max() < 4.5 * 3.6
    assert not torch.equal(keep[0, 0], keep[0, 1]) and not torch.equal(keep[0, 0], keep[1, 0])


def test_each_head_has_the_pattern_it_was_dealt():
    q, k, few = draw(1, 6, 32, 8), draw(1, 3, 32, 8, seed=1), budget("12")
    m = method_of("by_head(parts='streaming | quest', deal=(1, 0, 1), rows=4, block=4)", "attention")
    for one in (slice(None), slice(-1, None)):
        keep = m.attend(q[:, :, one], k, few)
        group = 1 if one.start == -1 else 2
        for h, part in enumerate(("quest", "streaming", "quest")):
            alone = replace(method_of(part, "attention"), rows=4, block=4)
            mine = alone.attend(q[:, 2 * h : 2 * h + 2, one], k[:, h : h + 1], few)
            assert torch.equal(keep[:, group * h : group * (h + 1)], mine.expand(-1, group, -1, -1))


def test_vertical_and_slash_lines_are_summed_as_the_formula_says():
    q, k = draw(1, 2, 23, 8), draw(1, 1, 30, 8, seed=1)
    m = method_of("vertical_slash(last=5, rows=4, block=4)", "attention")
    a, places = attention(q, k)[:, :, -5:], range(25, 30)
    for h in range(2):
        column, slash = a[0, h].sum(0), torch.zeros(30, dtype=torch.float64)
        for (n, t), j in itertools.product(enumerate(places), range(30)):
            if j <= t:
                slash[t - j] += a[0, h, n, j]
        true = torch.stack(
            [
                column + torch.where(t >= torch.arange(30), slash[(t - torch.arange(30)).clamp(min=0)], 0)
                for t in range(7, 30)
            ]
        )
        true = by_blocks(true, 4, 4, lambda part: part.sum() / part.shape[0])
        assert torch.allclose(m.score(q, k)[0, h].double(), true, atol=1e-5)


def test_a_planted_column_and_a_planted_diagonal_are_found():
    """Key 9 is looked at by all, and each query looks 20 back: with three blocks, these and itself are read."""
    n, back, column = 64, 20, 9
    k = torch.cat([torch.eye(n), torch.zeros(n, 1)], 1)
    q = torch.cat([torch.eye(n).roll(back, 0), torch.ones(n, 1)], 1) * 60
    k[column, -1] = 1
    m = method_of("vertical_slash(last=8, rows=1, block=1)", "attention")
    keep = m.attend(q[None, None], k[None, None], budget("3"))[0, 0]
    for t in range(30, n):
        assert keep[t].nonzero().flatten().tolist() == sorted({column, t - back, t})


def test_antidiagonals_are_summed_as_the_formula_says():
    q, k, s = draw(1, 2, 16, 6), draw(1, 1, 24, 6, seed=1), 4
    m = method_of("antidiagonal(stride=4, rows=8, block=8)", "attention")
    said = logits(q, k)
    square = torch.zeros(1, 2, 4, 6, dtype=torch.float64)
    for a, b, i in itertools.product(range(4), range(6), range(s)):
        square[:, :, a, b] += said[:, :, a * s + s - 1 - i, b * s + i] / s
    true = by_blocks(square, 2, 2, lambda part: part.logsumexp((-1, -2)))
    assert torch.allclose(m.score(q, m.digest(k)).double(), true, atol=1e-5)


def test_stripes_hold_the_share_of_what_sampled_queries_attend_to():
    q, k = 2 * draw(1, 2, 64, 8), draw(1, 1, 64, 8, seed=1)
    m = method_of("stripes(p=0.8, every=1, rows=8, block=2)", "attention")
    mass = by_blocks(attention(q, k), 8, 2, lambda part: part.sum((-1, -2)) / part.shape[-2])
    keep = m.attend(q, k, budget("100%"))
    held, own = (mass * keep).sum(-1), torch.arange(32) == 4 * torch.arange(8)[:, None] + 3
    assert (held >= 0.8 - 1e-5).all()
    least = mass.masked_fill(~keep | own, 2.0).amin(-1)  # beside itself
    assert (held - least < 0.8).all() and keep.float().mean() < 0.4


def test_what_comes_near_the_anchor_is_read():
    q, k = 2 * draw(1, 2, 24, 8), 2 * draw(1, 1, 24, 8, seed=1)
    m = method_of("anchor_difference(within=1.5, rows=4, block=4)", "attention")
    keep, said = m.attend(q, k, budget("100%")), logits(q, k)
    pooled = logits(q.unflatten(2, (-1, 4)).mean(3), k)
    for h, row in itertools.product(range(2), range(6)):
        best = [
            max(said[0, h, t, j].item() for j in {*range(4), *range(4 * row, 4 * row + 4)} if j <= t)
            for t in range(4 * row, 4 * row + 4)
        ]
        true = [pooled[0, h, row, 4 * c : 4 * c + 4].max() >= sum(best) / 4 - 1.5 or c == row for c in range(row + 1)]
        assert keep[0, h, row, : row + 1].tolist() == true


def test_a_search_down_a_tree_finds_the_peak():
    j = torch.arange(256.0)
    for peak in (3, 100, 200):
        k = torch.stack([-((j - peak) ** 2) / 1000, torch.zeros(256)], -1)[None, None]
        keep = method_of("hip(rows=1, block=4)", "attention").attend(torch.tensor([[[[1.0, 0.0]]]]), k, budget("32"))
        middle = -((torch.arange(64) * 4 + 2 - peak).abs())
        middle[-1] = 1  # itself
        assert set(keep[0, 0, 0].nonzero().flatten().tolist()) == set(middle.topk(8).indices.tolist())


def test_hashes_meet_as_often_as_the_angle_says():
    m = method_of("magic_pig(bits=4, tables=4000)", "attention")
    q, k = draw(1, 1, 1, 8), draw(1, 1, 12, 8, seed=1)
    angle = torch.acos(torch.nn.functional.cosine_similarity(q, k, dim=-1))[0, 0]
    expected = (1 - angle / math.pi) ** 4
    met = m.score(q, m.digest(k))[0, 0, 0] / 4000
    assert ((met - expected).abs() < 4.5 * (expected * (1 - expected) / 4000).sqrt()).all()


def test_product_codes_say_what_they_store():
    q, k = draw(1, 4, 5, 8), draw(1, 2, 300, 8, seed=1)
    signs = method_of("product_codes(part=4)", "attention")
    exact = torch.tensor([1.0, -1, 1, 1]).repeat(2) * torch.tensor([2.0, 0.5]).repeat_interleave(4)
    exact = exact.expand(1, 2, 3, 8)
    assert torch.allclose(signs.score(q, signs.digest(exact)).double(), logits(q, exact), atol=1e-5)
    lean = k @ torch.diag(torch.tensor([1.0, 0.2, 0.1, 0.1, 1.0, 0.1, 0.3, 0.1])) @ draw(8, 8, seed=3)
    error = [(m.score(q, m.digest(lean)) - logits(q, lean)).square().mean() for m in (signs, signs.fit(q, lean))]
    assert error[1] < 0.7 * error[0]


def test_centroids_of_keys_in_clusters_are_the_clusters():
    centre = torch.tensor([[0.0, 9.0], [9.0, 0.0], [-9.0, 0.0], [0.0, -9.0]])
    which = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 1, 3, 0, 2])
    k = (centre[which] + 0.1 * draw(12, 2))[None, None]
    q = centre[1][None, None, None]
    keep = method_of("centroids(size=3, rows=1)", "attention").attend(q, k, budget("4"))[0, 0, 0]
    assert set(keep.nonzero().flatten().tolist()) == {11, 1, 6, 8}  # itself, and the second cluster


def test_reuse_looks_where_it_is_told_and_chooses_as_its_pattern():
    q, k = draw(1, 4, 6, 8), draw(1, 2, 40, 8, seed=1)
    m = method_of("reuse(pattern='quest', layers=(1, 3), every=2, rows=2, block=4)", "attention")
    quest = method_of("quest(rows=2, block=4)", "attention")
    assert torch.equal(m.attend(q, k, budget("12")), quest.attend(q, k, budget("12")))
    assert [(layer, step) for layer in range(4) for step in range(3) if m.looks(layer, step)] == [
        (1, 0),
        (1, 2),
        (3, 0),
        (3, 2),
    ]
    assert all(quest.looks(layer, step) for layer in range(3) for step in range(3))


def test_what_is_left_of_a_pattern_goes_to_the_nearest():
    m = method_of("dilated(gap=4, rows=1, block=1)", "attention")
    keep = m.attend(*2 * [torch.zeros(1, 1, 10, 4)], budget("5"))[0, 0, -1]
    assert keep.nonzero().flatten().tolist() == [1, 5, 7, 8, 9]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lserve(part=24)", "does not divide into parts of 24"),
        ("antidiagonal(stride=7)", "do not divide into squares of 7"),
        ("product_codes(part=5)", "do not divide into parts of 5"),
        ("union(parts='streaming + quest')", "looks at what is there"),
        ("reuse(pattern='streaming')", "remembers nothing"),
        ("by_head(deal=(2,))", "numbered 0 to 1"),
        ("heavy_channels(heavy=((0,),))", "fitted to 1 heads"),
        ("pca_keys(basis=(((1.0,),),))", "fitted to 1 heads"),
    ],
)
def test_what_does_not_fit_is_refused(text, said):
    m = method_of(text, "attention")
    with pytest.raises(ValueError, match=said):
        m.attend(draw(1, 2, 64, 8), draw(1, 2, 64, 8), budget("50%"))


def test_nan_is_refused_by_the_name_of_the_method():
    q, k = draw(1, 2, 64, 8), draw(1, 2, 64, 8)
    q[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="attention/bi_level: a score is NaN"):
        method_of("bi_level", "attention").attend(q, k, budget("50%"))
    assert isinstance(method_of("bi_level", "attention"), Pattern) and in_blocks(k, 64).shape == (1, 2, 1, 64, 8)


def test_parts_of_a_star_read_themselves_and_the_first():
    """Of 8 blocks in parts of 3: with a budget of both parts, what each block reads, by a loop."""
    from fewer.attention.star import Star

    q, k = draw(1, 2, 64, 8), draw(1, 1, 64, 8, seed=1)
    keep = Star(part=24, rows=8, block=8).attend(q, k, budget("48"))[0, 0]
    for row in range(8):
        told = {j for j in range(row + 1) if j // 3 == row // 3 or j < 3}
        more = min(6, row + 1) - len(told)  # the budget is met: the nearest of the others
        told |= set(sorted(set(range(row)) - told)[len(set(range(row)) - told) - more :]) if more else set()
        assert set(keep[row].nonzero()[:, 0].tolist()) == told
