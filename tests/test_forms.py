"""How dictionaries read, what their atoms may be and where they begin: against brute force, and on data with a planted truth."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from fewer import kernels
from fewer.calibrate import Crew
from fewer.core import budget, find
from fewer.dictionaries import load, save
from fewer.dictionaries.heads import by_head
from fewer.features.archetypal import Archetypal, centroids
from fewer.features.batch_top_k import BatchTopK
from fewer.features.group_bias import GroupBias
from fewer.features.kronecker import Kronecker
from fewer.features.matching_pursuit import MatchingPursuit
from fewer.features.matryoshka import Matryoshka
from fewer.features.orthogonal_matching_pursuit import OrthogonalMatchingPursuit
from fewer.features.subspace import Subspace
from fewer.features.top_k import TopK
from fewer.measure.matching import cosines, match
from fewer.train import ByRows, Lesson, Mutual, Pupil, Rows, learn
from fewer.train.known import Known
from fewer.train.one import One
from fewer.train.rows import RowAdam, together

TEN = Lesson(10, rate=1e-2, dead_after=100)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(atoms, active, n=12000, noise=0.02, seed=0):
    """Sums of a few of these, in amounts from 1 to 2. No truth is drawn by a seed of which a dictionary begins."""
    make = torch.Generator().manual_seed(seed)
    z = (torch.rand(n, len(atoms), generator=make) < active / len(atoms)) * (
        1 + torch.rand(n, len(atoms), generator=make)
    )
    return z @ atoms + noise * torch.randn(n, atoms.shape[1], generator=make)


def missed(d, x):
    return ((d(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item()


# -- Kronecker


def test_a_kronecker_latent_is_the_root_of_a_product_where_both_are_positive():
    said, m = draw(7, 3 * (2 + 4)), Kronecker(2, 4)
    pre = m.spread(said)
    for row in range(7):
        for head in range(3):
            for i in range(2):
                for j in range(4):
                    p, q = said[row, 6 * head + i].item(), said[row, 6 * head + 2 + j].item()
                    right = (p * q) ** 0.5 if p > 0 and q > 0 else 0.0
                    assert pre[row, 8 * head + 4 * i + j].item() == pytest.approx(right, rel=1e-6)
                    assert m.heard(torch.tensor(8 * head + 4 * i + j)).tolist() == [6 * head + i, 6 * head + 2 + j]


@pytest.mark.parametrize("m, n, factor", [(4, 4, 2), (8, 8, 4), (2, 8, 1.6), (1, 1, 0.5)])
def test_an_encoder_has_fewer_rows_by_the_predicted_factor(m, n, factor):
    pupil = Pupil(TopK(), budget("4"), 128, encoder=Kronecker(m, n))
    (d,) = learn([pupil], Rows(draw(400, 12), 50), Lesson(2))
    assert d.latents == 128 and d.encoder.numel() == 128 * 12 / factor  # as many as multiplications for an input


@pytest.mark.parametrize("sparsifier", [TopK(), BatchTopK(), Matryoshka()], ids=lambda m: m.name)
def test_kronecker_gradients_are_those_of_dense_autograd(sparsifier):
    x = draw(50, 8)
    pupil = Pupil(sparsifier, budget("5"), 64, encoder=Kronecker()).at([""])
    known, lesson = Known.of(x, {"": 8}), Lesson(aux=1.0, dead_after=100, aux_latents=4)
    one = One(pupil, known, lesson, 50)
    RowAdam(one.tensors, one.rows, ["decoder"])
    assert one.rows == ("decoder",)
    one.tensors["silent"][::2] = 1000.0
    one.loss(known.seen(x), 0.5).backward()
    t = {k: one.tensors[k].detach().double().requires_grad_() for k in ("encoder", "encoder_bias", "decoder")}
    rows = known.seen(x).double()
    said = rows @ t["encoder"].T + t["encoder_bias"]
    p, q = said.view(50, 4, 8)[..., :4], said.view(50, 4, 8)[..., 4:]
    both = (p[..., None] > 0) & (q[..., None, :] > 0)
    pre = torch.where(both, torch.where(both, p[..., None] * q[..., None, :], 1).sqrt(), 0).flatten(1)
    z = sparsifier.code(pre, budget("5"))
    total, rest = 0.0, rows
    if isinstance(sparsifier, Matryoshka):
        ends = [0, *sparsifier.ends(64)]
        for a, b in pairwise(ends):
            rest = rest - z[:, a:b] @ t["decoder"][a:b]
            total = total + rest.square().mean() / (len(ends) - 1)
    else:
        rest = rows - z @ t["decoder"]
        total = rest.square().mean()
    silent = torch.where(torch.arange(64) % 2 == 0, 1050.0, 50.0).masked_fill((z != 0).any(0), 0)
    at = pre.masked_fill(silent <= 100, -1).topk(min(4, int((silent > 100).sum()))).indices
    dead = torch.zeros_like(pre).scatter(1, at, pre.gather(1, at))
    total = total + (rest.detach() - dead @ t["decoder"]).square().mean() / rest.detach().square().mean()
    total.backward()
    for name in ("encoder", "encoder_bias"):
        assert torch.allclose(one.tensors[name].grad.double(), t[name].grad, atol=1e-5), name
    owed = kernels.collect(*together(one.tensors["decoder"].owed))
    assert torch.allclose(owed.double(), t["decoder"].grad, atol=1e-5)


def conjunctions(n=8000):
    """In some of 8 heads, one of 4 and one of 4 speak, always together: what p and q are made for."""
    make, head = torch.Generator().manual_seed(40), torch.arange(8)
    p, q = (F.normalize(torch.randn(8, 4, 32, generator=make), dim=2) for _ in range(2))
    amount = (torch.rand(n, 8, generator=make) < 3 / 8) * (1 + torch.rand(n, 8, generator=make))
    i, j = (torch.randint(4, (n, 8), generator=make) for _ in range(2))
    return (amount[..., None] * (p[head, i] + q[head, j])).sum(1) + 0.02 * torch.randn(n, 32, generator=make)


def test_kronecker_learns_conjunctions_with_half_the_encoder():
    x = conjunctions(4000)
    first, last = (
        learn([Pupil(TopK(), budget("3"), 128, encoder=Kronecker())], Rows(x, 250), Lesson(n))[0] for n in (1, 150)
    )
    assert last.encoder.numel() * 2 == last.latents * 32
    assert missed(last, x) < 0.5 < 0.7 < missed(first, x)  # docs/LOG.md: a linear encoder misses less
    assert ((last.encode(x).value != 0).sum(1) <= 3).all()


@pytest.mark.parametrize("sparsifier", [TopK(), BatchTopK()], ids=lambda m: m.name)
def test_a_kronecker_dictionary_is_kept_by_our_form_and_refused_by_all_others(sparsifier, tmp_path):
    pupil = Pupil(sparsifier, budget("4"), 48, encoder=Kronecker(2, 4))
    (d,) = learn([pupil], Rows(draw(400, 12), 50), TEN)
    d, x = replace(d, reads=("layers.0",), writes=("layers.0",)), draw(20, 12, seed=1)
    again = load(save(d, tmp_path / "d"))
    assert again.how == Kronecker(2, 4) and torch.equal(again.encode(x).dense(), d.encode(x).dense())
    for form in ("saelens", "sparsify", "gemma_scope", "llamascopium", "circuit_tracer"):
        with pytest.raises(ValueError, match="asks for a linear map for each latent"):
            save(d, tmp_path / "other", format=form)
    with pytest.raises(ValueError, match="a head adds to a latent"):
        by_head(d, x, torch.tensor([0]), 2)
    note = json.loads((tmp_path / "d/dictionary.json").read_text())
    for encoder, says in (
        ("features/linear", "'encoder' has 36 rows; 48 latents of features/linear ask for 48"),
        ("features/kronecker(m=7)", "48 latents: heads of 7 x 4"),
        ("features/top_k", "is no encoder"),
    ):
        (tmp_path / "d/dictionary.json").write_text(json.dumps(note | {"encoder": encoder}))
        with pytest.raises(ValueError, match=says):
            load(tmp_path / "d")


# -- archetypal atoms


def test_centroids_of_clumps_are_their_means():
    clumps = 10 * draw(5, 3)
    rows = (clumps[torch.arange(500) % 5] + 0.1 * draw(500, 3, seed=1)).contiguous()
    found = centroids(rows, 5)
    means = torch.stack([rows[i::5].mean(0) for i in range(5)])
    assert torch.cdist(means, found).amin(1).max() < 1e-4


@pytest.mark.parametrize("delta", [0.0, 0.2])
def test_archetypal_atoms_are_mixtures_of_points_near_the_data_up_to_delta(delta):
    x = draw(2000, 12).abs() * torch.linspace(1, 5, 12)
    (d,) = learn([Pupil(TopK(), budget("4"), 24, decoder=Archetypal(32, delta))], Rows(x, 100), Lesson(30))
    mix, points, offset = (d.own[name].double() for name in ("mix", "points", "offset"))
    assert (mix >= 0).all() and torch.allclose(mix.sum(1), torch.ones(24, dtype=torch.float64), atol=1e-6)
    made = mix @ points + offset
    assert torch.allclose(F.normalize(made, dim=1), F.normalize(d.decoder.double(), dim=1), atol=1e-5)
    size = points.square().sum(1).mean().sqrt()
    assert (offset.norm(dim=1) <= delta * size * 1.00001).all() and (delta == 0) == (not offset.any())
    assert (F.normalize(points, dim=1) >= -1e-6).all(), "centroids of positive data are positive"


def test_archetypal_atoms_are_the_same_for_every_seed_and_are_there():
    """Planted: 48 directions, mostly positive, for 96 atoms; each seed has its own order of the data too."""
    true = F.normalize(draw(48, 32, seed=40).abs() + 0.3 * draw(48, 32, seed=41), dim=1)
    x, stable, found = planted(true, 2, 8000, 0.05), {}, {}
    for atoms in (find("features/free")(), Archetypal(96, 0.0)):
        pair = [
            learn([Pupil(TopK(), budget("3"), 96, s, decoder=atoms)], Rows(x, 256, s), Lesson(150))[0] for s in (0, 1)
        ]
        near = cosines(pair[0].decoder, pair[1].decoder)
        stable[atoms.name] = near[match(near)].mean().item()
        found[atoms.name] = min(cosines(true, d.decoder).amax(1).mean().item() for d in pair)
    assert stable["features/archetypal"] > stable["features/free"] + 0.1
    assert found["features/archetypal"] > max(0.85, found["features/free"])


# -- where it begins


def lowly(n=8000):
    """Sums of 4 of 64 directions in 16 of 64 dimensions, and a little noise everywhere."""
    basis = torch.linalg.qr(draw(64, 16)).Q
    return planted(F.normalize(draw(64, 16, seed=1), dim=1) @ basis.T, 4, n, 0.01) + 0.5, basis


def test_first_directions_lie_where_the_data_do():
    rows, basis = lowly()
    m, made = Subspace(), Subspace().directions(draw(200, 64, seed=2), rows)
    assert len(m.basis(rows)) == 16
    inside = (made.double() @ basis.double()).norm(dim=1)
    assert inside.min() > 0.999 and (draw(200, 64, seed=2) @ basis).norm(dim=1).mean() < 6
    spectrum = torch.linalg.svdvals((rows - rows.mean(0)).double()).square()
    for share in (0.3, 0.6, 0.99, 1.0):
        r = next(r for r in range(1, 65) if spectrum[:r].sum() >= share * spectrum.sum() * (1 - 1e-12))
        assert len(Subspace(share).basis(rows)) == r


@pytest.mark.parametrize("aux", [0.0, 1 / 32])
def test_fewer_latents_die_that_begin_where_the_data_lie(aux):
    rows, _ = lowly()
    lesson = Lesson(150, aux=aux, dead_after=5000)
    pupils = [Pupil(TopK(), budget("4"), 128), Pupil(TopK(), budget("4"), 128, start=Subspace())]
    anywhere, inside = learn(pupils, Rows(rows, 256), lesson)
    assert inside.about["dead"] < 0.5 * anywhere.about["dead"] and anywhere.about["dead"] > 20


def test_a_transcoder_begins_inside_of_what_it_reads_and_of_what_it_writes():
    rows, basis = lowly(1000)
    x = torch.cat([rows, draw(1000, 8)[:, :1] * draw(1, 8, seed=5)], 1)
    known = Known.of(x, {"a": 64, "b": 8})
    one = One(Pupil(TopK(), budget("4"), 32, 0, ("a",), ("b",), start=Subspace()), known, TEN, 50, rows=x)
    assert (one.tensors["encoder"].double() @ basis.double()).norm(dim=1).min() > 0.99
    assert cosines(one.tensors["decoder"], draw(1, 8, seed=5)).abs().min() > 0.999
    with pytest.raises(ValueError, match="depends on data"):
        One(Pupil(TopK(), budget("4"), 32, 0, ("a",), ("b",), start=Subspace()), known, TEN, 50)


# -- what is hidden


def test_nothing_hidden_is_the_standard_to_the_bit_and_a_hidden_column_is_not_heard():
    x, pupil = draw(400, 12), Pupil(OrthogonalMatchingPursuit(), budget("3"), 24)
    plain, none = (learn([pupil], Rows(x, 50), lesson)[0] for lesson in (TEN, replace(TEN, hide=0.0)))
    assert torch.equal(plain.decoder, none.decoder)
    known = Known.of(x, {"": 12})
    one = One(pupil.at([""]), known, replace(TEN, hide=0.25), 50)
    rows, atoms = known.seen(x[:50]), one.tensors["decoder"].detach()
    torch.manual_seed(3)
    found = one.loss(rows, 0.0).item()
    torch.manual_seed(3)
    hidden = torch.randperm(12)[:3].tolist()
    seen = [i for i in range(12) if i not in hidden]
    error = 0.0
    for row in rows.double():  # atoms where they are seen, of length one there; by brute force
        short = atoms[:, seen].double()
        size, left, chosen = short.norm(dim=1), row[seen].clone(), []
        for _ in range(3):
            near = (short / size[:, None] @ left).abs()
            near[chosen] = -1
            chosen.append(int(near.argmax()))
            amounts = torch.linalg.lstsq(short[chosen].T, row[seen]).solution
            left = row[seen] - amounts @ short[chosen]
        error += (row[hidden] - amounts @ atoms[chosen][:, hidden].double()).square().mean().item() / 50
    assert found == pytest.approx(error, rel=1e-3)


def test_an_encoder_hears_the_mean_of_what_is_hidden_and_the_rest_louder():
    x, pupil = draw(400, 12), Pupil(TopK(), budget("3"), 24).at([""])
    known = Known.of(x, {"": 12})
    one = One(pupil, known, replace(TEN, hide=0.5, aux=0.0), 50)
    torch.manual_seed(3)
    hidden, rows = torch.zeros(12).bool(), known.seen(x[:50])
    hidden[torch.randperm(12)[:6]] = True
    torch.manual_seed(3)
    z = TopK().code(2 * (rows * ~hidden) @ one.tensors["encoder"].T, budget("3"))
    right = (rows - z @ one.tensors["decoder"])[:, hidden].square().mean()
    assert one.loss(rows, 0.0).item() == pytest.approx(right.item(), rel=1e-5)


# -- drawn to each other


def test_drawn_by_nothing_each_is_learnt_as_alone():
    pupils = [Pupil(TopK(), budget("4"), 20, seed=seed) for seed in (0, 1, 2)]
    for pupil, one in zip(pupils, learn(pupils, Rows(draw(400, 8), 50), TEN, together=Mutual(0.0)), strict=True):
        (alone,) = learn([pupil], Rows(draw(400, 8), 50), TEN)
        assert torch.equal(alone.encoder, one.encoder) and torch.equal(alone.decoder, one.decoder)


def test_dictionaries_drawn_to_each_other_have_fewer_atoms_that_are_not_there():
    """Planted: 64 directions for 2 x 128 atoms. The mean largest cosine of an atom with the truth rises, none is lost."""
    true = F.normalize(draw(64, 32, seed=40), dim=1)
    x, real = planted(true, 4, 8000, 0.1), {}
    for weight in (0.0, 0.1):
        pupils = [Pupil(TopK(), budget("4"), 128, seed=seed) for seed in (0, 1)]
        pair = learn(pupils, Rows(x, 256), Lesson(200), together=Mutual(weight))
        real[weight] = sum(cosines(d.decoder, true).amax(1).mean().item() / 2 for d in pair)
        assert min(cosines(true, d.decoder).amax(1).mean().item() for d in pair) > 0.9
    assert real[0.1] > real[0.0] + 0.015


def test_the_pull_is_one_less_the_mean_largest_cosine_over_pairs_both_ways():
    known = Known.of(draw(400, 8), {"": 8})
    several = [One(Pupil(TopK(), budget("4"), n, seed=n).at([""]), known, TEN, 50) for n in (5, 7, 9)]
    rows, total = known.seen(draw(50, 8)), 0.0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        a, b = (several[k].tensors["decoder"].detach().double() for k in (i, j))
        one_way = sum(max((x @ y).item() for y in b) for x in a) / len(a)
        other = sum(max((x @ y).item() for x in a) for y in b) / len(b)
        total += (1 - (one_way + other) / 2) / 3
    plain, pulled = (Mutual(w).loss(several, known, rows, 0.0).item() for w in (0.0, 2.0))
    assert pulled - plain == pytest.approx(2 * total, rel=1e-4)


# -- how often latents speak


@pytest.mark.parametrize("seed", [1, 2])
def test_each_group_speaks_as_often_as_it_should_while_atoms_draw_near(seed):
    """After 250 steps they are on their way; 1200 bring the mean largest cosine above 0.9 here."""
    true, m = F.normalize(draw(64, 32, seed=40), dim=1), GroupBias(4, 0.1)
    x = planted(true, 4)
    (d,) = learn([Pupil(m, budget("4"), 128, seed)], Rows(x[:10000], 250), Lesson(250))
    share = (d.encode(x[10000:]).dense() != 0).float().mean(0)
    ends = [0.0702, 0.0326, 0.0151, 0.0070]  # 4 / 32 = 0.07 (1 + c + c^2 + c^3), c^3 = 0.1
    for group, target in zip(share.split(32), ends, strict=True):
        assert group.mean().item() == pytest.approx(target, rel=0.1)
    assert (d.encode(x[10000:]).value != 0).sum(1).float().mean().item() == pytest.approx(4, rel=0.05)
    assert cosines(true, d.decoder).amax(1).mean() > 0.58 > 0.5 > cosines(true, draw(128, 32, seed=9)).amax(1).mean()


def test_biases_get_no_gradient_and_move_every_ten_steps():
    x, m = draw(400, 8), GroupBias(2, 0.5)
    known = Known.of(x, {"": 8})
    one = One(Pupil(m, budget("4"), 16).at([""]), known, TEN, 50)
    rows, w = known.seen(x[:50]), one.tensors["encoder"]
    for _ in range(10):
        assert not one.tensors["encoder_bias"].any()
        one.loss(rows, 0.0).backward()
    assert one.tensors["encoder_bias"].grad is None and w.grad.any()
    pre = (rows @ w.T).detach()
    for j, target in enumerate([1 / 3] * 8 + [1 / 6] * 8):
        over = max(-1.0, min(1.0, (pre[:, j] > 0).double().mean().item() / target - 1))
        right = min(0.0, -0.05 * pre[:, j].max().item() * over)
        assert one.tensors["encoder_bias"][j].item() == pytest.approx(right, abs=1e-5)


# -- what does not fit


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda: Pupil(TopK(), budget("4"), 20, encoder=Kronecker()), "20 latents: heads of 4 x 4 ask for a multiple"),
        (lambda: Kronecker(0, 4), "at least one map"),
        (lambda: Pupil(MatchingPursuit(), budget("4"), 32, encoder=Kronecker()), "matching_pursuit has no encoder"),
        (lambda: Subspace(0.0), "above 0 and up to 1"),
        (lambda: Archetypal(1), "at least 2 points"),
        (lambda: Lesson(hide=1.0), "hide=1.0: give the share"),
        (lambda: Mutual(-1.0), "weight=-1.0"),
        (lambda: GroupBias(0), "at least 1 group"),
        (lambda: GroupBias().targets(16, budget("8")), "more often than not"),
        (
            lambda: learn([Pupil(TopK(), budget("4"), 20, decoder=Archetypal(900))], Rows(draw(400, 8), 50), TEN),
            "too few for points=900",
        ),
        (
            lambda: learn([Pupil(Matryoshka(), budget("4"), 20)], Rows(draw(400, 8), 50), replace(TEN, hide=0.1)),
            "features/matryoshka",
        ),
        (
            lambda: learn([Pupil(TopK(), budget("4"), 20)], Rows(draw(400, 8), 50), TEN, together=Mutual()),
            "two or more",
        ),
        (
            lambda: learn(
                [Pupil(TopK(), budget("4"), 32, encoder=Kronecker())], Rows(draw(400, 8), 50), TEN, by=ByRows(Crew())
            ),
            "features/kronecker is learnt in one process",
        ),
        (
            lambda: learn(
                [Pupil(TopK(), budget("4"), 32)], Rows(draw(400, 8), 50), Lesson(9, hide=0.1), by=ByRows(Crew())
            ),
            "hide=0.1 is learnt in one process",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence(do, says):
    with pytest.raises(ValueError, match=says):
        do()
