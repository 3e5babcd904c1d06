"""Walking a model block by block says exactly what the model says."""

import pytest
import torch
from tiny import FAMILIES, batch, build
from torch import nn

from fewer.calibrate import Gram, watching
from fewer.models import blocks, feed, finish, sites
from fewer.models.feed import call, first_of
from fewer.recipe.look import observe
from fewer.recipe.walk import Walk


def logits(output):
    return output.logits if hasattr(output, "logits") else first_of(output.to_tuple())


def whole(model, question):
    with torch.no_grad():
        return logits(call(model, question))


def stack_of(model):
    return [b for _, b in blocks(model)]


@pytest.mark.parametrize("name", FAMILIES)
def test_block_by_block_is_the_model(name):
    model, question = build(name), batch(name, length=24)
    stack, truth, heard = stack_of(model), [], None
    hooks = [b.register_forward_hook(lambda m, a, out: truth.append(first_of(out))) for b in stack]
    call(model, question)
    for hook in hooks:
        hook.remove()
    for number, said in enumerate(truth):
        heard = feed(model, stack, number, question, heard)
        assert torch.equal(first_of(heard), said)
    assert torch.equal(logits(finish(model, stack, question, heard)), whole(model, question))
    assert not any("forward" in vars(b) for b in stack), "the model is as it was"


def test_a_tensor_is_the_models_first_argument():
    model = build("llama")
    ids = batch("llama")["input_ids"]
    assert torch.equal(feed(model, stack_of(model), 0, ids), feed(model, stack_of(model), 0, {"input_ids": ids}))


def test_blocks_that_are_not_at_hand_are_not_touched():
    model, question = build("llama"), batch("llama")
    stack = stack_of(model)
    first = feed(model, stack, 0, question)
    second = feed(model, stack, 1, question, first)
    stack[0].to("meta")
    assert torch.equal(feed(model, stack, 1, question, first), second)


def test_padding_reaches_the_blocks():
    model, question = build("llama"), batch("llama")
    mask = torch.ones_like(question["input_ids"])
    mask[0, :5] = 0
    said = feed(model, stack_of(model), 0, {**question, "attention_mask": mask})
    other = question["input_ids"].clone()
    other[0, :5] = 7
    again = feed(model, stack_of(model), 0, {"input_ids": other, "attention_mask": mask})
    assert torch.equal(said[0, 5:], again[0, 5:]) and not torch.equal(
        said[0, 5:], feed(model, stack_of(model), 0, other)[0, 5:]
    )


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, hidden_states, scale):
        return self.map(hidden_states) * scale, scale


class Net(nn.Module):
    """Blocks that are called by keyword and say more than their hidden states."""

    def __init__(self, n):
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(n)])

    def forward(self, x):
        scale = 2.0
        for layer in self.layers:
            x, scale = layer(hidden_states=x, scale=scale)
        return x


@pytest.mark.parametrize("n", [1, 3])
def test_blocks_that_say_more_and_a_model_of_one_block_work_too(n):
    net, x, heard = Net(n), torch.randn(2, 4), None
    for number in range(n):
        heard = feed(net, stack_of(net), number, x, heard)
    assert torch.equal(finish(net, stack_of(net), x, heard), net(x).detach())


def test_a_failing_block_leaves_the_model_as_it_was():
    model = build("llama")
    stack = stack_of(model)

    def fail(module, args, kwargs):
        raise RuntimeError("no")

    handle = stack[1].register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="no"):
        feed(model, stack, 1, batch("llama"), torch.zeros(2, 12, 32))
    handle.remove()
    assert not any("forward" in vars(b) for b in stack)


def test_a_block_that_is_not_reached_is_named():
    with pytest.raises(ValueError, match="was not reached"):
        feed(nn.Sequential(nn.Linear(2, 2)), [nn.Linear(2, 2)], 0, torch.zeros(1, 2))


@pytest.mark.parametrize("name, last", [("llama", "down_proj"), ("gpt2", "c_proj"), ("mixtral", None)])
def test_a_run_that_is_only_listened_to_ends_at_the_last_map_that_listens(name, last):
    """Statistics are those of whole runs; where all maps hear all batches the last is computed for the first one alone."""
    model, runs = build(name), []
    data = torch.randint(model.config.vocab_size, (6, 9))
    found = [s for s in sites(model) if s.layer == 1]
    walk = Walk(model, data, batch=2)
    walk.advance(0)
    ends = [s.module for s in found if last and last in s.name and "mlp" in s.name]
    for module in ends:
        module.register_forward_hook(lambda *_: runs.append(1))
    brief = observe(walk, 1, [(s, (Gram,)) for s in found])
    assert len(runs) == len(ends)
    with watching(found, (Gram,)) as whole:
        walk.listen(1)
    for s in found:
        assert torch.equal(brief[s.name][Gram].value, whole[s.name][Gram].value), s.name
