"""Codebook features: sums of codes and nothing else, learnt with the model; a language of a finite automaton keeps its states apart."""

import contextlib
import itertools
import math

import pytest
import torch
from tiny import FAMILIES, build
from transformers import AutoConfig, AutoModelForCausalLM

from fewer.core import budget
from fewer.dictionaries import load, save, spliced
from fewer.dictionaries.steer import instead
from fewer.features.codebook import Codebook
from fewer.models import find_taps, tapped
from fewer.train import Cosine, Flat, Pupil, Rows, Training, Windows, learn, learn_codebooks, next_token, train
from fewer.train.codebooks import far_apart, nearest, of_book

IDS = torch.randint(3, 99, (24, 8), generator=torch.Generator().manual_seed(0))
SITES = ("layers.0.mlp", "layers.1")
TOKENS, STATES, CODES = 6, 12, 64  # a state: the last token, and whether that before was odd; two tokens may follow it


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def with_codes(model, books, edits=None):
    with contextlib.ExitStack() as stack:
        for i, d in enumerate(books):
            stack.enter_context(spliced(model, d, edit=(edits or {}).get(i)))
        yield


@pytest.mark.parametrize("k", [1, 3])
def test_what_is_said_is_exactly_a_sum_of_the_nearest_codes(k):
    book, x = draw(20, 6) * torch.arange(1, 21)[:, None], draw(50, 6, seed=1)
    d = of_book(book, budget(str(k)), "layers.0")
    cosine = torch.nn.functional.cosine_similarity(x[:, None].double(), book[None].double(), dim=-1)
    for row, out, some in zip(x, d(x), cosine, strict=True):
        best = sorted(range(20), key=lambda i: -some[i].item())[:k]
        ways = [torch.stack(order).sum(0) for order in itertools.permutations(book[best])]
        assert any(torch.allclose(out, way, rtol=0, atol=1e-4) for way in ways), row
    assert torch.equal(nearest(x, book, k).sort(1).values, cosine.topk(k).indices.sort(1).values)
    codes = d.encode(x)
    assert (codes.value == 1).all() and torch.equal(d.decode(codes), d(x))


def test_gradients_go_straight_through_and_to_the_codes(tmp_path):
    """One step of plain descent, against the formula written down by hand."""
    model, rate = build("llama"), 1e-3
    how = Training(1, Flat(rate), clip=math.inf, decay=0.0, betas=(0.0, 0.0))
    twin, (d,) = learn_codebooks(model, ["layers.0"], Windows(IDS, 24), 30, budget("2"), how, weight=0.5)
    hand = build("llama").requires_grad_(True)
    first = torch.cat([batch for batch, _ in zip(Windows(IDS, 24), range(8), strict=False)])
    with torch.no_grad(), tapped(hand, find_taps(hand, ["layers.0"])) as heard:
        hand(first)
        book = (far_apart(next(iter(heard.values())).flatten(0, 1), 30, 0) / 2).requires_grad_()
    cost = []

    def put(module, args, out):
        pick = torch.nn.functional.cosine_similarity(out[..., None, :], book, dim=-1).topk(2).indices
        said = book[pick].sum(-2)
        cost.append((said - out.detach()).square().mean())
        return said + out - out.detach()

    hook = hand.model.layers[0].register_forward_hook(put)
    found = next_token(hand, next(iter(Windows(IDS, 24))))
    (found + 0.5 * cost[0]).backward()
    hook.remove()
    for name, p in [*hand.named_parameters(), ("codes", book)]:
        moved = d.decoder if name == "codes" else dict(twin.named_parameters())[name]
        clear = (
            p.grad.abs() > 1e-5
        )  # Adam without memory moves each number by the rate, against the sign of its gradient
        assert torch.allclose((moved - p)[clear], -rate * p.grad.sign()[clear], atol=rate / 50), name


def rows_of(count, length, seed):
    """Words of the automaton, and which state it is in after each of their tokens but the first."""
    pairs = torch.tensor([*itertools.combinations(range(TOKENS), 2)])  # no two states may be followed by the same two
    table = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:STATES]]
    make = torch.Generator().manual_seed(seed)
    ids = torch.randint(TOKENS, (count, 2), generator=make)
    while ids.shape[1] < length:
        choice = torch.randint(2, (count, 1), generator=make)
        ids = torch.cat([ids, table[state_of(ids)[:, -1]].gather(1, choice)], 1)
    return ids, state_of(ids), table


def state_of(ids):
    return ids[:, 1:] * 2 + ids[:, :-1] % 2


@pytest.fixture(scope="module")
def automaton():
    """A language model of it, and the same with codebooks."""
    kind, words = FAMILIES["llama"]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **{**words, "vocab_size": TOKENS, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    )
    model = AutoModelForCausalLM.from_config(config)
    ids, _, _ = rows_of(512, 16, seed=1)
    how = Training(250, Flat(3e-3), decay=0.0)
    train(dict(model.named_parameters()), lambda some, _: next_token(model, some), Windows(ids, 32), how)
    how = Training(120, Cosine(1e-3, 1e-4), decay=0.0)
    twin, books = learn_codebooks(model, ["layers.1"], Windows(ids, 32), CODES, budget("1"), how, 10.0)
    return model, twin, books


def allowed(logits, states, table):
    """The share of the next token's chances that the automaton allows."""
    p = logits.softmax(-1)
    return p.gather(-1, table[states]).sum(-1)


def test_an_automatons_language_is_kept_and_codes_are_its_states(automaton):
    model, twin, books = automaton
    ids, states, table = rows_of(128, 16, seed=2)
    with torch.no_grad():
        plain = allowed(model(ids).logits[:, 1:], states, table)
        taps = find_taps(twin, ["layers.1"])
        with with_codes(twin, books), tapped(twin, taps) as heard:
            coded = allowed(twin(ids).logits[:, 1:], states, table)
    assert plain.mean() > 0.97 and coded.mean() > plain.mean() - 0.03
    (passed,) = (h[:, 1:].flatten(0, 1) for h in heard.values())
    codes = nearest(passed, books[0].decoder, 1)[:, 0]
    assert torch.equal(passed, books[0].decoder[codes])  # what goes on is a code
    counts = torch.zeros(CODES, STATES).index_put_((codes, states.flatten()), torch.ones(len(codes)), accumulate=True)
    assert (counts.amax(1).sum() / counts.sum()).item() > 0.95  # precision of a code for its state


def test_forcing_a_states_code_makes_the_next_token_follow_that_state(automaton):
    _, twin, books = automaton
    ids, states, table = rows_of(128, 16, seed=3)
    with torch.no_grad():
        (tap,) = find_taps(twin, ["layers.1"])
        with with_codes(twin, books), tapped(twin, [tap]) as heard:
            twin(ids)
        codes = nearest(heard[tap][:, 1:].flatten(0, 1), books[0].decoder, 1)[:, 0]
        counts = torch.zeros(STATES, CODES).index_put_(
            (states.flatten(), codes), torch.ones(len(codes)), accumulate=True
        )
        for state, best in enumerate(counts.argmax(1).tolist()):
            if counts[state].sum() < 20:
                continue
            with with_codes(twin, books, {0: instead([best])}):
                forced = twin(ids[:, :8]).logits[:, -1]
            assert allowed(forced, torch.full((128,), state), table).mean() > 0.9


def test_the_model_given_stays_as_it_is_and_a_kill_changes_nothing(tmp_path):
    model = build("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    how = Training(6, Flat(1e-3), decay=0.0, save_after=0.0)

    def run(out, told=None):
        return learn_codebooks(model, SITES, Windows(IDS, 8), 30, budget("3"), how, out=tmp_path / out, told=told)

    def die(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    twin, books = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("two", die)
    again, halves = run("two")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(p, dict(again.named_parameters())[name]) for name, p in twin.named_parameters())
    assert all(torch.equal(a.decoder, b.decoder) for a, b in zip(books, halves, strict=True))
    assert not torch.equal(twin.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    save(books[0], tmp_path / "book")
    found = load(tmp_path / "book")
    assert isinstance(found.sparsifier, Codebook) and torch.equal(found(draw(5, 32)), books[0](draw(5, 32)))


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(ValueError, match="features/codebook is learnt with its model: learn_codebooks"):
        learn([Pupil(Codebook(), budget("1"), 20)], Rows(draw(400, 6), 50))
    with pytest.raises(ValueError, match="500 codes begin at 192 hidden states"):
        learn_codebooks(build("llama"), ["layers.0"], Windows(IDS[:3], 3), 500, budget("1"))
    with pytest.raises(ValueError, match="'31' of 30 codes"):
        learn_codebooks(build("llama"), ["layers.0"], Windows(IDS, 8), 30, budget("31"))
