"""What else dictionaries are for: unlearning, heads, tracking, taking vectors apart, hypotheses; each with a planted answer."""

from dataclasses import replace

import pytest
import torch
from tiny import build
from torch import nn

from fewer.core import budget
from fewer.dictionaries.decompose import misfit, pursue
from fewer.dictionaries.heads import HeadVote, Signals, by_head, by_source, code_scores, whose
from fewer.dictionaries.hypotheses import by_correlation, by_lasso, verified
from fewer.dictionaries.steer import ScaleWhenActive, steered
from fewer.dictionaries.tracking import Transport, drift, formation
from fewer.dictionaries.unlearn import Spoken, forget_by_frequency, forget_by_share
from fewer.features import Dictionary
from fewer.features.top_k import TopK
from fewer.models import find_taps, tapped

IDS = {"input_ids": torch.randint(3, 99, (2, 6), generator=torch.Generator().manual_seed(0))}


def orthogonal(n, seed=0):
    torch.manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n))[0]


def spelt(w, site="mid", k=None):
    zero = torch.zeros(len(w)), torch.zeros(w.shape[1])
    return Dictionary(TopK(), budget(str(k or len(w))), w, zero[0], w, zero[1], {}, None, (site,), (site,))


class Topics(nn.Module):
    """Says which of two topics a token is of: latent 2 is sure sign of the first, latent 5 goes along with it."""

    def __init__(self):
        super().__init__()
        self.basis, self.mid = orthogonal(16), nn.Identity()

    def forward(self, z):
        x = self.mid(z @ self.basis)
        return x @ (2 * self.basis[2] + self.basis[5] - self.basis[9]) - 0.2  # above 0: the first topic


def tokens(first, seed, n=400):
    g = torch.Generator().manual_seed(seed)
    z = 0.5 * torch.rand(n, 16, generator=g) * (torch.rand(n, 16, generator=g) < 0.2)
    z[:, 2] = (0.5 + torch.rand(n, generator=g)) * (torch.rand(n, generator=g) < 0.9) if first else 0.0
    z[:, 5] += 0.4 * first
    z[:, 9] += 0.4 * (not first)
    return z


@pytest.mark.parametrize("way", [forget_by_frequency, forget_by_share])
def test_a_topic_is_forgotten_and_the_other_is_not_touched(way):
    model, forget, retain = Topics(), tokens(True, 0), tokens(False, 1)
    d = replace(spelt(model.basis), encoder_bias=torch.full((16,), -1e-3))  # rounding does not speak
    spoke = [Spoken.of(d.encode(z @ model.basis)) for z in (forget, retain)]
    edits = way(*spoke, 1)
    assert [e.latent for e in edits] == [2] and edits[0].to < 0
    test, kept = tokens(True, 2), tokens(False, 3)
    known, before = (model(test) > 0).float().mean(), model(kept)
    with steered(model, d, edits):
        forgotten, after = (model(test) > 0).float().mean(), model(kept)
    with steered(model, d, [ScaleWhenActive(2, 0.0)]):
        silenced = (model(test) > 0).float().mean()
    assert known > 0.95 and forgotten < 0.15 and silenced > 0.8  # nothing is not enough
    assert torch.equal(before, after)  # latent 2 is silent there


def test_counts_of_batches_add_up_and_wrong_amounts_are_refused():
    z = tokens(True, 0)
    d = spelt(torch.eye(16))
    whole, two = Spoken.of(d.encode(z)), Spoken.of(d.encode(z[:100])) + Spoken.of(d.encode(z[100:]))
    assert torch.allclose(whole.share, (z != 0).float().mean(0)) and torch.allclose(whole.mean, z.mean(0))
    assert torch.allclose(whole.share, two.share) and torch.allclose(whole.mean, two.mean) and two.tokens == 400
    with pytest.raises(ValueError, match="ScaleWhenActive"):
        forget_by_frequency(whole, whole, 1, to=0.0)
    assert forget_by_frequency(whole, whole, 3) == [] == forget_by_share(whole, whole, 3)


def test_a_latent_of_attention_outputs_is_the_sum_of_its_heads_and_sources():
    model = build("gpt2", attention="eager")
    attn = model.transformer.h[1].attn
    taps = find_taps(model, ["h.1.attn.c_proj:in", "h.1.attn", "h.1.attn.c_attn"])
    with torch.no_grad(), tapped(model, taps) as heard:
        pattern = model(**IDS, output_attentions=True).attentions[1]
    x, out, qkv = (heard[tap].double() for tap in taps)
    assert torch.allclose(attn.c_proj.double()(x), out, atol=1e-5)  # the site is what the output projection hears
    torch.manual_seed(0)
    w = torch.randn(40, 32).double()
    d = Dictionary(TopK(), budget("5"), w, torch.randn(40).double(), w, torch.zeros(32).double())
    some = torch.tensor([4, 7, 30])
    parts = by_head(d, x, some, heads=4)
    assert torch.allclose(parts.sum(-1) + d.encoder_bias[some], d.pre(x.flatten(0, 1)).view(2, 6, 40)[..., some])
    v = qkv[..., 64:].view(2, 6, 4, 8).transpose(1, 2)
    sources = by_source(d, pattern.double(), v, 7)
    assert torch.allclose(sources.sum(-1), parts[:, :, 1], atol=1e-5) and sources.shape == (2, 6, 4, 6)
    share = whose(d, heads=4)
    assert torch.allclose(share[7, 2] / share[7, 0], w[7, 16:24].norm() / w[7, :8].norm())
    with pytest.raises(ValueError, match="32 numbers are not 5 heads"):
        whose(d, heads=5)


def test_the_parts_of_a_score_sum_to_it_and_few_carry_it():
    torch.manual_seed(0)
    w_q, w_k = (torch.randn(8, 32, dtype=torch.float64) for _ in range(2))
    signals = Signals.of(w_q, w_k, scale=8**-0.5)
    x, y = (torch.randn(50, 32, dtype=torch.float64) for _ in range(2))
    x, y = x + 3 * signals.u[:, 1], y + 3 * signals.v[:, 1]  # the planted signal
    score = 8**-0.5 * ((x @ w_q.T) * (y @ w_k.T)).sum(-1)
    parts = signals.parts(x, y)
    assert parts.shape == (50, 8) and torch.allclose(parts.sum(-1), score)
    kept = signals.kept(x, y, 0.5) & (score > 0)[:, None]
    assert kept[:, 1].float().mean() > 0.7 and kept[score > 0].sum(1).float().mean() < 3
    pair = torch.tensor([1])
    less = signals.parts(signals.without(x, pair), y).sum(-1)
    assert torch.allclose(less, score - parts[:, 1])
    chance = torch.linalg.qr(torch.randn(32, 1, dtype=torch.float64))[0]
    random = signals.parts(x - (x @ chance) @ chance.T, y).sum(-1)
    assert (score - less).mean() > 5 * (score - random).mean().abs()


def test_few_heads_vote_better_than_all_and_than_others():
    torch.manual_seed(0)
    x, labels = torch.randn(60, 200, 8), torch.arange(60) % 3
    good = [17, 101]
    centre = 2.0 * torch.randn(3, 2, 8)
    x[:, good] += centre[labels]
    vote = HeadVote.fit(x[:30], labels[:30], count=2)
    assert sorted(vote.heads.tolist()) == good and len(vote.heads) / 200 <= 0.01
    assert torch.equal(vote.heads, HeadVote.fit(x[:30], labels[:30], count=2).heads)
    everyone = HeadVote.fit(x[:30], labels[:30], count=200)
    others = HeadVote(
        torch.tensor([3, 90]), everyone.means[[everyone.heads.tolist().index(h) for h in (3, 90)]], vote.right
    )
    mine, all_, chance = ((v(x[30:]) == labels[30:]).float().mean() for v in (vote, everyone, others))
    assert mine > 0.9 and mine > all_ + 0.1 and chance < 0.6
    with pytest.raises(ValueError, match="class 1 has no example"):
        HeadVote.fit(x[:2], torch.tensor([0, 2]))


def test_codes_that_only_positive_examples_have_point_at_the_heads():
    torch.manual_seed(0)
    positive, negative = torch.randint(0, 6, (10, 30)), torch.randint(0, 6, (10, 30))
    good = [4, 19]
    positive[:, good] += 100
    scores = code_scores(positive, negative)
    assert sorted(scores.argsort(descending=True)[:2].tolist()) == good
    both = torch.cat([positive, negative])[torch.randperm(20)]
    mixed = code_scores(both[:10], both[10:])
    assert mixed[good].max() < scores[good].min() and scores[[h for h in range(30) if h not in good]].max() < 0.5


def test_features_that_form_and_settle():
    torch.manual_seed(0)
    last = torch.randn(20, 32)
    path = drift([last + by * torch.randn(20, 32) for by in (3.0, 1.0, 0.3)] + [last])
    assert (path.mean(1).diff() > 0).all() and torch.allclose(path[-1], torch.ones(20))
    direction, others = torch.randn(32), torch.randn(200, 32)
    formed = [formation(torch.randn(50, 32) + by * direction, others) for by in (0.0, 0.5, 2.0)]
    assert abs(formed[0]) < 0.02 and formed[0] < formed[1] < formed[2] and formed[2] > 0.7
    x = torch.randn(6, 5).double()
    each = [torch.cosine_similarity(x[i], x[j], dim=0) for i in range(6) for j in range(6) if i != j]
    assert formation(x, x[:2]) == pytest.approx(
        float(torch.stack(each).mean() - torch.cosine_similarity(x[0], x[1], dim=0))
    )
    with pytest.raises(ValueError, match="expected one shape"):
        drift([last, last[:3]])


def test_what_is_copied_is_transported_and_what_is_made_is_not():
    torch.manual_seed(0)
    basis = orthogonal(8)
    early = torch.randn(4000, 8)
    late = 0.1 * torch.randn(4000, 8) @ basis
    late += torch.outer(early @ basis[0], basis[3])  # copied
    late += torch.outer((early @ basis[1]) ** 2, basis[5])  # made: even, so no line tells it
    carried = Transport.fit(early[:3000], late[:3000]).explained(early[3000:], late[3000:], basis[[3, 5]])
    assert carried[0] > 0.95 and abs(carried[1]) < 0.05


def test_signed_pursuit_finds_a_signed_vector_where_the_encoder_cannot():
    torch.manual_seed(0)
    atoms = nn.functional.normalize(torch.randn(200, 64), dim=1)
    amounts = {5: 2.0, 77: -3.0, 140: 1.5, 9: -1.0}
    vector = sum(v * atoms[i] for i, v in amounts.items())
    parts = pursue(vector, atoms, 4)
    assert dict(zip(parts.latents, parts.amounts, strict=True)) == pytest.approx(amounts, abs=1e-5)
    assert parts.cosine == pytest.approx(1, abs=1e-9)
    positive = pursue(vector, atoms, 4, signed=False)
    assert min(positive.amounts) > 0 and positive.cosine < 0.9 and 77 not in positive.latents
    said = misfit(spelt(atoms, k=4), vector, 10 * torch.randn(100, 64))
    assert said.cosine < 0.9 and said.negative > 0.3 and said.size < 0.1
    with pytest.raises(ValueError, match="count=0"):
        pursue(vector, atoms, 0)


def test_planted_causes_of_a_label_are_found_and_noise_is_not_believed():
    torch.manual_seed(0)
    z = torch.rand(600, 60) * (torch.rand(600, 60) < 0.2)
    z[:, 8] = z[:, 7] + 0.05 * torch.rand(600) * (z[:, 7] > 0)  # says what 7 says
    target = 3 * z[:, 7] - 2 * z[:, 20] + 2 * z[:, 41] + 0.3 * torch.randn(600)
    held = torch.arange(600) >= 400
    chosen = by_lasso(z[~held], target[~held], 3)
    assert len(chosen) == 3 and set(chosen) in ({7, 20, 41}, {8, 20, 41})
    assert len({7, 8} & set(by_correlation(z[~held], target[~held], 3))) == 2  # a correlation takes both
    found = verified([*chosen, 30, 31, 32], z, target, held)
    assert [h.holds for h in found] == [True] * 3 + [False] * 3
    assert found[0].held_out == pytest.approx(
        float(torch.corrcoef(torch.stack([z[held][:, chosen[0]], target[held]]))[0, 1]), abs=1e-5
    )
    mixed = z @ orthogonal(60)  # the same in dimensions that mean nothing
    raw = by_lasso(mixed[~held], target[~held], 3)

    def told(x, at):
        a = torch.cat([x[:, at], torch.ones(len(x), 1)], 1)
        w = torch.linalg.lstsq(a[~held], target[~held, None]).solution
        return 1 - (target[held] - (a[held] @ w)[:, 0]).var() / target[held].var()

    assert told(z, chosen) > 0.8 > 0.5 > told(mixed, raw)
    by_chance = verified(by_correlation(z[~held], torch.randn(400), 5), z, torch.randn(600), held)
    assert not any(h.holds for h in by_chance)
    with pytest.raises(ValueError, match="5 at least"):
        verified([0], z, target, torch.arange(600) >= 598)
