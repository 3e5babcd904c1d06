"""Whether a language model answers tasks to the letter, by greedy decoding."""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.data import Open, Task
from fewer.data.windows import encode, opener_of

from .estimate import Estimate, share
from .quality import Model, Progress, at_rest, device_of


def accuracy(
    model: Model, tokenizer: Any, tasks: Sequence[Task], batch: int = 8, progress: Progress | None = None
) -> Estimate:
    """The share of questions answered exactly, with Wilson's interval (questions taken as independent).

    The model reads the first turn, says as many tokens as the answer has, reads the next question on top of what it
    said itself, and so on, in one cache: what was forgotten in the first turn is missing in the second. Conversations
    of equal lengths are decoded together, so nothing is padded; those of one question have equal lengths, but for a
    token here and there.

    `model` is a causal model of transformers; one without a cache works too, reading all again for each
    token.
    """
    right = answers(model, tokenizer, tasks, batch, progress)
    return share(sum(map(sum, right)), sum(map(len, right)))


def answers(
    model: Model, tokenizer: Any, tasks: Sequence[Task], batch: int = 8, progress: Progress | None = None
) -> list[list[bool]]:
    """Right or wrong for each turn of each task, in the order given."""
    if batch < 1:
        raise ValueError(f"a batch of {batch}: write at least 1")
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    spoken = [_ids(tokenizer, task) for task in tasks]
    for i, parts in enumerate(spoken):
        alike[tuple(map(len, parts))].append(i)
    groups = [g[at : at + batch] for g in alike.values() for at in range(0, len(g), batch)]
    right: list[list[bool]] = [[] for _ in tasks]
    done = 0
    for group in groups:
        said = _converse(model, [spoken[i] for i in group])
        for i, mine in zip(group, said, strict=True):
            texts = [tokenizer.decode(ids).strip() for ids in mine]
            right[i] = [turn.right(text) for text, turn in zip(texts, tasks[i].turns, strict=True)]
        done += len(group)
        if progress:
            progress(done, len(tasks))
    return right


def _ids(tokenizer: Any, task: Task) -> list[list[int]]:
    """The ids of prompt, answer, prompt, answer ...; of an answer that has a room, as many zeros."""
    parts = []
    for turn in task.turns:
        answer = [0] * turn.room if isinstance(turn, Open) else encode(tokenizer, turn.answer)
        parts += [encode(tokenizer, turn.prompt), answer]
    return [opener_of(tokenizer) + parts[0], *parts[1:]]


def _converse(model: Model, spoken: list[list[list[int]]]) -> list[list[list[int]]]:
    """What the model says in each turn of each conversation; all conversations have the same lengths."""
    said, cache, before = [], None, torch.empty(len(spoken), 0, dtype=torch.long)
    for turn in range(0, len(spoken[0]), 2):
        asked = torch.tensor([parts[turn] for parts in spoken])
        out, before, cache = _greedy(model, torch.cat([before, asked], 1), len(spoken[0][turn + 1]), cache)
        said.append(out.tolist())
    return [list(turns) for turns in zip(*said, strict=True)]


def _greedy(
    model: Model, ids: Int[Tensor, "batch new"], count: int, cache: Any
) -> tuple[Int[Tensor, "batch count"], Int[Tensor, "batch unread"], Any]:
    """The likeliest `count` tokens after what is cached and `ids`, what the model has yet to read, and the cache."""
    takes = inspect.signature(model.forward if hasattr(model, "forward") else model).parameters
    name = next(
        (n for n in ("cache", "past_key_values") if n in takes), None
    )  # the second was transformers' until 5.23
    options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    said, unread = [], ids.to(device_of(model))
    with at_rest(model):
        for _ in range(count):
            if name:
                out = model(input_ids=unread, use_cache=True, **{name: cache}, **options)
                cache = getattr(out, name)
            else:
                out = model(input_ids=unread, **options)
            said.append(out.logits[:, -1:].argmax(-1))
            unread = said[-1] if name else torch.cat([unread, said[-1]], 1)
    return torch.cat(said, 1).cpu(), unread.cpu(), cache
