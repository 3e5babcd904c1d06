"""Walking a model block by block says exactly what the model says."""

import pytest
import torch
from tiny import FAMILIES, batch, build
from torch import nn

from fewer.models import blocks
from fewer.models.feed import call, feed, finish, first_of


def ask(name):
    return next(iter(batch(name, length=24).values()))


def whole(model, question):
    with torch.no_grad():
        output = call(model, question)
    return output.logits if hasattr(output, "logits") else first_of(output.to_tuple())


@pytest.mark.parametrize("name", FAMILIES)
def test_block_by_block_is_the_model(name):
    model = build(name).eval()
    stack = [b for _, b in blocks(model)]
    question, hidden, boxed = ask(name), None, False
    for number in range(len(stack)):
        hidden, boxed = feed(model, stack, number, question, hidden, boxed)
    output = finish(model, stack, question, hidden, boxed)
    said = output.logits if hasattr(output, "logits") else first_of(output.to_tuple())
    assert torch.equal(said, whole(model, question))
    assert not any("forward" in vars(b) for b in stack), "the model is as it was"


def test_blocks_that_are_not_at_hand_are_not_touched():
    model = build("llama").eval()
    stack = [b for _, b in blocks(model)]
    question = ask("llama")
    first, boxed = feed(model, stack, 0, question, None)
    second, _ = feed(model, stack, 1, question, first, boxed)
    stack[0].to("meta")
    assert torch.equal(feed(model, stack, 1, question, first, boxed)[0], second)


def test_a_failing_block_leaves_the_model_as_it_was():
    model = build("llama").eval()
    stack = [b for _, b in blocks(model)]

    def fail(module, args, kwargs):
        raise RuntimeError("no")

    handle = stack[1].register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="no"):
        feed(model, stack, 1, ask("llama"), torch.zeros(2, 24, 32))
    handle.remove()
    assert not any("forward" in vars(b) for b in stack)


def test_a_block_that_is_not_reached_is_named():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="was not reached"):
        feed(model, [nn.Linear(2, 2)], 0, torch.zeros(1, 2), None)
