"""Measures of dictionaries, each against a planted answer."""

import doctest
import importlib

import pytest
import scipy.stats
import torch

from fewer import measure
from fewer.layout import Codes
from fewer.measure import fvu, over_seeds, ratio, reconstruction
from fewer.measure.absorption import absorption, splitting
from fewer.measure.description import coarsest, description_length, entropy
from fewer.measure.erasing import blamed, erased, spurious, targeted
from fewer.measure.estimate import jackknife
from fewer.measure.geometry import lobes, parallelogram, power_law, spectrum, together
from fewer.measure.matching import (
    against_shuffled,
    canonical,
    comparative_sharedness,
    correlations,
    match,
    rsa,
    shared,
    sharedness,
    stability,
    svcca,
)
from fewer.measure.planted import Planted, f1, mcc, mean_max_cosine, supervised
from fewer.measure.probing import classify, macro_f1, pooled, sparse_probe
from fewer.measure.residue import dark_matter, refit
from fewer.measure.senses import senses

FILES = [
    "estimate",
    "reconstruction",
    "planted",
    "matching",
    "probing",
    "absorption",
    "erasing",
    "description",
    "residue",
    "geometry",
    "senses",
]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes_of(z):
    return Codes.pack(z, z != 0)


@pytest.mark.parametrize("file", FILES)
def test_examples_in_docstrings_hold(file):
    module = importlib.import_module(f"fewer.measure.{file}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


# --- reconstruction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0])
def test_half_of_the_variance_reads_half_at_any_mean_and_scale(mean, scale):
    part, rest = gaussian(8000, 32), gaussian(8000, 32, seed=1)  # independent, equal variances
    x, x_hat = scale * (part + rest + 2**0.5 * mean), scale * (part + 2**0.5 * mean)
    codes = Codes(torch.zeros(8000, 1, dtype=torch.long), torch.ones(8000, 1), 2)
    pieces = [
        (x[i : i + 250], x_hat[i : i + 250], Codes(codes.index[:250], codes.value[:250], 2))
        for i in range(0, 8000, 250)
    ]
    r = reconstruction(pieces)
    assert r.explained.value == pytest.approx(0.5, abs=0.005) and r.explained.higher_is_better
    assert r.fvu.value == pytest.approx(fvu(x, x_hat), rel=1e-9) and not r.fvu.higher_is_better
    assert r.explained.estimate.low < 0.5 < r.explained.estimate.high and r.explained.estimate.n == 32
    biased = reconstruction((a, b + scale, c) for a, b, c in pieces)  # a constant error costs what it costs
    assert biased.explained.value == pytest.approx(0.0, abs=0.01)


def test_who_spoke_how_often_is_counted():
    z = torch.zeros(40, 6)
    z[:, 0] = 1.0  # always
    z[:3, 1] = -1.0  # 7.5 %
    z[::2, 2] = 2.0  # half
    x = gaussian(40, 4)
    r = reconstruction([(x[i : i + 8], 2 * x[i : i + 8], codes_of(z[i : i + 8])) for i in range(0, 40, 8)])
    assert r.frequency.tolist() == [1.0, 0.075, 0.5, 0.0, 0.0, 0.0] and r.tokens == 40
    assert r.l0.value == pytest.approx(1.575) and r.cosine.value == pytest.approx(1.0)
    assert r.dead.value == 0.5 and r.dense.value == pytest.approx(2 / 6)
    assert not (r.dead.higher_is_better or r.dense.higher_is_better or r.l0.higher_is_better)
    assert reconstruction([(x, -x, codes_of(z))]).cosine.value == pytest.approx(-1.0)


def test_the_interval_of_a_ratio_holds_the_truth_nineteen_times_of_twenty():
    make, held = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        size = torch.randint(5, 15, (30,), generator=make).double()
        e = ratio(size * 0.3 + size.sqrt() * torch.randn(30, generator=make).double(), size)
        held += e.low <= 0.3 <= e.high
    assert 0.92 <= held / 400 <= 0.98


def test_what_cannot_be_judged_is_refused():
    x, z = gaussian(4, 3), codes_of(torch.ones(4, 2))
    with pytest.raises(ValueError, match="nothing to judge"):
        reconstruction([])
    with pytest.raises(ValueError, match="piece 1: .* NaN"):
        reconstruction([(x, x, z), (x, x / 0, z)])
    with pytest.raises(ValueError, match="no variance"):
        reconstruction([(torch.full((4, 3), 7.1), x, z)])
    with pytest.raises(ValueError, match="as many above as below"):
        ratio(x[:, 0], x[:3, 0])


# --- planted truth and matching ------------------------------------------------------------------------------------------


def test_planted_features_come_as_often_as_told_and_rows_are_their_sum():
    p = Planted.make(64, 32, active=4, zipf=1.0, mean=3.0, scale=10.0)
    x, z = p.draw(20_000)
    on = (z > 0).double().mean(0)
    assert on.sum() == pytest.approx(4, rel=0.03) and on[0] == pytest.approx(0.5, abs=0.02)
    assert on[10] / on[43] == pytest.approx(4, rel=0.15), "1 / rank: 44 / 11"
    torch.testing.assert_close(x - p.mean, 10 * z @ p.atoms, rtol=1e-4, atol=1e-3)
    spread = (x - p.mean).square().sum(1).mean().sqrt()
    assert p.mean.norm() / spread == pytest.approx(3, rel=0.15)
    same = p.draw(5, seed=3)[0]
    assert torch.equal(same, p.draw(5, seed=3)[0]) and not torch.equal(same, p.draw(5, seed=4)[0])


def test_planted_children_need_their_parents_and_groups_come_together():
    p = Planted.make(40, 32, active=4, children=0.5, seed=1)
    _, z = p.draw(20_000)
    child = (p.parent >= 0).nonzero()[:, 0]
    assert len(child) == 20 and not ((z[:, child] > 0) & (z[:, p.parent[child]] == 0)).any()
    torch.testing.assert_close((z > 0).float().mean(0), p.chance, rtol=0.2, atol=0.01)
    q = Planted.make(40, 32, active=4, zipf=0.0, group=2, together=0.8)
    on = (q.draw(20_000)[1] > 0).double()
    r = torch.corrcoef(on.T)
    assert r[0, 1] > 0.4 and abs(r[0, 2]) < 0.05
    torch.testing.assert_close(on.mean(0), q.chance.double(), rtol=0.15, atol=0)


def test_the_true_dictionary_scores_one_a_random_one_does_not():
    p = Planted.make(64, 32, active=3)
    x, z = p.draw(2000)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for score in (
        mcc(p.atoms[order], p.atoms),
        mean_max_cosine(3 * p.atoms[order], p.atoms),
        f1(z[:, order] > 0, z > 0),
    ):
        assert score.value == pytest.approx(1, abs=1e-6) and score.higher_is_better
    other = gaussian(64, 32, seed=9)
    assert mcc(other, p.atoms).value < mean_max_cosine(other, p.atoms).value < 0.6
    assert f1(gaussian(2000, 64) > 1.5, z > 0).value < 0.2
    assert mcc(p.atoms[:32], p.atoms).value == pytest.approx(0.5, abs=1e-6), "half of it"
    assert mean_max_cosine(supervised(x, z > 0), p.atoms).value > 0.98, "one who knows who speaks finds the atoms"
    assert over_seeds([0.1, 0.3], "x", True).estimate.n == 2


def test_seeds_share_a_permuted_copy_and_nothing_of_a_random_one():
    a, order = gaussian(50, 32), torch.randperm(50, generator=torch.Generator().manual_seed(0))
    half = torch.cat([a[:25], gaussian(25, 32, seed=2)])[order]
    assert shared(a, a[order]).value == 1 and shared(a, gaussian(50, 32, seed=1)).value == 0
    assert shared(a, half).value == 0.5 and shared(a, -a).value == 0
    assert shared(a, a[order], (a, a[order])).value == 1 and shared(a, a[order], (a, a)).value < 0.1
    assert stability([a, half, a[order]]).value == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_sharedness_is_one_for_a_permuted_copy_and_chance_for_shuffled_tokens():
    _, z = Planted.make(40, 32, active=4).draw(3000)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        correlations(codes_of(z), codes_of(z)), torch.corrcoef(z.double().T), rtol=1e-6, atol=1e-8
    )
    i, j = match(correlations(codes_of(z), codes_of(z[:, order])))
    assert torch.equal(order[j], i), "the permutation, exactly"
    copy = sharedness(codes_of(z), codes_of(z[:, order]))
    mixed = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    chance = sharedness(codes_of(z), codes_of(z[mixed]))
    part = sharedness(codes_of(z), codes_of(torch.cat([z[:, :10], z[mixed, 10:]], 1)))
    assert copy.value == pytest.approx(1) and chance.value < 0.1 < 0.4 < part.value < 0.9
    more = comparative_sharedness(codes_of(z), [codes_of(z)], [codes_of(z[mixed])])
    assert (more > 0.8).all()


def test_svcca_and_rsa_are_one_for_a_rotated_copy_and_stand_above_shuffled():
    x = gaussian(200, 8)
    turn = torch.linalg.qr(gaussian(8, 8, seed=1)).Q
    same, other = (
        (svcca(x, 3 * x @ turn + 1), rsa(x, x @ turn)),
        (svcca(x, gaussian(200, 8, seed=2)), rsa(x, gaussian(200, 8, seed=2))),
    )
    assert all(score.higher_is_better and score.value == pytest.approx(1, abs=1e-4) for score in same)
    assert other[0].value < 0.3 and abs(other[1].value) < 0.1
    assert all(score.estimate.high - score.estimate.low < 1e-3 for score in same)
    assert all(0.02 < score.estimate.high - score.estimate.low < 0.5 for score in other)
    gain, null = against_shuffled(canonical, x, x @ turn, times=20)
    assert gain.estimate.low > 0.7 and null.max() < 0.4
    assert rsa(x[:40], gaussian(40, 8, seed=3)).value == pytest.approx(
        spearman(x[:40], gaussian(40, 8, seed=3)), abs=1e-6
    )


def spearman(x, y):
    def near(t):
        t = t / t.norm(dim=1, keepdim=True)
        return [(t[i] @ t[j]).item() for i in range(len(t)) for j in range(i + 1, len(t))]

    return scipy.stats.spearmanr(near(x), near(y)).statistic


def test_a_jackknife_of_a_mean_is_students_interval():
    x = gaussian(10)
    e, truth = jackknife(lambda rows: x[rows].mean().item(), 10), measure.mean(x)
    assert (e.value, e.low, e.high) == pytest.approx((truth.value, truth.low, truth.high), rel=1e-4)


# --- probes, absorption, erasure -------------------------------------------------------------------------------------------


@pytest.fixture
def sklearn():
    return pytest.importorskip("sklearn", reason="scikit-learn is in the extra `judge`")


def labelled(n=600, latents=20, at=(3,), seed=0):
    """Codes, and labels that are 1 where one of the latents `at` speaks; these take turns."""
    z = gaussian(n, latents, seed=seed).relu()
    label = torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed + 1))
    turn = torch.randint(len(at), (n,), generator=torch.Generator().manual_seed(seed + 2))
    for i, latent in enumerate(at):
        z[:, latent] = torch.where((label == 1) & (turn == i), 2.0, 0.0)
    return z, label


def test_a_probe_of_one_latent_finds_the_one_that_knows(sklearn):
    (z, label), (test, truth) = labelled(), labelled(seed=7)
    one = sparse_probe(z, label, test, truth, k=1)
    assert one.value == 1 and one.higher_is_better and one.estimate.low > 0.98
    blind = torch.tensor([i for i in range(20) if i != 3])
    assert sparse_probe(z[:, blind], label, test[:, blind], truth, k=5).value == pytest.approx(0.5, abs=0.08)
    two, tried = labelled(at=(3, 5)), labelled(at=(3, 5), seed=7)
    assert sparse_probe(*two, *tried, k=1).value == pytest.approx(0.75, abs=0.05), "half of the ones and all zeros"
    assert sparse_probe(*two, *tried, k=2).value == 1
    with pytest.raises(ValueError, match="some of each"):
        sparse_probe(z, label * 0, test, truth)


@pytest.mark.parametrize("at", [(3,), (3, 5), (3, 5, 8)])
def test_a_concept_is_split_over_as_many_latents_as_take_turns(sklearn, at):
    found, score = splitting(*labelled(at=at), *labelled(at=at, seed=7))
    assert tuple(sorted(found.tolist())) == at
    assert (
        score.value == len(at) and not score.higher_is_better and score.estimate.low <= len(at) <= score.estimate.high
    )


def test_an_absorbing_dictionary_is_told_from_one_that_is_not():
    parent, child, other = torch.eye(3)
    special = torch.arange(100) < 30  # 30 of 100 are of the special kind
    x = parent + special[:, None] * child
    honest = torch.stack([torch.ones(100), special.float(), torch.zeros(100)], 1)
    greedy = torch.stack([(~special).float(), special * 2**0.5, torch.zeros(100)], 1)
    both = torch.stack([parent, torch.nn.functional.normalize(parent + child, dim=0), other])
    torch.testing.assert_close(greedy @ both, x)
    main = torch.tensor([0])
    full, part = absorption(x, honest, torch.stack([parent, child, other]), parent, main)
    assert full.value == part.value == 0 and not full.higher_is_better
    full, part = absorption(x, greedy, both, parent, main)
    assert full.value == part.value == pytest.approx(0.3)
    far = torch.stack([parent, other, child])  # what speaks instead does not speak for the parent
    assert absorption(x, greedy, far, parent, main)[0].value == 0


def concepts(n=800, latents=4, dim=16, seed=0):
    """One orthogonal direction a concept, each there in half of the rows."""
    atoms = torch.linalg.qr(gaussian(dim, dim)).Q[:latents]
    on = torch.rand(n, latents, generator=torch.Generator().manual_seed(seed)) < 0.5
    return on.float() @ atoms * 3 + 0.1 * gaussian(n, dim, seed=seed + 1), 3 * on.float(), atoms, on.long()


def test_erasing_the_true_latents_hurts_their_probe_alone(sklearn):
    x, z, atoms, on = concepts()
    torch.testing.assert_close(x - erased(x, z, atoms, torch.tensor([1])), (z[:, 1:2] - z[:, 1].mean()) * atoms[1])
    true = targeted(x, z, atoms, list(on.T), k=1)
    assert true.value == pytest.approx(0.5, abs=0.05) and true.higher_is_better, "to chance, and nobody else"
    turned = atoms[[1, 2, 3, 0]]
    wrong = targeted(x, z, turned, list(on.T), k=1)
    assert wrong.value < 0.1
    whole = torch.linalg.qr(gaussian(4, 4, seed=3)).Q  # every latent says a little of every concept
    assert targeted(x, z @ whole.T, whole @ atoms, list(on.T), k=2).value < 0.3


def test_erasing_the_unwanted_concept_mends_a_biased_probe(sklearn):
    x, z, atoms, on = concepts()
    x, z = x + z[:, 1:2] * atoms[1], z * torch.tensor([1.0, 2.0, 1.0, 1.0])  # the unwanted one is louder
    alike = on[:, 0] == on[:, 1]
    biased = (x[alike], on[alike, 0])
    mended = spurious(biased, x, z, atoms, on[:, 0], on[:, 1], k=1)
    assert mended.value > 0.7 and mended.higher_is_better
    other = spurious(biased, x, z, atoms, on[:, 0], on[:, 2], k=1)
    assert abs(other.value) < 0.1, "a latent that has nothing to do with it mends nothing"
    with pytest.raises(ValueError, match="no spurious correlation"):
        spurious((x, on[:, 0]), x, z, atoms, on[:, 0], on[:, 1])
    assert blamed(z, on[:, 1], atoms, atoms[1], 1).tolist() == [1]


def test_pooled_codes_classify_texts_and_binarised_ones_do_as_well(sklearn):
    make = torch.Generator().manual_seed(0)
    kind = torch.randint(3, (300,), generator=make)
    text = torch.arange(300).repeat_interleave(10)
    z = 0.2 * torch.rand(3000, 30, generator=make)
    spoken = torch.arange(0, 3000, 10) + torch.randint(10, (300,), generator=make)
    z[spoken, kind] = 1.5  # one token of ten says the kind
    rows = {how: pooled(z, text, how) for how in ("amax", "sum", "mean")} | {"yes": pooled(z, text, above=1.0)}
    f1s = {how: classify(r[:200], kind[:200], r[200:], kind[200:]) for how, r in rows.items()}
    assert f1s["amax"].value == f1s["yes"].value == 1 and f1s["sum"].value > 0.8
    torch.testing.assert_close(10 * rows["mean"], rows["sum"])
    mixed = kind[torch.randperm(300, generator=make)]
    assert classify(rows["amax"][:200], mixed[:200], rows["amax"][200:], mixed[200:]).value < 0.5


def test_macro_f1_is_that_of_scikit_learn(sklearn):
    from sklearn.metrics import f1_score

    said, truth = torch.randint(4, (50,)), torch.randint(4, (50,))
    assert macro_f1(said, truth) == pytest.approx(f1_score(truth, said, average="macro"), abs=1e-9)


# --- bits, residue, geometry, senses -----------------------------------------------------------------------------------------


def test_the_true_dictionary_takes_fewer_bits_than_dense_codes_a_memory_and_too_few_latents():
    p = Planted.make(64, 32, active=2)
    x, z = p.draw(4000)
    step = coarsest(codes_of(z), p.atoms, 1e-3)
    rounded = (z / step).round() * step
    assert ((rounded - z) @ p.atoms).square().mean() == pytest.approx(1e-3 / 4, rel=0.15)

    def bits(z, atoms):
        return description_length(codes_of(z), x, z @ atoms, 1e-3, step).value

    true = description_length(codes_of(z), x, z @ p.atoms, 1e-3, step)
    known = p.draw(4000, seed=1)[0]
    nearest = torch.cdist(x, known).argmin(1)
    memory = description_length(Codes(nearest[:, None], torch.ones(4000, 1), 4000), x, known[nearest], 1e-3, step)
    loudest = torch.zeros_like(z).scatter(1, z.topk(1).indices, z.topk(1).values)
    costs = bits(x, torch.eye(32)), memory.value, bits(loudest, p.atoms)
    assert not true.higher_is_better and true.estimate.high < min(costs)


def test_entropy_is_that_of_each_latent_by_itself():
    z = torch.randint(-1, 3, (200, 5), generator=torch.Generator().manual_seed(0)).float()
    c = codes_of(z)
    truth = sum(scipy.stats.entropy(z[:, i].unique(return_counts=True)[1].numpy(), base=2) for i in range(5))
    assert entropy(c.index, c.value.long(), 5) == pytest.approx(truth, rel=1e-9)
    empty = Codes(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1), 5)
    x = gaussian(3, 4)
    assert description_length(empty, x, x, 0.1, 1.0).value == 0


def test_a_refit_never_raises_the_error_and_is_least_squares():
    atoms, x = gaussian(40, 12), gaussian(60, 12, seed=1)
    z = torch.where(gaussian(60, 40, seed=2) > 1.3, 1.0, 0.0)
    old = codes_of(z)
    new = refit(old, atoms, x, rows=16)
    errors = [(x - c.dense() @ atoms).square().sum(1) for c in (old, new)]
    assert (errors[1] <= errors[0] + 1e-5).all() and errors[1].sum() < 0.9 * errors[0].sum()
    assert torch.equal(new.keep(), old.keep())
    for row in range(5):
        on = z[row] > 0
        best = torch.linalg.lstsq(atoms[on].T.double(), x[row].double()[:, None], driver="gelsd").solution[:, 0]
        torch.testing.assert_close(new.dense()[row, on].double() @ atoms[on].double(), best @ atoms[on].double())


def test_the_linear_part_of_an_error_is_found():
    x = gaussian(6000, 12)
    linear, noise = 0.3 * x @ gaussian(12, 12, seed=1), gaussian(6000, 12, seed=2)
    noise = noise * linear.std() / noise.std()
    vector, _, rest = dark_matter(x, x - linear - noise)
    assert vector.value == pytest.approx(0.5, abs=0.02) and vector.estimate.low < 0.5 < vector.estimate.high
    assert rest.value == pytest.approx((noise.square().sum() / x.square().sum()).item(), rel=0.05)
    none, size, _ = dark_matter(x, x - noise)
    assert abs(none.value) < 0.02 and abs(size.value) < 0.02
    swelling = noise * (x[:, :1] + 4).clamp(min=0).sqrt()  # its square is linear in x
    assert dark_matter(x, x - swelling)[1].value > 0.15 and abs(dark_matter(x, x - swelling)[0].value) < 0.02


def test_a_distractor_hides_a_parallelogram_until_it_is_removed():
    base, move = gaussian(20, 32), gaussian(32, seed=1)
    exact = torch.stack([base, base + move], 1)
    assert parallelogram(exact).value == pytest.approx(1) and parallelogram(exact).higher_is_better
    off = torch.linalg.qr(torch.stack([move, gaussian(32, seed=2)], 1)).Q[:, 1]
    sign = torch.tensor([30.0, -30.0]).repeat(10)[:, None]
    hidden = torch.stack([base, base + move + sign * off], 1)
    assert abs(parallelogram(hidden).value) < 0.4 and parallelogram(hidden, off[None]).value == pytest.approx(1)
    assert abs(parallelogram(gaussian(20, 2, 32)).value) < 0.1


def test_the_slope_of_a_planted_spectrum_is_read_and_isotropic_atoms_have_none():
    rank = torch.arange(1, 33.0)
    steep = spectrum(gaussian(20_000, 32) * rank**-0.5)
    assert power_law(steep).value == pytest.approx(-1, abs=0.03)
    assert abs(power_law(spectrum(gaussian(20_000, 32))).value) < 0.05


def test_latents_that_speak_together_lie_together_where_planted(sklearn):
    group = torch.arange(30) // 10
    on = torch.randint(3, (1500, 1), generator=torch.Generator().manual_seed(0)) == group
    z = (on & (torch.rand(1500, 30, generator=torch.Generator().manual_seed(1)) < 0.5)).float()
    atoms = 2 * gaussian(3, 16)[group] + 0.3 * gaussian(30, 16, seed=1)
    torch.testing.assert_close(together(codes_of(z)), torch.corrcoef(z.double().T))
    found = lobes(codes_of(z), atoms, 3, times=20)
    assert found.value == pytest.approx(1) and found.estimate.low > 0.8
    assert (
        lobes(codes_of(z), atoms[torch.randperm(30, generator=torch.Generator().manual_seed(2))], 3, times=20).value
        < 0.3
    )


def test_planted_senses_score_one_and_a_random_dictionary_at_chance():
    make = torch.Generator().manual_seed(0)
    one, two = torch.randint(50, (400,), generator=make), torch.randint(50, (400,), generator=make)
    same = torch.rand(400, generator=make) < 0.5
    a, b = (torch.nn.functional.one_hot(s, 50).float() for s in (one, torch.where(same, one, (two + 51) % 50)))
    truth = one == torch.where(same, one, (two + 51) % 50)
    found = {s.name: s for s in senses(codes_of(a), codes_of(b), truth)}
    assert {s.value for s in found.values()} == {1.0} and all(s.higher_is_better for s in found.values())
    blind = torch.rand(400, 2, generator=make), torch.rand(400, 2, generator=make)  # two latents: same half of the time
    chance = {s.name: s.value for s in senses(*map(codes_of, blind), truth)}
    assert chance["accuracy"] == pytest.approx(0.5, abs=0.08) and chance["specificity"] == pytest.approx(0.5, abs=0.1)
    silent = Codes(torch.zeros(400, 1, dtype=torch.long), torch.zeros(400, 1), 50)
    assert {s.name: s.value for s in senses(silent, silent, truth)}["recall"] == 0
