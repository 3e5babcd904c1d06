"""What is read is learnt from what the frozen model reads: the truth, the loss, the file, and what comes of it."""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_attending import cached
from tiny import build
from transformers import DynamicCache, LlamaForCausalLM

import fewer
from fewer.attention import Held, Shape, divergence, pooled, read_parts
from fewer.attention.lightning_indexer import LightningIndexer
from fewer.attention.seer import Seer
from fewer.core.budget import budget
from fewer.core.spell import method_of
from fewer.models.attention import attended, attentions
from fewer.models.cache_layer import Asked, Engine
from fewer.recipe.steps import Step
from fewer.train import Distilled, Flat, Training, Tuned, learner_of, next_token
from fewer.train.distilled import shapes_of, true_mass

SEER = Seer(gate=8, rows=4, block=4)
INDEXER = LightningIndexer(heads=4, dim=8, rope=4)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def words(rows=2, length=32, seed=0):
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(seed))


class Apart(Engine):
    def memory(self, module):
        raise AssertionError("no cache is wanted here")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "gpt2"])
def test_the_truth_is_the_models_own_attention(family):
    """Window, cap, sinks and groups: against what transformers' eager attention says of itself."""
    model, ids, seen = build(family, attention="eager"), words(1, 14), []

    class Listening(Apart):
        def attend(self, module, asked, memory):
            seen.append(true_mass(asked, slice(0, 14)))
            parts = [true_mass(asked, slice(i, i + 5 if i < 10 else 14)) for i in (0, 5, 10)]
            for i, part in zip((0, 5, 10), parts, strict=True):
                assert torch.allclose(part, seen[-1][:, :, i : i + part.shape[2], : part.shape[3]], atol=1e-6)
            v = asked.v.repeat_interleave(asked.q.shape[1] // asked.k.shape[1], 1)
            return seen[-1] @ v

    with torch.no_grad():
        own = model(ids, output_attentions=True, use_cache=False)
        with attended(model, Listening()):
            ours = model(ids, use_cache=False)
    assert torch.allclose(own.logits, ours.logits, atol=1e-4)
    for a, b in zip(own.attentions, seen, strict=True):
        assert torch.allclose(a[..., :14], b, atol=1e-5)


def test_pooled_maps_in_parts_are_those_of_the_whole():
    """Block by block in loops; and from chunks of queries that see as far as their last."""
    asked = Asked(draw(2, 4, 22, 8), draw(2, 2, 22, 8, seed=1), draw(2, 2, 22, 8, seed=2), 8**-0.5)
    whole = true_mass(asked, slice(0, 22))
    found = pooled(whole, SEER)
    for row in range(6):
        strip = whole[:, :, row * 4 : row * 4 + 4]
        high = torch.stack([strip[..., b * 4 : b * 4 + 4].amax((-1, -2)) for b in range(6)], -1)
        assert torch.allclose(found[:, :, row], high / high.sum(-1, keepdim=True))
    for first in (0, 8, 16):
        part = pooled(true_mass(asked, slice(first, min(first + 8, 22))), SEER)
        assert torch.allclose(part, found[:, :, first // 4 : first // 4 + 2, : part.shape[-1]])


def test_divergence_is_its_formula():
    q, k, truth = draw(1, 2, 8, 4), draw(1, 1, 8, 4, seed=1), draw(1, 2, 2, 2, seed=2).exp()
    m = Seer(rows=4, block=4)
    truth[:, :, 0, 1] = 0
    truth = truth / truth.sum(-1, keepdim=True)
    score, total = m.score(q, m.digest(k)), 0.0
    for h in range(2):
        for row in range(2):
            z = [math.exp(score[0, h, row, b]) for b in range(row + 1)]
            total += sum(
                truth[0, h, row, b].item() * math.log(truth[0, h, row, b].item() / (z[b] / sum(z)))
                for b in range(row + 1)
            )
    assert divergence(m, q, k, truth).item() == pytest.approx(total / 4, rel=1e-5)


def test_an_indexer_scores_as_its_formula_in_loops():
    shape = Shape(4, 2, 8, 12)
    m = LightningIndexer(heads=3, dim=6, rope=4)
    parts = {n: t.double() for n, t in m.begin(shape, torch.Generator().manual_seed(0)).items()}
    parts["indexer.k_norm.bias"] += 0.3
    m = LightningIndexer(heads=3, dim=6, rope=4, parts=Held(parts))
    x, now = draw(1, 5, 12), torch.arange(5)[None]
    seen_q, seen_k = m.sees(draw(1, 4, 5, 8), draw(1, 2, 5, 8), x, now)
    found = m.score(seen_q, m.digest(seen_k))

    def turned(vector, place):
        out = vector.clone()
        for c in range(2):
            angle = place * 10000.0 ** (-c / 2)
            out[c] = vector[c] * math.cos(angle) - vector[c + 2] * math.sin(angle)
            out[c + 2] = vector[c + 2] * math.cos(angle) + vector[c] * math.sin(angle)
        return out

    for t in range(5):
        for s in range(5):
            key = parts["indexer.wk.weight"] @ x[0, s]
            key = (key - key.mean()) / (key.var(unbiased=False) + 1e-6).sqrt() + 0.3
            total = 0.0
            for j in range(3):
                q = parts["indexer.wq_b.weight"][j * 6 : j * 6 + 6] @ x[0, t]
                w = (parts["indexer.weights_proj.weight"][j] @ x[0, t]).item() / math.sqrt(3)
                total += w * max(0.0, (turned(q, t) @ turned(key, s)).item() / math.sqrt(6))
            assert found[0, 0, t, s].item() == pytest.approx(total, abs=1e-5)


def test_an_indexer_chooses_as_transformers_does():
    """The weights of DeepSeek's own module, by their names; its latent is the hidden state here."""
    modeling = pytest.importorskip("transformers.models.deepseek_v32.modeling_deepseek_v32")
    from types import SimpleNamespace

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 24,
        "q_lora_rank": 24,
        "index_n_heads": 4,
        "index_head_dim": 8,
        "index_topk": 5,
        "qk_rope_head_dim": 4,
    }
    theirs = modeling.DeepseekV32Indexer(SimpleNamespace(**sizes), 0)
    m = LightningIndexer(4, 8, 4, parts=Held({f"indexer.{n}": t.detach() for n, t in theirs.named_parameters()}))
    x, n = torch.randn(2, 20, 24), 20
    angle = torch.arange(n)[:, None] * 10000.0 ** (-torch.arange(2) / 2)
    turn = torch.cat([angle, angle], -1)[None].expand(2, -1, -1)
    causal = torch.ones(n, n, dtype=torch.bool).tril()[None].expand(2, -1, -1)
    index = theirs(x, x, (turn.cos(), turn.sin()), causal, None)
    q, k = m.sees(torch.zeros(2, 4, n, 8), torch.zeros(2, 2, n, 8), x, torch.arange(n).expand(2, -1))
    keep = m.score(q, k_digest := m.digest(k))[:, 0]
    assert k_digest[0] is k
    best = keep.masked_fill(~causal, -torch.inf).topk(5, -1).indices
    for b in range(2):
        for t in range(5, n):
            assert set(index[b, t].tolist()) == set(best[b, t].tolist())


@pytest.mark.parametrize("m", [SEER, INDEXER])
def test_learning_goes_on_to_the_bit_and_lowers_the_loss(m, tmp_path):
    model, batches = build("llama"), [words(2, 32, seed) for seed in range(3)]
    before = {n: p.clone() for n, p in model.named_parameters()}
    teacher = learner_of(type(m))
    assert teacher is Distilled
    how = Training(12, Flat(2e-2), save_after=0.0)
    learnt = teacher(model, tmp_path / "whole.safetensors", how=how).fit(m, budget("25%"), batches)
    rows = [json.loads(line) for line in (tmp_path / "whole.safetensors.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and rows[-1]["loss"] < rows[2]["loss"] < rows[0]["loss"] + 0.5

    class Killed(Exception):
        pass

    def stop(row):
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        teacher(model, tmp_path / "parts.safetensors", how=how, told=stop).fit(m, budget("25%"), batches)
    assert not (tmp_path / "parts.safetensors").exists()
    teacher(model, tmp_path / "parts.safetensors", how=how).fit(m, budget("25%"), batches)
    whole, again = (read_parts(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert whole == again and list(whole) == [name for name, _ in attentions(model)]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert learnt.at(next(iter(whole))).parts == whole[next(iter(whole))]
    with pytest.raises(ValueError, match="holds nothing of h.9"):
        learnt.at("h.9")


def test_a_gate_learns_to_see_what_means_hide():
    """In some blocks one key is large and another its opposite: their mean says nothing, their highest does."""

    def planted(seed):
        q, k = draw(4, 2, 64, 8, seed=seed).float(), draw(4, 1, 64, 8, seed=seed + 50).float()
        q[..., 0] = 3
        blocks = k.unflatten(2, (16, 4))
        spiked = draw(4, 1, 16, seed=seed + 99) > 0.5
        for key, sign in ((1, 1), (2, -1)):
            blocks[..., key, 0] = torch.where(spiked, 4.0 * sign, blocks[..., key, 0])
        k = blocks.flatten(2, 3)
        return q, k, true_mass(Asked(q, k, k, 8**-0.5), slice(0, 64))

    def kept(m, seed=77):
        q, k, mass = planted(seed)
        keep = m.attend(q, k, budget("12")).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return (mass * keep).sum(-1).mean().item()

    parts = SEER.begin(Shape(2, 1, 8), torch.Generator().manual_seed(0))
    learnt = replace(SEER, parts=Held({name: t.requires_grad_() for name, t in parts.items()}))
    assert abs(kept(learnt) - kept(SEER)) < 1e-6, "it begins as the means"
    moves = torch.optim.Adam(learnt.parts.values(), 4e-2)
    for step in range(30):
        q, k, mass = planted(step)
        moves.zero_grad()
        divergence(learnt, q, k, pooled(mass, learnt)).backward()
        moves.step()
    assert kept(learnt) > kept(SEER) + 0.05


def test_a_recipe_names_the_file(tmp_path):
    model, file = build("llama"), tmp_path / "gate.safetensors"
    Distilled(model, file, "*.0.*", how=Training(2)).fit(SEER, budget("25%"), [words()])
    step = f"attention/seer(gate=8, rows=4, block=4, file={file}) 8 @ *.0.*"
    with fewer.apply(model, step) as applied, torch.no_grad():
        model(words(), use_cache=False)
        (own,) = applied.attending.own.made.values()
        assert own.parts == read_parts(file)["model.layers.0.self_attn"]
    with (
        pytest.raises(FileNotFoundError, match="nothing learnt at"),
        fewer.apply(model, step.replace("gate.saf", "no.saf")),
    ):
        pass
    with (
        pytest.raises(ValueError, match="holds nothing of model.layers.1"),
        fewer.apply(model, step.partition(" @")[0]),
    ):
        pass


def test_shapes_are_those_of_the_modules():
    model = build("llama")
    assert list(shapes_of(model, attentions(model), words()).values()) == [Shape(4, 2, 8, 32, 0), Shape(4, 2, 8, 32, 1)]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """A model and a step that reads by an indexer; nothing needs to have been learnt for what is asked here."""
    model, file = build("llama"), tmp_path_factory.mktemp("indexed") / "indexer.safetensors"
    Distilled(model, file, how=Training(1)).fit(INDEXER, budget("6"), [words()])
    return model, f"attention/lightning_indexer(heads=4, dim=8, rope=4, file={file})"


def test_an_indexer_reads_the_same_at_once_and_word_by_word(indexed):
    model, said = indexed
    x = words(2, 24, seed=5)
    with torch.no_grad(), fewer.apply(model, f"{said} 6"):
        whole = model(x, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        parts = [cached(model, part, cache).logits for part in (x[:, :3], x[:, 3:20], *x[:, 20:].split(1, 1))]
        cache.crop(-4)
        parts.append(cached(model, x[:, 20:21], cache).logits)
    assert torch.allclose(torch.cat(parts[:-1], 1), whole, atol=1e-4)
    assert torch.allclose(parts[-1], whole[:, 20:21], atol=1e-4)
    with torch.no_grad():
        dense = model(x).logits
        assert not torch.allclose(dense, whole, atol=1e-2)
        with fewer.apply(model, f"{said} 100%"):
            assert torch.allclose(model(x, use_cache=False).logits, dense, atol=1e-4)


def test_an_indexer_does_not_hear_padding_and_works_where_heads_forget(indexed):
    model, said = indexed
    rows = [words(1, 20, seed=6)[0], words(1, 13, seed=7)[0]]
    x = torch.stack([rows[0], torch.cat([rows[1].new_zeros(7), rows[1]])])
    mask = torch.stack([torch.ones(20), torch.arange(20) >= 7]).long()
    for more in ("", "\ncache/key_norm 10"):
        with fewer.apply(model, f"{said} 6{more}", every=4):
            options = {"max_new_tokens": 6, "do_sample": False}
            both = model.generate(x, attention_mask=mask, **options)[:, 20:]
            for row, found in zip(rows, both, strict=True):
                alone = model.generate(row[None], attention_mask=torch.ones(1, len(row)).long(), **options)[
                    0, len(row) :
                ]
                assert torch.equal(found[: len(alone)], alone)


def test_an_indexer_of_another_size_is_refused(indexed):
    model, said = indexed
    with (
        pytest.raises(ValueError, match="does not read 32 numbers for 5 heads"),
        fewer.apply(model, f"{said.replace('heads=4', 'heads=5')} 6"),
        torch.no_grad(),
    ):
        model(words(), use_cache=False)


@pytest.mark.parametrize("weights", [False, True])
def test_parts_and_weights_learn_through_the_models_loss(weights, tmp_path):
    """The file gives the loss that was learnt; a killed run goes on to the bit; the model itself stays as it is."""
    model, batches = build("llama"), [words(2, 16, seed) for seed in range(2)]
    before = {n: p.clone() for n, p in model.named_parameters()}
    m, how, out = method_of("attention/adaptive_entmax"), Training(6, Flat(5e-2), save_after=0.0), tmp_path / "learnt"

    class Killed(Exception):
        pass

    def stop(row):
        if row["step"] == 3:
            raise Killed

    found = []
    for place, told in ((out, None), (tmp_path / "again", stop), (tmp_path / "again", None)):
        teacher = Tuned(model, place, fewer.apply, how=how, weights=weights, told=told)
        if told:
            with pytest.raises(Killed):
                teacher.fit(m, budget("100%"), batches)
        else:
            found.append(teacher.fit(m, budget("100%"), batches))
    assert read_parts(found[0].file) == read_parts(found[1].file)
    rows = [json.loads(line) for line in (tmp_path / "learnt.jsonl").read_text().splitlines()]
    assert rows[4]["loss"] < rows[0]["loss"] and rows[5]["loss"] < rows[1]["loss"]  # of one batch each
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    if weights:
        model = LlamaForCausalLM.from_pretrained(out)
        assert not torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])
    losses = {}
    for who in (m, found[0]):
        with fewer.apply(model, Step(who, budget("100%"))), torch.no_grad():
            losses[who] = sum(next_token(model, batch).item() for batch in batches) / 2
    assert losses[found[0]] < losses[m]
    if not weights:
        with pytest.raises(ValueError, match="attention/moba has no parts"):
            Tuned(model, out, fewer.apply).fit(method_of("attention/moba"), budget("8"), batches)


def test_it_is_a_command(tmp_path, capsys):
    from fewer.cli import main

    out = tmp_path / "gate.safetensors"
    few = ["--steps", "2", "--batch", "1", "--windows", "2", "--length", "32", "--where", "*.3.*"]
    assert main(["train", "attention/seer(rows=8, block=8)", "25%", "-o", str(out), *few]) == 0
    assert f'as "attention/seer(rows=8, block=8, file={str(out)!r}) 25% @ *.3.*"' in capsys.readouterr().err
    assert (
        list(read_parts(out)) == ["model.layers.3.self_attn"]
        and len(out.with_suffix(".safetensors.jsonl").read_text().splitlines()) == 2
    )
    assert main(["train", "attention/quest", "25%", "-o", str(tmp_path / "x.safetensors"), *few]) == 2
    assert "attention/quest has nothing to learn" in capsys.readouterr().err
    assert main(["train", "attention/seer", "25%", "-o", str(tmp_path / "x"), *few]) == 2
