"""Rules that were learnt, and what is noted of tokens when they come: by formula, and in a running model."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_attending import generate, ids, padded
from test_cache_methods import attention, some
from tiny import build

import fewer
from fewer.cache import Past, Rope
from fewer.cache.cam import Cam
from fewer.cache.dms import Dms
from fewer.cache.sim_layer import SimLayer
from fewer.cache.un_comp import UnComp, truncated_entropy


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scorers(path, maps):
    """A file of two layers, of maps 32 -> 2 or 32 -> 5 -> 2."""
    tensors = {}
    for layer in range(2):
        for i, (name, wide, out) in enumerate(maps):
            tensors[f"layers.{layer}.{name}weight"] = draw(out, wide, seed=7 * layer + i)
            tensors[f"layers.{layer}.{name}bias"] = draw(out, seed=50 + 7 * layer + i)
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("maps", [[("", 32, 2)], [("0.", 32, 5), ("2.", 5, 2)]])
def test_kv_zap_keeps_what_its_file_scores_highest(tmp_path, maps):
    """Scores by hand from what the attention modules hear; half of 8 are the newest."""
    model, x = build("llama"), torch.randperm(90, generator=torch.Generator().manual_seed(0))[None, :24] + 3  # no twins
    there = scorers(tmp_path / "zap.safetensors", maps)
    heard = {}
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.q_proj.register_forward_pre_hook(lambda m, a, i=i: heard.setdefault(i, a[0]))
    with fewer.apply(model, f"cache/kv_zap(file='{tmp_path}/zap.safetensors') 8", every=99) as applied:
        generate(model, x, max_new_tokens=1)
    for i, m in enumerate(applied.attending.made):
        h = heard[i][0].double()
        for n, (name, *_) in enumerate(maps):
            h = torch.nn.functional.gelu(h) if n else h
            h = h @ there[f"layers.{i}.{name}weight"].double().T + there[f"layers.{i}.{name}bias"].double()
        for head in range(2):
            best = h[:20, head].topk(4).indices
            told = sorted([*best.tolist(), 20, 21, 22, 23])
            assert m.store.read()[2][0, head].tolist() == told


def test_notes_come_with_padding_while_decoding_and_when_rows_are_exchanged(tmp_path):
    scorers(tmp_path / "zap.safetensors", [("", 32, 2)])
    model, rows = build("llama"), [ids()[0], ids(seed=1)[0, :17]]
    x, mask = padded(rows)
    with fewer.apply(model, f"cache/kv_zap(file='{tmp_path}/zap.safetensors') 9", every=4):
        both = generate(model, x, attention_mask=mask)[:, x.shape[1] :]
        for row, words in zip(rows, both, strict=True):
            alone = generate(model, row[None])[0, len(row) :]
            assert torch.equal(words[: len(alone)], alone)
        generate(model, x, attention_mask=mask, num_beams=2)


def test_a_file_that_does_not_fit_is_named(tmp_path):
    model, file = build("llama"), tmp_path / "zap.safetensors"
    with pytest.raises(ValueError, match="has learnt nothing: name its file"), fewer.apply(model, "cache/kv_zap 8"):
        pass
    save_file({"layers.0.weight": torch.zeros(2, 9), "layers.0.bias": torch.zeros(2)}, file)
    with (
        pytest.raises(ValueError, match="1 layers of maps .*asked for layer 0 of width 32"),
        fewer.apply(model, f"cache/kv_zap(file='{file}') 8"),
    ):
        generate(model, ids())
    save_file({"score": torch.zeros(2, 9)}, file.with_name("other.safetensors"))
    with (
        pytest.raises(ValueError, match="are wanted; there is score"),
        fewer.apply(model, f"cache/kv_zap(file='{tmp_path}/other.safetensors') 8"),
    ):
        generate(model, ids())


def test_dms_reads_the_borrowed_number_before_it_was_turned():
    rope, plain = Rope(torch.tensor([0.7, 0.01])), draw(1, 4, 9, 4)
    at = torch.arange(9)
    past = replace(Past.of(draw(1, 2, 9, 4), q=rope.turn(plain, at)), rope=rope)
    asks = plain[:, ::2, :, -1]
    torch.testing.assert_close(Dms().note(past), 5 - 100 * asks, atol=1e-3, rtol=1e-4)
    left = plain.clone()
    left[:, ::2, :, -1] = 0
    torch.testing.assert_close(Dms().clean(past), rope.turn(left, at), atol=1e-5, rtol=1e-5)


def test_attention_does_not_see_the_borrowed_number():
    """A model whose first query of each group says nothing there gives what it gave; one that speaks, is heard by DMS alone."""
    model, x = build("llama", layers=1), ids(1, 20)
    w = model.model.layers[0].self_attn.q_proj.weight.data
    loud = w[[7, 23]].clone()  # heads of 8: the last row of heads 0 and 2
    w[[7, 23]] = 0
    with torch.no_grad():
        plain = model(x).logits
        w[[7, 23]] = loud
        assert not torch.allclose(model(x).logits, plain, atol=1e-4)
        with fewer.apply(model, "cache/dms 100%"):
            assert torch.allclose(model(x, use_cache=True).logits, plain, atol=1e-4)


def test_lazy_layers_by_hand():
    past = some(window=8)
    ends = attention(past)[:, :, -1].mean(1)
    told = (ends[:, :2].sum() + ends[:, -5:].sum()).item()
    lazy = SimLayer(sinks=2, recent=5).fit([past, past])
    assert lazy.shares == pytest.approx((told, told), abs=1e-6)
    flat = torch.zeros(1, 2, 100)
    given = [
        SimLayer((0.95, 0.2, 0.3), sinks=2, recent=8).allocate(flat, torch.full((1, 2), 40), i, 3)[0, 0].item()
        for i in range(3)
    ]
    assert given == [10, 55, 55]
    with pytest.raises(ValueError, match="shares of 2 layers; the model has 3"):
        SimLayer((0.1, 0.2)).allocate(flat, torch.full((1, 2), 40), 0, 3)


def test_entropies_by_hand():
    x = draw(50, 6).double() * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1, 0.1])
    values = torch.linalg.eigvals(torch.cov(x.T)).real.sort(descending=True).values
    share = values / values.sum()
    for top in (2, 6):
        told = -(share[:top] * share[:top].log()).sum()
        torch.testing.assert_close(truncated_entropy(x.float(), top).double(), told, atol=1e-5, rtol=1e-5)
    flat = some(window=40)
    rank_one = replace(flat, q=flat.q[:, :, :1] * torch.linspace(-1, 1, 40)[:, None])
    un = UnComp(groups=2, least=0.5).fit([flat, rank_one])
    assert min(un.entropy[0]) > 1 and max(un.entropy[1]) < 0.7  # two heads, a direction each
    given = [un.allocate(torch.zeros(1, 2, 90), torch.full((1, 2), 30), i, 2)[0].tolist() for i in range(2)]
    assert given == [[40, 40], [20, 20]]


def test_merging_of_values_by_a_loop():
    past, keep = some(), torch.rand(1, 2, 40, generator=torch.Generator().manual_seed(2)) < 0.5
    m = Cam(share=4)
    after, luck = m.correct(past, keep), m._luck(past)
    read = attention(past).view(1, 2, 2, 8, 40).mean((2, 3))
    for h in range(2):
        told, merged = past.v[0, h].double().clone(), 0
        for i in (~keep[0, h]).nonzero()[:, 0].tolist():
            behind = [j for j in range(i + 1, 40) if keep[0, h, j]][:4]
            if behind and luck[0, h, i] < read[0, h, i] / read[0, h, behind].mean():
                told[behind] += past.v[0, h, i].double() / len(behind)
                merged += 1
        assert 3 < merged < (~keep[0, h]).sum()
        torch.testing.assert_close(after.v[0, h][keep[0, h]].double(), told[keep[0, h]], atol=1e-5, rtol=1e-5)
    assert after.k is past.k


@pytest.mark.parametrize("chunk", [100, 7])
def test_kv_zip_keeps_what_is_read_when_the_text_is_said_again(chunk):
    """By plain runs of the model over the text, the asking tokens, and each part: the greatest attention of these."""
    model, x = (
        build("llama", layers=1, attention="eager"),
        torch.randperm(90, generator=torch.Generator().manual_seed(0))[None, :20] + 3,
    )
    most = torch.zeros(4, 20)
    for first in range(0, 20, chunk):
        part = torch.cat([torch.tensor([[5, 7]]), x[:, max(0, first - 8) : first + chunk]], 1)
        with torch.no_grad():
            read = model(torch.cat([x, part], 1), output_attentions=True).attentions[0][0]
        most = most.maximum(read[:, 20:, :20].amax(1))
    told = most.view(2, 2, 20).amax(1)
    told[:, :2] = 9.0  # sinks
    with fewer.apply(model, f"cache/kv_zip(sinks=2, chunk={chunk}, prompt=(5, 7)) 6") as applied:
        out = generate(model, x, max_new_tokens=1)
    (m,) = applied.attending.made
    assert out.shape == (1, 21) and m.seen == 20
    for head in range(2):
        assert m.store.read()[2][0, head].tolist() == sorted(told[head].topk(6).indices.tolist())


def test_saying_it_again_leaves_the_answer_and_rows_alone():
    model, rows = build("llama"), [ids(1, 30)[0], ids(seed=1)[0, :21]]
    x, mask = padded(rows)
    with fewer.apply(model, "cache/kv_zip(chunk=9, prompt=(4,)) 100%"):
        ours = generate(model, x, attention_mask=mask)
    assert torch.equal(ours, generate(model, x, attention_mask=mask))
    with fewer.apply(model, "cache/kv_zip(chunk=90) 9", every=4):
        both = generate(model, x, attention_mask=mask)[:, x.shape[1] :]
        alone = generate(model, rows[0][None])[0, 30:]
        assert torch.equal(both[0, : len(alone)], alone)


def test_what_is_said_again_goes_with_a_meter():
    from fewer.recipe.meter import Meter

    model, x = build("llama"), ids(1, 30)
    steps = "cache/kv_zip(chunk=16) 50%\nattention/quest(block=8) 16 + rectified(every=3) @ decode"
    with fewer.apply(model, steps) as plain:
        told = generate(model, x)
    with fewer.apply(model, steps, meter=Meter(every=4)) as applied:
        assert torch.equal(generate(model, x), told)
    assert len(plain.changes) == len(applied.changes) == 2
