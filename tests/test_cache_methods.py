"""Rules of the cache axis against formulas written another way: loops in float64, planted cases, totals."""

import json
from dataclasses import replace

import pytest
import torch

from fewer.cache import Past, Rope
from fewer.cache.ada import Ada
from fewer.cache.alisa import Alisa
from fewer.cache.block_wise import BlockWise
from fewer.cache.chunk_kv import ChunkKv
from fewer.cache.chunk_wise import ChunkWise
from fewer.cache.critical_kv import CriticalKv
from fewer.cache.cur import Cur
from fewer.cache.d2o import D2O
from fewer.cache.duo import Duo
from fewer.cache.expected_attention import ExpectedAttention
from fewer.cache.h2o import H2O
from fewer.cache.head_kv import HeadKv
from fewer.cache.key_norm import KeyNorm
from fewer.cache.kv_zip import KvZip
from fewer.cache.leverage import Leverage
from fewer.cache.long_gen import LongGen
from fewer.cache.moa import Moa
from fewer.cache.pyramid import Pyramid
from fewer.cache.q_filters import QFilters
from fewer.cache.rerotated import Rerotated
from fewer.cache.snap_kv import SnapKv
from fewer.cache.streaming_llm import StreamingLlm
from fewer.cache.tova import Tova
from fewer.cache.vatp import Vatp
from fewer.cache.zip_vl import ZipVl
from fewer.core.spell import method_of, spell


def some(n=40, window=8, dim=6, kv=2, heads=4, seed=0):
    make = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 1, kv, n, dim, generator=make)
    return Past.of(k, v, torch.randn(1, heads, window, dim, generator=make))


def attention(past):
    """One query and one head at a time, in float64."""
    b, heads, w, d = past.q.shape
    n, group = past.k.shape[2], heads // past.k.shape[1]
    out = torch.zeros(b, heads, w, n, dtype=torch.float64)
    for h in range(heads):
        for i in range(w):
            last = n - w + i + 1
            z = past.k[0, h // group, :last].double() @ past.q[0, h, i].double() / d**0.5
            out[0, h, i, :last] = z.exp() / z.exp().sum()
    return out


def test_what_a_window_reads():
    past = some()
    read = attention(past).mean(2).view(1, 2, 2, 40).mean(2)
    sums = SnapKv(window=8, kernel=3).score(past)
    for j in range(1, 30):
        near = sum(read[:, :, i] for i in (j - 1, j, j + 1)) / 3
        torch.testing.assert_close(sums[:, :, j].double(), near, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(Alisa(window=8).score(past).double(), read, atol=1e-6, rtol=1e-5)
    most = attention(past).view(1, 2, 2, 8, 40).amax((2, 3))
    torch.testing.assert_close(KvZip(sinks=0, rows=3).score(past).double(), most, atol=1e-6, rtol=1e-5)
    newest = attention(past)[:, :, -1].mean(1)
    torch.testing.assert_close(Tova().score(past)[0, 0, :-1].double(), newest[0, :-1], atol=1e-6, rtol=1e-5)


def test_the_queries_of_a_window_that_is_all_own_still_leave_the_newest():
    keep = SnapKv(window=8).evict(some(window=8), torch.full((1, 2), 5))
    assert keep[..., -5:].all() and keep.sum() == 10


def test_h2o_sums_what_was_given():
    past = some(window=40)
    given = attention(past).view(1, 2, 2, 40, 40).mean(2).sum(2)  # all that each token got
    received = (given / torch.arange(40, 0, -1)).float()
    score = H2O().score(replace(past, received=received))
    torch.testing.assert_close(score.double(), given, atol=1e-5, rtol=1e-5)
    keep = H2O().evict(replace(past, received=received), torch.full((1, 2), 10))
    assert keep[..., -5:].all()
    best = given[..., :-5].topk(5).indices
    assert keep.gather(2, best).all()


def test_expected_attention_is_what_many_future_queries_pay():
    """Queries are drawn from a normal law, turned to places to come, and read: the mean of exp(z) is what z says."""
    make = torch.Generator().manual_seed(0)
    n, d, drawn = 12, 4, 400_000
    rope = Rope(torch.tensor([0.4, 0.03]))
    mean, mix = torch.tensor([0.6, -0.2, 0.3, 0.1]), torch.randn(d, d, generator=make) * 0.3
    q = mean + torch.randn(1, 1, 4000, d, generator=make) @ mix
    k, place = torch.randn(1, 1, n, d, generator=make), torch.arange(n)
    at = torch.arange(4000) % n
    past = replace(Past.of(rope.turn(k, place), k, q[:, :, :1]), rope=rope)
    past = replace(past, q=rope.turn(q, at), now=at[None].int())
    z = ExpectedAttention(future=1, sinks=0)._logits(past)[0, 0]  # one place: the mean rotation is a rotation
    future = rope.turn(mean + torch.randn(drawn, d, generator=make) @ mix, torch.full((drawn,), n))
    told = (future @ past.k[0, 0].T * past.scale).double().exp().mean(0).log()
    torch.testing.assert_close(z.double(), told, atol=0.05, rtol=0.05)


def test_leverage_does_not_need_the_sketch_to_find_the_one_that_stands_alone():
    k = torch.zeros(1, 1, 20, 8)
    k[..., 0] = torch.randn(20, generator=torch.Generator().manual_seed(0))
    k[0, 0, 7, 5] = 1.0
    assert Leverage(sketch=8).score(k_past := Past.of(k)).argmax() == 7 and k_past.k is k
    x = some(dim=6).k
    x = (x - x.mean(2, keepdim=True)).double()
    hat = x @ torch.linalg.pinv(x)
    exact = hat.diagonal(dim1=-2, dim2=-1)
    score = Leverage(sketch=6, ridge=1e-9).score(some(dim=6)).double()  # a square sketch changes no hat matrix
    expected = (exact - exact.mean()) / exact.std()
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-4)


def test_filters_are_the_main_direction_and_can_be_carried():
    past = some(window=40)
    q = past.q.view(2, 2 * 40, 6)
    u = torch.linalg.svd(q.double())[2][:, 0]
    u = u * ((q.double() @ u[..., None]).mean((1, 2)) >= 0).double().mul(2).sub(1)[:, None]
    expected = (past.k[0].double() @ u[..., None])[..., 0]
    torch.testing.assert_close(QFilters().score(past)[0].double(), expected, atol=1e-5, rtol=1e-4)
    learnt = QFilters.fit([some(seed=5, window=40), past])
    torch.testing.assert_close(learnt.score(replace(past, layer=1)), QFilters().score(past), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="filters of"):
        learnt.score(replace(some(kv=1), layer=0))
    with pytest.raises(ValueError, match="filters of 2 layers, asked for layer None"):
        learnt.score(past)


def test_rules_around_rules():
    past = some()
    counts = torch.full((1, 2), 12)
    assert torch.equal(
        BlockWise(KeyNorm(), 7).evict(past, counts), KeyNorm().evict(past, counts)
    )  # nothing beside matters
    each = ChunkWise(KeyNorm(), 16).evict(past, counts)
    assert [int(each[0, 0, i : i + 16].sum()) for i in (0, 16, 32)] == [
        4,
        5,
        3,
    ]  # 12 * 16 / 40 = 4.8, 12 * 32 / 40 = 9.6
    whole = ChunkKv(KeyNorm(), 8).evict(past, torch.full((1, 2), 16))
    assert torch.equal(whole[0, 0], whole[0, 1]) and int(whole[0, 0].view(5, 8).all(1).sum()) == 2
    values = Vatp(KeyNorm(), sinks=0).score(past)
    torch.testing.assert_close(values, -past.k.norm(dim=-1) * past.v.norm(p=1, dim=-1))
    assert ChunkKv(SnapKv(9)).window == 9 and CriticalKv(H2O()).needs == H2O.needs


def test_the_second_half_of_critical_kv_is_by_what_the_output_would_lose():
    past = replace(some(), project=torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(3)))
    out = torch.stack([(past.v[0, h // 2] @ past.project[h]).abs().sum(-1) for h in range(4)]).view(2, 2, 40).mean(1)
    score = 1 / past.k.norm(dim=-1)
    first = score.topk(5).indices
    second = ((score + 1e-4) * out).scatter(2, first, 1e9).topk(10).indices
    told = torch.zeros(1, 2, 40, dtype=torch.bool).scatter(2, second, True)

    class Short(KeyNorm):
        def score(self, past):
            return 1 / past.k.norm(dim=-1)

    assert torch.equal(CriticalKv(Short()).evict(past, torch.full((1, 2), 10)), told)


def test_cur_is_relative_to_neighbours():
    past = some(n=32)
    k2, v2 = (x.square().sum(-1).view(1, 2, 2, 16) for x in (past.k, past.v))
    told = (k2 / k2.sum(-1, keepdim=True) * v2 / v2.sum(-1, keepdim=True)).flatten(2)
    torch.testing.assert_close(Cur(sinks=0).score(past), told)


def test_budgets_by_hand():
    score = torch.rand(1, 2, 100, generator=torch.Generator().manual_seed(0)) * torch.tensor([[[1.0], [0.1]]])
    ada = Ada(safe=0.5).allocate(score, torch.full((1, 2), 20), 0, 1)
    assert ada.tolist() == [[30, 10]]  # the low head keeps what is safe
    flat = torch.zeros(1, 2, 400)
    falls = [Pyramid(5.0, 8).allocate(flat, torch.full((1, 2), 200), i, 3)[0, 0].item() for i in range(3)]
    assert falls == [360, 200, 40]
    lost = [LongGen().allocate(flat, torch.full((1, 2), 200), i, 6)[0, 0].item() for i in range(6)]
    assert lost == [100, 100, 400, 400, 100, 100]
    named = [LongGen(full=(0,)).allocate(flat, torch.full((1, 2), 160), i, 4)[0, 0].item() for i in range(4)]
    assert named == [400, 80, 80, 80]
    heads = HeadKv(((3.0, 1.0), (0.0, 0.0)), pool=2.0)
    told = [heads.allocate(flat, torch.full((1, 2), 40), i, 2)[0].tolist() for i in range(2)]
    assert told == [[80, 40], [20, 20]]  # 20 each, and a pool of 80, three to one
    spans = Moa((((10.0, 0.0), (10.0, 0.1)),))
    assert spans.allocate(flat, torch.full((1, 2), 30), 0, 1).tolist() == [[10, 50]]
    mass = torch.zeros(1, 2, 100)
    mass[0, 0, :3], mass[0, 1, :] = 1 / 3, 0.01
    assert ZipVl().allocate(mass, torch.full((1, 2), 20), 0, 1).tolist() == [[1, 39]]  # 3 to 98 of 40


def test_a_plan_for_another_model_is_refused():
    with pytest.raises(ValueError, match="cache/head_kv: a plan of 1 layers x 2 heads; the model has 3 x 2"):
        HeadKv(((1.0, 2.0),)).allocate(torch.zeros(1, 2, 10), torch.full((1, 2), 5), 0, 3)


def folder(tmp_path, heads="0.9\t0.1\n0.2\t1.5\n", sizes='{"sink_size": 2, "recent_size": 6}'):
    (tmp_path / "full_attention_heads.tsv").write_text(heads)
    (tmp_path / "config.json").write_text(sizes)
    return tmp_path


def test_streaming_heads_of_the_authors_file(tmp_path):
    duo = Duo.load(folder(tmp_path))
    assert duo == Duo(((0.9, 0.1), (0.2, 1.0)), 0.5, 2, 6)
    given = [duo.allocate(torch.zeros(1, 2, 100), torch.full((1, 2), 50), i, 2).tolist() for i in range(2)]
    assert given == [[[92, 8]], [[8, 92]]]
    full = [duo.allocate(torch.zeros(1, 2, 60), torch.full((1, 2), 50), i, 2).tolist() for i in range(2)]
    assert full == [[[60, 40]], [[40, 60]]]  # what the others cannot take comes back
    keep = StreamingLlm(2).evict(some(n=100), torch.tensor([[92, 8]]))
    assert keep[0, 1].nonzero()[:, 0].tolist() == [0, 1, *range(94, 100)]


@pytest.mark.parametrize(
    "wrong",
    [{"heads": "0.9\tx\n"}, {"heads": ""}, {"heads": "1\t1\n1\n"}, {"heads": "nan\t1\n"}]
    + [
        {"sizes": json.dumps(x)}
        for x in ([], {}, {"sink_size": -1, "recent_size": 2}, {"sink_size": 1.5, "recent_size": 2})
    ]
    + [{"sizes": "{"}],
)
def test_a_bad_file_is_named(wrong, tmp_path):
    with pytest.raises(ValueError, match="config.json" if "sizes" in wrong else "full_attention_heads.tsv"):
        Duo.load(folder(tmp_path, **wrong))


def test_turned_keys_are_those_of_a_text_without_what_was_forgotten():
    rope = Rope(torch.tensor([0.7, 0.01]))
    plain = torch.randn(1, 2, 10, 5, generator=torch.Generator().manual_seed(0)).double()
    past = replace(Past.of(rope.turn(plain, torch.arange(10)).float()), rope=rope)
    keep = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1]).bool().expand(1, 2, 10)
    after = Rerotated().correct(past, keep)
    short = rope.turn(plain[:, :, keep[0, 0]], torch.arange(6) + 4)  # the newest stays at 9
    torch.testing.assert_close(after.k[:, :, keep[0, 0]].double(), short, atol=1e-5, rtol=1e-5)
    assert after.at[0, 0][keep[0, 0]].tolist() == [4, 5, 6, 7, 8, 9]
    again = Rerotated().correct(after, keep)
    torch.testing.assert_close(again.k, after.k)  # places are remembered, so it turns once


def test_merging_by_a_loop_and_that_twins_cost_nothing():
    past, keep = some(), torch.rand(1, 2, 40, generator=torch.Generator().manual_seed(2)) < 0.3
    after = D2O().correct(past, keep)
    unit = torch.nn.functional.normalize(past.k.double(), dim=-1)
    for h in range(2):
        stay, gone = keep[0, h].nonzero()[:, 0], (~keep[0, h]).nonzero()[:, 0]
        like = unit[0, h, gone] @ unit[0, h, stay].T
        best, into = like.max(1)
        for j, slot in enumerate(stay):
            mine = (into == j) & (best >= best.mean())
            w = best[mine].exp()
            for x, y in ((past.k, after.k), (past.v, after.v)):
                told = (torch.e * x[0, h, slot] + (w[:, None] * x[0, h, gone[mine]]).sum(0)) / (torch.e + w.sum())
                torch.testing.assert_close(y[0, h, slot].double(), told.double(), atol=1e-5, rtol=1e-5)
    twins = Past.of(*(x.repeat_interleave(2, 2) for x in (past.k, past.v)))
    after = D2O().correct(twins, (torch.arange(80) % 2 == 0).expand(1, 2, 80))
    torch.testing.assert_close(after.v[:, :, ::2], past.v)


@pytest.mark.parametrize(
    "text", ["cache/chunk_kv(of=cache/key_norm, chunk=4)", "cache/vatp(of=cache/snap_kv(window=3, kernel=1), sinks=2)"]
)
def test_a_method_of_a_method_is_written_and_read(text):
    assert spell(method_of(text)) == text
    assert method_of(text.replace("of=cache/", "of=")) == method_of(text)
    assert method_of("cache/duo(gates=((0.5, 1.0), (0.25, 0.0)), sinks=2)") == Duo(((0.5, 1.0), (0.25, 0.0)), sinks=2)


def test_what_a_head_cannot_fill_others_may():
    """After a second text one head has only 12 slots: the layer's budget is met all the same."""
    score = torch.rand(1, 2, 40, generator=torch.Generator().manual_seed(0))
    score[0, 1, 12:] = -torch.inf
    assert Ada().allocate(score, torch.full((1, 2), 20), 0, 1).sum() == 40
