"""Measured numbers against independent truth: float64 by hand, scipy, planted answers, counted calls."""

import doctest
import importlib
import math
import types

import pytest
import scipy.stats
import torch
from tiny import build
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import fewer.models
from fewer import measure
from fewer.data import Task, Turn, needle, stdlib, table, variables, windows
from fewer.measure import Estimate, Reference, accuracy, kl, nll, paired, perplexity, quality
from fewer.measure.estimate import student

TOKENS = torch.randint(3, 99, (5, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.fixture(scope="module")
def bundled():
    home = f"{fewer.models.__path__[0]}/bundled"
    return AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32), AutoTokenizer.from_pretrained(home)


def log_probs(model, ids):
    """Float64, one prefix after the other, softmax written out."""
    twin = build("llama").double()
    twin.load_state_dict(model.state_dict())
    rows = []
    with torch.no_grad():
        for t in range(1, len(ids)):
            x = twin(input_ids=ids[None, :t]).logits[0, -1]
            rows.append(x - x.exp().sum().log())
    return torch.stack(rows)


def bent(model, seed=1, by=0.05):
    """A copy whose weights are a little off."""
    twin = build("llama")
    twin.load_state_dict(model.state_dict())
    noise = torch.Generator().manual_seed(seed)
    for p in twin.parameters():
        p.data += by * torch.randn(p.shape, generator=noise)
    return twin


NEURONS = ["activity", "predicted", "reading", "reuse", "sparsing_law", "tail"]


@pytest.mark.parametrize("file", ["estimate", "quality", "answers", "cost", "memory", "scores", *NEURONS])
def test_examples_in_docstrings_hold(file):
    module = importlib.import_module(f"fewer.measure.{file}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


# --- estimates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 31, 500, 20_000])
def test_student_quantiles_are_those_of_scipy(freedom):
    assert student(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-4)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (3, 10), (49, 50), (500, 1000)])
def test_intervals_of_shares_are_those_of_scipy(right, n):
    e, truth = measure.share(right, n), scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (e.value, e.low, e.high) == pytest.approx((right / n, truth.low, truth.high), abs=1e-9)


@pytest.mark.parametrize("n", [4, 30])
def test_an_interval_holds_the_truth_nineteen_times_of_twenty(n):
    draws = 3 + 2 * torch.randn(400, n, generator=torch.Generator().manual_seed(n))
    held = sum(e.low <= 3 <= e.high for e in map(measure.mean, draws)) / 400
    assert 0.92 <= held <= 0.98


def test_a_paired_difference_is_sure_where_two_intervals_overlap():
    noise = torch.Generator().manual_seed(0)
    text, off = torch.randn(30, generator=noise), 0.01 * torch.randn(30, generator=noise)
    a, b = text + 0.1 + off, text
    assert measure.mean(a).low < measure.mean(b).high
    assert paired(a, b).low > 0.08 and paired(a, b).high < 0.12
    with pytest.raises(ValueError, match="same windows"):
        paired(a, b[:-1])


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(6.3021, 6.2521, 6.3521, 9), "6.302 ± 0.050"),
        (Estimate(415.2, 380.1, 450.3, 9), "415 ± 35"),
        (Estimate(1.0, 0.862, 1.0, 24), "1.000 [0.862, 1.000]"),
        (Estimate(6.3, -math.inf, math.inf, 1), "6.3"),
        (Estimate(0.0, 0.0, 0.0, 4), "0 ± 0"),
    ],
)
def test_an_estimate_prints_as_many_digits_as_it_knows(estimate, text):
    assert str(estimate) == text


# --- likelihood ----------------------------------------------------------------------------------------------------------


def test_likelihood_and_perplexity_are_those_of_a_loop_in_float64(llama):
    each = torch.stack([-log_probs(llama, ids)[torch.arange(11), ids[1:]].mean() for ids in TOKENS])
    torch.testing.assert_close(nll(llama, TOKENS, batch=2), each, rtol=1e-5, atol=1e-5)
    log = scipy.stats.t.interval(0.95, 4, each.mean().item(), scipy.stats.sem(each.numpy()))
    found = perplexity(llama, TOKENS)
    assert (found.value, found.low, found.high) == pytest.approx(
        (each.mean().exp().item(), *map(math.exp, log)), rel=1e-4
    )


def test_kl_is_that_of_a_loop_in_float64(llama):
    other = bent(llama)
    pairs = [(log_probs(llama, ids), log_probs(other, ids)) for ids in TOKENS]
    truth = torch.stack([(p.exp() * (p - q)).sum(-1).mean() for p, q in pairs])
    for dense in (llama, Reference.of(llama, TOKENS)):
        found = quality(other, dense, TOKENS)
        torch.testing.assert_close(found.divergence, truth, rtol=1e-4, atol=1e-6)
        assert found.kl == kl(other, dense, TOKENS) and found.perplexity == perplexity(other, TOKENS)
    assert truth.mean() > 0.01, "the models hardly differ: nothing was tested"


def test_a_model_does_not_differ_from_itself(llama):
    assert kl(llama, llama, TOKENS) == Estimate(0.0, 0.0, 0.0, 5)
    assert abs(kl(llama, Reference.of(llama, TOKENS, batch=5), TOKENS, batch=2).value) < 1e-9


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "gemma2", "qwen3_moe"])
def test_a_reference_says_what_the_dense_model_said_after_that_was_pruned(family):
    dense = build(family)
    with torch.no_grad():
        truth = dense(input_ids=TOKENS).logits.clone()
    reference = Reference.of(dense, TOKENS, batch=2)
    for p in dense.parameters():
        p.data.zero_()
    assert len(reference.inputs) == len(TOKENS)
    torch.testing.assert_close(torch.stack([reference.logits(i) for i in range(5)]), truth, rtol=1e-5, atol=1e-5)


def test_a_reference_keeps_hidden_states_where_these_tell_all_and_logits_where_not(llama):
    assert {x.shape[-1] for x in Reference.of(llama, TOKENS).inputs} == {32}
    assert {x.shape[-1] for x in Reference.of(build("gemma2"), TOKENS).inputs} == {99}  # soft cap after the head
    assert {x.shape[-1] for x in Reference.of(lambda input_ids: llama(input_ids=input_ids), TOKENS).inputs} == {99}


def test_a_reference_of_other_tokens_is_refused(llama):
    with pytest.raises(ValueError, match="other tokens"):
        kl(llama, Reference.of(llama, TOKENS), TOKENS.flip(0))


def test_measuring_leaves_no_gradient_no_hook_and_every_mode_as_it_was(llama):
    model = build("gpt2").train().requires_grad_(True)
    model.transformer.h[0].eval()
    before = [m.training for m in model.modules()]
    assert torch.equal(nll(model, TOKENS), nll(model, TOKENS)), "dropout was on"
    Reference.of(model, TOKENS)
    assert [m.training for m in model.modules()] == before and torch.is_grad_enabled()
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not nll(model, TOKENS).requires_grad


def test_progress_is_told_after_every_batch(llama):
    told = []
    perplexity(llama, TOKENS, batch=2, progress=lambda done, of: told.append((done, of)))
    assert told == [(2, 5), (4, 5), (5, 5)]


# --- answers -------------------------------------------------------------------------------------------------------------


class Letters:
    bos_token_id = 0

    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids):
        return "".join(map(chr, ids))


class Oracle(nn.Module):
    """Goes on with the conversation that it knows by heart; `past_key_values` is what it has read."""

    def __init__(self, *tasks):
        super().__init__()
        self.known = ["\0" + "".join(p + a for p, a in task.turns) for task in tasks]
        self.sizes = []

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        self.sizes.append(tuple(input_ids.shape))
        new = ["".join(map(chr, row)) for row in input_ids.tolist()]
        read = [a + b for a, b in zip(past_key_values or [""] * len(new), new, strict=True)]
        logits = torch.zeros(len(new), 1, 128)
        for row, text in enumerate(read):
            known = next((k for k in self.known if k.startswith(text)), text + "?")
            logits[row, 0, ord(known[len(text)])] = 1
        return types.SimpleNamespace(logits=logits, past_key_values=read)


def chat(*turns):
    return Task(tuple(Turn(*t) for t in turns))


def test_only_answers_right_to_the_letter_count():
    asked = [chat(("a?", " 12\n")), chat(("b?", " 34\n")), chat(("c?", " 56\n"))]
    model = Oracle(asked[0], chat(("b?", " 341")), chat(("c?", " 66\n")))  # right, one digit more, one digit wrong
    assert measure.answers(model, Letters(), asked) == [[True], [False], [False]]
    assert accuracy(model, Letters(), asked) == measure.share(1, 3)


def test_several_turns_are_read_on_top_of_each_other_and_nothing_twice():
    asked = chat(("context a?", " 12\n"), ("b?", " 345\n"))
    model = Oracle(asked)
    assert measure.answers(model, Letters(), [asked]) == [[True, True]]
    assert sum(n for _, n in model.sizes) == len("\0context a? 12\nb? 345\n") - 1  # all but the last letter said
    assert measure.answers(Oracle(chat(("context a?", " 12\n"), ("b?", " 999\n"))), Letters(), [asked]) == [
        [True, False]
    ]


def test_conversations_of_equal_length_share_a_batch_and_keep_their_order():
    asked = [chat((f"{'x' * (i % 2)}{i}?", f" {i}\n")) for i in range(6)]
    model = Oracle(*asked)
    told = []
    assert measure.answers(model, Letters(), asked, 2, lambda *at: told.append(at)) == [[True]] * 6
    assert {rows for rows, _ in model.sizes} == {2, 1} and told[-1] == (6, 6)


def test_a_model_without_a_cache_answers_the_same():
    asked = chat(("context a?", " 12\n"), ("b?", " 345\n"))
    oracle = Oracle(asked)

    class Plain(nn.Module):
        def forward(self, input_ids):
            return oracle(input_ids)

    assert measure.answers(Plain(), Letters(), [asked]) == [[True, True]]


@pytest.mark.parametrize(
    "make",
    [
        lambda t: needle(t, tokens=300, count=6),
        lambda t: needle(t, tokens=300, notes=3, questions=3, count=2),
        lambda t: variables(t, tokens=300, count=6),
        lambda t: table(t, tokens=300, rows=8, count=6),
    ],
    ids=["needle", "three turns", "variables", "table"],
)
def test_the_bundled_model_knows_the_tasks(bundled, make):
    model, tokenizer = bundled
    assert accuracy(model, tokenizer, make(tokenizer)).value > 0.8


def test_the_bundled_model_reads_the_standard_library_as_well_as_it_should(bundled):
    model, tokenizer = bundled
    text = [d for d in stdlib("test") if d.name.startswith("asyncio/")]
    found = perplexity(model, windows(text, tokenizer, 1024, 8), batch=2)
    assert found.low < 6.30 < found.high and 5 < found.value < 8


# --- scores --------------------------------------------------------------------------------------------------------------


def test_fvu_is_about_the_mean_and_counts_a_constant_error():
    x = 100 + torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    assert measure.fvu(x, x) == 0 and measure.fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1, abs=1e-6)
    truth = 0.25 * x.shape[0] * 8 / (x.double() - x.double().mean(0)).square().sum().item()
    assert measure.fvu(x, x + 0.5) == pytest.approx(truth)
    with pytest.raises(ValueError, match="no variance"):
        measure.fvu(x[:1], x[:1])


def test_ranking_scores_are_those_worked_out_by_hand():
    score = torch.tensor([[3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    gain = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    first = (2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert measure.ndcg(score, gain, 3).tolist() == pytest.approx([first, 1 / math.log2(3), 0])
    assert measure.recall_at(score, gain > 0, 2).tolist() == [0.5, 1.0, 0.0]
    assert measure.recall_at(score, gain > 0, 10).tolist() == [1.0, 1.0, 0.0]
