"""Gates against formulas written out in float64, and against what their papers say of special cases."""

import pytest
import torch

from fewer.activations.cats import Cats
from fewer.activations.chess import Chess
from fewer.activations.core_by_similarity import CoreBySimilarity
from fewer.activations.core_neurons import CoreNeurons
from fewer.activations.delta import Delta
from fewer.activations.magnitude import Magnitude
from fewer.activations.r_sparse import RSparse
from fewer.activations.wina import Wina
from fewer.calibrate import Factors, OutputSizes, observe
from fewer.core.budget import budget


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_wina_is_magnitude_where_columns_are_of_one_length():
    w, x = drawn(6, 9), drawn(4, 9, seed=1)
    w = w / w.norm(dim=0)
    for share in ("30%", "5"):
        a, b = (m.gate(x, budget(share), observe(m.needs, w, x)) for m in (Wina(), Magnitude()))
        assert torch.equal(a, b)


def test_chess_is_cats_where_all_neurons_are_equally_loud():
    up = torch.ones(9, 3)
    x, h = drawn(20, 3), drawn(4, 9, seed=1)
    assert torch.equal(*(m.gate(h, budget("4"), observe(m.needs, up, x)) for m in (Chess(), Cats())))


def test_chess_loses_least_of_what_neurons_say_on_average():
    """Of all sets of 3 neurons, the kept one has the least sum of (gate * mean |up|)^2 outside it."""
    from itertools import combinations

    up, x, h = drawn(6, 4), drawn(50, 4, seed=1), drawn(1, 6, seed=2)
    loud = (x.double() @ up.double().T).abs().mean(0)
    worth = (h[0].double() * loud).square()
    best = max(combinations(range(6), 3), key=lambda kept: sum(worth[i] for i in kept))
    keep = Chess().gate(h, budget("3"), observe(Chess.needs, up, x))[0]
    assert set(keep.nonzero().flatten().tolist()) == set(best)


def test_output_sizes_are_the_mean_over_any_batches():
    w, x = drawn(5, 4), drawn(30, 4, seed=1)
    whole = observe((OutputSizes,), w, x)[OutputSizes]
    pieces = OutputSizes.of(w)
    for piece in x.split([7, 20, 3]):
        pieces.see(piece)
    truth = (x.double() @ w.double().T).abs().mean(0).float()
    torch.testing.assert_close(whole.value, truth)
    torch.testing.assert_close(pieces.value, truth)


def heard(m, w, x, share):
    """What a gated map says: kept columns, and what stands for the rest."""
    stats = observe(m.needs, w, x)
    keep = m.gate(x, budget(share), stats)
    rest = m.rest(x * ~keep, budget(share), stats)
    return keep, (x * keep) @ w.T + (0 if rest is None else rest)


@pytest.mark.parametrize("share", ["60%", "40%", "3"])
def test_r_sparse_reads_no_more_than_its_budget_and_says_what_is_written(share):
    w, x, m = drawn(16, 10), drawn(5, 10, seed=1), RSparse(low_rank=0.6)
    keep, said = heard(m, w, x, share)
    room = budget(share).of(10) * 16
    rank = m.always(16, 10, budget(share)) // 26
    assert (keep.sum(-1) * 16 + rank * 26 <= room).all() and (keep.sum(-1) * 16 + rank * 26 > room - 16).all()
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    low = (u[:, :rank] * s[:rank]) @ vh[:rank]
    for t in range(5):
        large = x[t].abs().argsort(descending=True)[: int(keep[t].sum())]
        small = torch.ones(10, dtype=torch.bool)
        small[large] = False
        truth = w[:, large].double() @ x[t, large].double() + low[:, small] @ x[t, small].double()
        torch.testing.assert_close(said[t].double(), truth, rtol=1e-4, atol=1e-4)


def test_r_sparse_loses_nothing_of_a_map_of_low_rank():
    w = drawn(40, 2) @ drawn(2, 30, seed=1)
    x = drawn(3, 30, seed=2)
    assert RSparse(low_rank=0.5).always(40, 30, budget("50%")) // 70 >= 2
    torch.testing.assert_close(heard(RSparse(low_rank=0.5), w, x, "50%")[1], x @ w.T, rtol=1e-4, atol=1e-4)


def test_r_sparse_without_a_rank_is_magnitude():
    w, x = drawn(6, 9), drawn(4, 9, seed=1)
    assert torch.equal(heard(RSparse(low_rank=0.0), w, x, "40%")[0], heard(Magnitude(), w, x, "40%")[0])
    with pytest.raises(ValueError, match="says nothing of a rank"):
        heard(RSparse(), w, x[:, :9], "1:3")


def test_factors_make_the_weight_again():
    w = drawn(5, 8)
    f = observe((Factors,), w, drawn(1, 8))[Factors]
    torch.testing.assert_close(f.left * f.sizes @ f.right, w)


def test_core_neurons_are_those_of_most_tokens():
    x = drawn(2, 9, 12)
    m, stats = CoreNeurons(alpha=0.5), observe((), torch.ones(12, 1), torch.ones(1, 1))
    core = m.begin(x, budget("4"), stats)
    for b in range(2):
        votes = [0] * 12
        for t in range(9):
            positive = sorted((i for i in range(12) if x[b, t, i] > 0), key=lambda i: -x[b, t, i])
            for i in positive[: -(-len(positive) // 2)]:
                votes[i] += 1
        best = sorted(range(12), key=lambda i: (-votes[i], i))[:4]
        assert core[b].nonzero().flatten().tolist() == sorted(best)
    keep, said, after = m.next(x[:, 0], core, budget("4"), stats)
    assert torch.equal(keep, core) and torch.equal(after, core) and torch.equal(said, x[:, 0] * core)


def test_nothing_is_computed_again_of_what_stands_still():
    x = drawn(1, 6).expand(5, 6)
    m, stats = Delta(), observe((), torch.ones(2, 6), torch.ones(1, 6))
    memory = m.begin(x[:1], budget("1"), stats)
    for t in range(1, 5):
        _, said, memory = m.next(x[t], memory, budget("1"), stats)
        assert torch.equal(said, x[t])


def test_deltas_summed_up_are_what_the_map_says_of_what_it_heard():
    """y += W[:, S] (x - memory)_S, token by token in float64, is W times what the gate says was heard."""
    w, x, m = drawn(4, 8).double(), drawn(7, 8, seed=1).double(), Delta()
    stats = observe((), w.float(), torch.ones(1, 8))
    memory = m.begin(x[:1], budget("3"), stats)
    y = w @ x[0]
    for t in range(1, 7):
        before = memory
        keep, said, memory = m.next(x[t], memory, budget("3"), stats)
        y = y + w[:, keep] @ (x[t] - before)[keep]
        assert keep.sum() == 3 and (x[t] - before).abs()[keep].min() >= (x[t] - before).abs()[~keep].max()
        torch.testing.assert_close(w @ said, y)


def test_groups_are_a_budget_of_any_gate():
    """N of every M inputs, or whole groups of neighbours: semi-structured activations need no method of their own."""
    x = drawn(5, 16)
    stats = observe((), torch.ones(1, 16), torch.ones(1, 16))
    keep = Magnitude().gate(x, budget("2:4"), stats)
    for t in range(5):
        for g in range(4):
            four = x[t, 4 * g : 4 * g + 4].abs()
            assert set(keep[t, 4 * g : 4 * g + 4].nonzero().flatten().tolist()) == set(four.topk(2).indices.tolist())
    blocks = Magnitude().gate(x, budget("50% of 1x4"), stats).reshape(5, 4, 4)
    assert torch.equal(blocks.all(-1), blocks.any(-1)) and (blocks.all(-1).sum(-1) == 2).all()


def test_a_text_has_the_neurons_of_the_texts_that_it_is_like():
    """Two planted topics, each with neurons of its own, and a text that begins like the second."""
    loud = torch.zeros(2, 12)
    loud[0, :4], loud[1, 6:10] = 3.0, 3.0
    texts = torch.cat([loud[0].expand(5, 7, 12), loud[1].expand(6, 7, 12)]) + 0.1 * drawn(11, 7, 12).abs()
    m, stats = CoreBySimilarity(topics=2, alpha=0.3).fit(texts), observe((), torch.ones(12, 1), torch.ones(1, 1))
    core = m.begin(loud[:, None] + 0.5, budget("4"), stats)
    assert core[0].nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert core[1].nonzero().flatten().tolist() == [6, 7, 8, 9]
    keep, said, after = m.next(loud + 1, core, budget("4"), stats)
    assert torch.equal(keep, core) and torch.equal(after, core) and torch.equal(said, (loud + 1) * core)


def test_similarity_refuses_what_it_has_not_learnt():
    stats = observe((), torch.ones(12, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match="learnt no texts"):
        CoreBySimilarity().begin(drawn(3, 12), budget("4"), stats)
    with pytest.raises(ValueError, match="3 texts cannot make 8 topics"):
        CoreBySimilarity().fit(drawn(3, 5, 12))
