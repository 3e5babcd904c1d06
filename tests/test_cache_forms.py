"""How a cache is stored: what is read out of a form, in a running model too, and the bytes it takes."""

from functools import cache

import pytest
import torch
from tiny import build

import fewer
from fewer.cache import Form
from fewer.cache._store import Store
from fewer.cache.kivi import Kivi
from fewer.cache.mustafar import Mustafar
from fewer.cache.sparse_codes import SparseCodes
from fewer.cache.split import Split
from fewer.core import method
from fewer.core.paper import AT_RANDOM
from fewer.recipe.steps import recipe

EXACT = ["mustafar(keep='100%', recent=3)", "offload(recent=0)", "split(sinks=5, recent=4)", "kivi(recent=64)"]
READ = ["", "\nattention/quest(block=8) 100% @ decode", "\nattention/heavy_channels 16 @ decode"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(model, **options):
    x = torch.randint(3, 99, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(x)
    mask[1, :9] = 0
    return model.generate(x, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options)


@cache
def without(read, **options):
    with fewer.apply(build("llama"), "cache/streaming_llm 100%" + read) as applied:
        return padded(applied.model, **options)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(5, 32, 16), (3, 64, 40)])
def test_kivi_is_off_by_half_a_step_at_most(bits, shape):
    """And its steps are those of the formula: the range of 32 tokens of a channel, or 32 channels of a token, over 2^bits - 1."""
    m, k, v = Kivi(bits), 3 * draw(*shape) + 20 * draw(shape[-1]), draw(*shape, seed=1).exp()
    read = m.read(m.write(k, v), (shape[-1], shape[-1]))
    channels = v.unflatten(2, (-1, 32)) if shape[2] % 32 == 0 else v.unflatten(2, (1, -1))
    for x, y, along in ((k.unflatten(1, (-1, 32)), read[0], 2), (channels, read[1], 3)):
        step = (x.amax(along, keepdim=True) - x.amin(along, keepdim=True)).double() / (2**bits - 1)
        loose = (
            x.abs().amax(along, keepdim=True) * 2**-10 / (2**bits - 1) + step * 2**-10
        )  # of float16, rounded outwards
        off = (y.view_as(x).double() - x).abs()
        assert (off <= (step + 2 * loose) / 2 + 1e-5).all()
        assert off.max() > 0.2 * step.min()  # it is no finer grid either
    again = m.read(m.write(*read), (shape[-1], shape[-1]))
    assert all((a - b).abs().max() < 0.02 * (b.max() - b.min()) for a, b in zip(again, read, strict=True))


def test_kivi_takes_the_bits_it_says():
    k = draw(4, 32, 64).bfloat16()
    for bits in (2, 4, 8):
        taken = sum(t.numel() * t.element_size() for t in Kivi(bits).write(k, k))
        assert taken == 2 * k.numel() * (bits + 1) / 8  # 32 bits of low and step for each 32 numbers


def test_mustafar_reads_the_largest_and_takes_their_bytes():
    m, k, v = Mustafar("30%"), draw(2, 16, 40), draw(2, 16, 24, seed=1)
    stored = m.write(k, v)
    for x, y, kept in zip((k, v), m.read(stored, (40, 24)), (12, 7), strict=True):
        for row, read in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True):
            best = sorted(range(len(row)), key=lambda i: -abs(row[i].item()))[:kept]
            told = torch.zeros_like(row)
            told[best] = row[best]
            assert torch.equal(read, told)
    assert sum(t.numel() * t.element_size() for t in stored) == 32 * ((12 + 7) * 4 + 5 + 3)
    with pytest.raises(ValueError, match="not '2:4'"):
        Mustafar("2:4")


def test_codes_spell_what_their_dictionary_made():
    """Vectors of two atoms each: a dictionary is found of the vectors alone, and more atoms never err more."""
    make = torch.Generator().manual_seed(0)
    book = torch.nn.functional.normalize(draw(12, 16), dim=-1)
    which = torch.rand(10 * 16, 12, generator=make).argsort(-1)[:, :2]
    x = (book[which] * (1 + torch.rand(len(which), 2, 1, generator=make))).sum(1).view(10, 16, 16)
    given = SparseCodes(atoms=2).write(x, x, (book, book))
    read = SparseCodes(atoms=2).read(given, (16, 16), (book, book))[0]
    assert (read - x).norm() < 0.02 * x.norm()
    lost = []
    for atoms in (1, 2, 6):
        m = SparseCodes(atoms, size=24)
        learnt = m.learn(x, x)
        lost.append(((m.read(m.write(x, x, learnt), (16, 16), learnt)[0] - x).norm() / x.norm()).item())
    assert lost == sorted(lost, reverse=True) and lost[1] < 0.4 and lost[-1] < 0.1
    stored = SparseCodes(atoms=8).write(x, x, (book, book))
    assert sum(t.numel() * t.element_size() for t in stored) == 2 * 160 * (8 * 2 + 2)


@pytest.mark.parametrize(
    "form, read", [*((form, READ[i % 2]) for i, form in enumerate(EXACT)), (EXACT[0], READ[1]), (EXACT[2], READ[2])]
)
def test_a_form_that_loses_nothing_changes_nothing(form, read):
    with fewer.apply(build("llama"), f"cache/streaming_llm 100% + {form}{read}") as applied:
        assert torch.equal(padded(applied.model), without(read))


@pytest.mark.parametrize("form", ["kivi(bits=4, recent=5)", "mustafar(recent=5)", "split(sinks=3, recent=9)"])
def test_a_batch_is_its_rows(form):
    model = build("qwen3")
    x = torch.randint(3, 99, (2, 45), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(x)
    mask[1, :9] = 0
    with fewer.apply(model, f"cache/key_norm 80% + {form}", every=4):
        both = model.generate(x, attention_mask=mask, max_new_tokens=6, do_sample=False)
        for row, start in ((0, 0), (1, 9)):
            alone = model.generate(x[row : row + 1, start:], max_new_tokens=6, do_sample=False)
            assert torch.equal(both[row, 45 : 45 + alone.shape[1] - 45 + start], alone[0, 45 - start :])


def test_beams_crops_and_turns():
    """Pages are copied as they are stored; what is cropped away and said again is what there would have been."""
    from test_attending import DynamicCache, cached

    model = build("llama")
    plain = without("", num_beams=3)
    with fewer.apply(model, "cache/streaming_llm 100% + offload(recent=0)"), torch.no_grad():
        assert torch.equal(padded(model, num_beams=3), plain)
        x = torch.randint(3, 99, (1, 40), generator=torch.Generator().manual_seed(1))
        past = DynamicCache(config=model.config)
        cached(model, x[:, :20], past)
        cached(model, x[:, 20:33], past)
        past.crop(-5)
        ours = cached(model, x[:, 28:], past).logits
    with torch.no_grad():
        assert torch.allclose(ours, model(x).logits[:, 28:], atol=1e-3)


@method(AT_RANDOM)
class Watched(Form):
    """Count the pages that are read."""

    pages = []

    def write(self, k, v, learnt=()):
        return k, v

    def read(self, stored, dims, learnt=()):
        self.pages.append(len(stored[0]))
        return stored


def filled(form, n=100, heads=2, rows=2):
    store = Store(16, form)
    store.append(draw(rows, heads, n, 8), draw(rows, heads, n, 8, seed=1), torch.arange(n).expand(rows, -1))
    return store


def test_only_what_was_chosen_is_read_out():
    form = Watched()
    store = filled(form)
    k, v, at = store.read()
    store.settle()
    assert len(store.pool.k) == 4 and store.pool.written == 24  # the last page of each head is not full
    again = store.read()
    assert torch.equal(again[0], k) and torch.equal(again[1], v) and torch.equal(again[2], at)
    form.pages.clear()
    table = store.table[..., [1, 6]]
    (reading,) = store.readings(table)
    assert form.pages == [4] and len(reading.k) == 8
    named = reading.k[reading.table.long()]
    assert torch.equal(named[:, :, 0], k[:, :, 16:32]) and torch.equal(named[:, :, 1, :4], k[:, :, 96:100])
    assert torch.equal(store.block(torch.full((2, 2), 3), 8), k[:, :, 24:32])


def test_what_stays_where_it_is_is_read_there():
    store = filled(Split(sinks=16, recent=20))
    store.settle()
    near, far = store.readings(store.table)
    assert (near.table >= 0).sum(-1).unique().tolist() == [3] and (far.table >= 0).sum(-1).unique().tolist() == [4]
    assert sorted(near.at[near.at >= 0].unique().tolist()) == [*range(16), *range(80, 100)]


def test_pages_are_freed_as_they_are_written():
    """A long prompt leaves no more in full than what is new; the bytes are those of the tensors."""
    store = filled(Kivi(4, recent=32), 16 * 64, rows=1)
    whole = store.bytes
    store.settle()
    assert len(store.pool.k) == 2 * 2
    store.append(*(draw(1, 2, 16, n) for n in (8, 8)), torch.arange(1024, 1040)[None])
    store.settle()
    assert len(store.pool.k) <= 2 * 3 and store.bytes < 0.7 * whole
    kept = store.read()[2] % 2 == 0
    store.keep(kept)
    store.settle()
    assert store.length.tolist() == [[520, 520]] and len(store.pool.k) <= 2 * 4


def test_forms_in_steps():
    text = "cache/snap_kv 25% by ada + d2o + kivi(bits=4, recent=32)"
    assert str(recipe(text)[0]) == text and isinstance(recipe(text)[0].correctors[1], Form)
    model = build("llama")
    with fewer.apply(model, "cache/key_norm 50% + kivi(bits=4, recent=0)", every=4) as applied:
        padded(model)
    assert {c.layout for c in applied.changes} == {"pages of kivi"}
    for wrong, words in [
        ("cache/key_norm 50% + kivi + offload", "stored in one form, not in cache/kivi and cache/offload"),
        (
            "cache/kivi 50%",
            "cache/kivi is a kind of form: it goes with an evictor, write 'cache/snap_kv 25% . cache/kivi'",
        ),
        ("cache/key_norm 50% + kivi(bits=3)", "3 bits do not divide a byte"),
    ]:
        with pytest.raises(ValueError, match=words), fewer.apply(model, wrong):
            pass
