"""What was not read is made up for: by queries that read all, and by weights of what was drawn."""

import math

import pytest
import torch
from test_attending import DynamicCache, cached, generate, ids, padded
from tiny import build

import fewer
from fewer.attention._act import dense, merged
from fewer.attention._correct import corrected, weights_of
from fewer.attention.delta import Delta
from fewer.attention.denominator import Denominator
from fewer.attention.magic_pig import MagicPig
from fewer.kernels import attend_pages
from fewer.kernels.attend_pages.cases import cases

WINDOW = "attention/streaming(rows=4, block=4, sinks=4) 12"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("every", [1, 3, 7, 40])
def test_each_answer_is_corrected_by_the_last_that_read_all(every):
    """Row by row, query by query; the first three of the second row are padding."""
    queries, first, q = 11, [0, 3], draw(2, 2, 11, 4)
    some, whole = ((draw(2, 2, queries, 5, seed=s), draw(2, 2, queries, seed=s + 10)) for s in (1, 2))
    asked = []

    def exact(index):
        asked.append(index)
        rows = torch.arange(2)[:, None], slice(None), index
        return tuple(x.transpose(1, 2)[rows[0], index].transpose(1, 2) for x in whole)

    for m in (Delta(every), Denominator(every, nudge=0.2)):
        out, lse = corrected(m, some, exact, torch.tensor(first))
        for b, start in enumerate(first):
            for i in range(start, queries):
                g = start + (i - start) // every * every
                if m.name == "attention/delta":
                    told = some[0][b, :, i] + whole[0][b, :, g] - some[0][b, :, g]
                else:
                    r = (some[1][b, :, g] - whole[1][b, :, g]).exp().clamp(max=1)
                    r = (r + 0.2 * (1 - r))[:, None]
                    told = r * some[0][b, :, i] + whole[0][b, :, g] - r * some[0][b, :, g]
                told = whole[0][b, :, i] if i == g else told
                torch.testing.assert_close(out[b, :, i], told)
                torch.testing.assert_close(lse[b, :, i], some[1][b, :, i] + whole[1][b, :, g] - some[1][b, :, g])
        assert torch.equal(out[1, :, :3], some[0][1, :, :3]) and torch.equal(lse[1, :, :3], some[1][1, :, :3])
    assert asked[0].shape[1] == -(-queries // every) and len(q) == 2


def test_the_true_ratio_gives_dense_weights():
    """Of a query that asks what the last asked, both are what all keys give."""
    q, k, v = draw(1, 1, 1, 8), draw(1, 1, 30, 8, seed=1), draw(1, 1, 30, 8, seed=2)
    at, now = torch.arange(30, dtype=torch.int32)[None, None], torch.full((1, 1), 29, dtype=torch.int32)
    full = dense(q, k, v, at, now, 8**-0.5)
    some = dense(q, k[:, :, ::3], v[:, :, ::3], at[:, :, ::3], now, 8**-0.5)
    ratio = (some[1] - full[1]).exp()
    weight = (q @ k.mT / 8**0.5).softmax(-1)[..., ::3]
    torch.testing.assert_close(ratio[..., None] * some[0], weight @ v[:, :, ::3])
    torch.testing.assert_close(Denominator().correct(some, some, full)[0], full[0])


@pytest.mark.parametrize("family, corrector", [("llama", "delta"), ("gpt_oss", "denominator")])
def test_if_every_query_reads_all_it_is_the_model_itself(family, corrector):
    model, x = build(family), ids(2)
    x, mask = padded([x[0], x[1, :19]])
    for step in (f"{WINDOW} + {corrector}(every=1) @ prefill", f"attention/quest(block=8) 8 + {corrector}(every=1)"):
        with fewer.apply(model, step), torch.no_grad():
            ours, words = model(x, attention_mask=mask).logits, generate(model, x, attention_mask=mask)
        assert torch.allclose(ours[mask.bool()], model(x, attention_mask=mask).logits[mask.bool()], atol=1e-3)
        assert torch.equal(words, generate(model, x, attention_mask=mask))


@pytest.mark.parametrize("corrector", ["delta(every=4)", "denominator(every=4)"])
def test_corrected_lies_nearer_to_dense_and_a_batch_is_its_rows(corrector):
    model, rows = build("llama"), [ids(1, 60)[0], ids(1, 41, seed=1)[0]]
    x, mask = padded(rows)
    with torch.no_grad():
        plain, lost = model(x, attention_mask=mask).logits, []
        for step in (WINDOW, f"{WINDOW} + {corrector}"):
            with fewer.apply(model, step + " @ prefill"):
                ours = model(x, attention_mask=mask).logits
                lost.append((ours - plain)[mask.bool()].norm().item())
        assert lost[1] < 0.8 * lost[0]
        alone = []
        for row in rows:
            with fewer.apply(model, f"{WINDOW} + {corrector} @ prefill"):
                alone.append(model(row[None]).logits[0])
    assert torch.allclose(ours[0], alone[0], atol=1e-3) and torch.allclose(ours[1, 19:], alone[1], atol=1e-3)


def test_while_decoding_each_nth_step_reads_all():
    """The first step, and the fifth: the others read the newest 8 of 32 or more."""
    model, x = build("llama", layers=1), ids(1, 40)
    read = []
    with fewer.apply(model, "attention/quest(block=8) 8 + delta(every=4) @ decode") as applied:
        engine, whole = applied.attending, type(applied.attending)._read_pages

        def counted(store, a, now, table, *rest):
            read.append(table.shape[-1])
            return whole(store, a, now, table, *rest)

        engine._read_pages = counted
        generate(model, x, max_new_tokens=9, min_new_tokens=9)
    assert [n > 1 for n in read] == [False, True, False, False, False, False, True, False, False, False]


def test_a_bias_is_added_to_scores():
    for q, k, v, at, table, now, *rest in cases(torch.float32, "cpu"):
        bias = draw(*q.shape[:2], table.shape[-1] * k.shape[1])
        bias[bias < -1] = -torch.inf
        out, lse = attend_pages(q, k, v, at, table, now, *rest, bias)
        keep, shift = bias > -torch.inf, bias.clamp(min=-9)
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                names = table[b, h * table.shape[1] // q.shape[1]].long()
                place = torch.where(names[:, None] < 0, -1, at[names.clamp(min=0)]).flatten()
                keys, values = (x[names.clamp(min=0)].flatten(0, 1).double() for x in (k, v))
                s = rest[0] * q[b, h].double() @ keys.T
                s = rest[2] * torch.tanh(s / rest[2]) if rest[2] else s
                may = (place >= 0) & (place <= now[b][:, None]) & keep[b, h]
                may = may & (place > now[b][:, None] - rest[1]) if rest[1] else may
                w = (s + shift[b, h]).exp() * may
                torch.testing.assert_close(lse[b, h].double(), w.sum(-1).log(), atol=1e-4, rtol=1e-4)
                told = torch.where(w.sum(-1, keepdim=True) > 0, w @ values / w.sum(-1, keepdim=True), 0.0)
                torch.testing.assert_close(out[b, h].double(), told, atol=1e-4, rtol=1e-4)


def test_two_tables_meet_as_often_as_the_angle_says():
    q, k = draw(1, 1, 1, 6), draw(1, 1, 12, 6, seed=1) + 1.5 * draw(1, 1, 1, 6)
    m = MagicPig(bits=3, tables=8)
    drawn, weight = torch.zeros(12), torch.zeros(12)
    for seed in range(300):
        w = MagicPig(bits=3, tables=8, seed=seed).weigh(q, k)[0, 0]
        drawn += w > -torch.inf
        weight += w.exp()
    angle = torch.arccos((q[0, 0] @ k[0, 0].T)[0].double() / q.norm() / k[0, 0].norm(dim=-1))
    once = (1 - angle / math.pi) ** m.bits
    p = sum(math.comb(8, n) * once**n * (1 - once) ** (8 - n) for n in range(2, 9))
    assert ((drawn / 300 - p).abs() < 4 * (p * (1 - p) / 300).sqrt() + 1e-9).all()
    assert ((weight / 300 - 1).abs() < 4 * ((1 - p) / p / 300).sqrt()).all()  # each counts once on average


def test_more_tables_come_nearer_to_all_and_weights_to_more_than_a_mask():
    k, v = draw(64, 1, 16, seed=1) + 0.7, draw(64, 1, 16, seed=2)
    q, at = draw(1, 4, 1, 16, seed=3) + 0.7, torch.arange(64, dtype=torch.int32)[:, None]
    table, now = at.view(1, 1, 64), torch.full((1, 1), 63, dtype=torch.int32)
    true = attend_pages(q, k, v, at, table, now, 0.25)[0]

    def lost(tables, weighted):
        errors = []
        for seed in range(12):
            bias = weights_of(MagicPig(bits=4, tables=tables, seed=seed), q, k, at, table, now)
            assert (bias[..., -1] == 0).all()  # its own
            bias = bias if weighted else torch.where(bias > -torch.inf, 0.0, bias)
            errors.append((attend_pages(q, k, v, at, table, now, 0.25, bias=bias)[0] - true).square().mean())
        return torch.stack(errors).mean().item()

    few, more, most = (lost(n, True) for n in (5, 20, 100))
    assert most < more / 9 < few / 81
    assert few < 0.9 * lost(5, False) and more < 0.9 * lost(20, False)


def test_weights_act_while_decoding():
    """So many tables that all are drawn, at weight 1: the model itself; with few it is not."""
    model, x = build("llama"), ids(1, 30)
    plain = generate(model, x)
    for bits, same in ((1, True), (8, False)):
        with fewer.apply(model, f"attention/magic_pig(bits={bits}, tables=150) 100% @ decode"):
            assert torch.equal(generate(model, x), plain) or not same
    with fewer.apply(model, "attention/magic_pig(bits=8, tables=3) 16 @ decode"):
        assert not torch.equal(generate(model, x), plain)


def test_merging_is_attention_over_all():
    q, k, v = draw(2, 4, 3, 8), draw(2, 2, 40, 8, seed=1), draw(2, 2, 40, 8, seed=2)
    at = torch.arange(40, dtype=torch.int32).expand(2, 2, -1)
    now = torch.tensor([[2, 20, 39], [-1, 5, 30]], dtype=torch.int32)
    parts = [
        dense(q, k[:, :, s], v[:, :, s], at[:, :, s], now, 0.3) for s in (slice(0, 7), slice(7, 30), slice(30, 40))
    ]
    for x, y in zip(merged(parts), dense(q, k, v, at, now, 0.3), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "step, words",
    [
        (f"{WINDOW} + delta + denominator", "one method corrects what is read, not 2"),
        ("attention/delta 10%", "it goes with a pattern, write 'attention/quest 10% . attention/delta'"),
        (f"{WINDOW} + quest", "after '.' write a corrector; attention/quest is of kind pattern"),
    ],
)
def test_what_cannot_be_corrected_is_refused(step, words):
    with pytest.raises(ValueError, match=words), fewer.apply(build("llama"), step):
        pass


QUEST = "attention/quest(block=8) 8"


def decoded(model, x, mask, start, step=""):
    """Keys of each layer when the tokens from `start` on come one by one; and what is said last."""
    with fewer.apply(model, step or "attention/quest 100% @ decode") as applied, torch.no_grad():
        past = DynamicCache(config=model.config)
        cached(model, x[:, :start], past, attention_mask=mask[:, :start])
        for i in range(start, x.shape[1]):
            out = cached(model, x[:, i : i + 1], past, attention_mask=mask[:, : i + 1])
        return [m.store.read()[0] for m in applied.attending.made], out.logits


@pytest.mark.parametrize("family", ["gpt2"])
def test_after_a_refresh_keys_are_those_of_dense_attention(family):
    """16 tokens, refreshed before the 5th, 9th, 13th; each before them is as of dense attention, those after them not yet."""
    model, (x, mask) = build(family), padded([ids(1, 40)[0], ids(1, 31, seed=1)[0]])
    dense_keys, _ = decoded(model, x, mask, 24)
    sparse_keys, _ = decoded(model, x, mask, 24, f"{QUEST} @ decode")
    keys, _ = decoded(model, x, mask, 24, f"{QUEST} + rectified(every=4) @ decode")
    k, told, lost = keys[1], dense_keys[1], sparse_keys[1]
    assert torch.allclose(k[0, :, :36], told[0, :, :36], atol=1e-4)
    assert torch.allclose(k[1, :, :27], told[1, :, :27], atol=1e-4)  # 9 of padding before
    assert not torch.allclose(k[0, :, 36:], told[0, :, 36:], atol=1e-4)
    assert not torch.allclose(lost[0, :, :36], told[0, :, :36], atol=1e-4)


def test_a_refresh_goes_with_generate_beams_and_forgetting():
    model, (x, mask) = build("llama"), padded([ids()[0], ids(seed=1)[0, :17]])
    plain = {n: generate(model, x, attention_mask=mask, num_beams=n) for n in (1, 3)}
    for n, told in plain.items():
        with fewer.apply(model, "attention/quest(block=8) 100% + rectified(every=3) @ decode"):
            assert torch.equal(generate(model, x, attention_mask=mask, num_beams=n), told)
    with fewer.apply(model, f"{QUEST} + rectified(every=3) @ decode\ncache/key_norm 50%", every=4) as applied:
        generate(model, x, attention_mask=mask)
    assert all(c.kept < 0.7 for c in applied.changes) and "forward" not in vars(model)
    with (
        pytest.raises(ValueError, match="write attention/rectified alike in all steps"),
        fewer.apply(model, f"{QUEST} + rectified @ *.0.*\n{QUEST} + rectified(every=4) @ *.1.*"),
    ):
        pass
