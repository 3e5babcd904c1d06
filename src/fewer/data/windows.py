"""Documents to windows of tokens."""

import random
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .stdlib import Document

POOL = 16  # windows are drawn from this many times as much text: enough documents, and never a whole crawl encoded


def windows(
    documents: Iterable[Document | str], tokenizer: Any, length: int, count: int, seed: int = 0
) -> Int[Tensor, "count length"]:
    """Draw `count` windows of `length` tokens that do not overlap.

    The documents are shuffled and joined into one stream, each opened by the tokenizer's bos token (else eos, else
    nothing), as language models are trained; the stream is cut every `length` tokens and `count` of the pieces are
    drawn. A window therefore usually begins inside a document and may hold the end of one and the beginning of the
    next. At most `16 * count * length` tokens are encoded. Same documents, tokenizer and seed: same windows.

    `tokenizer` is any tokenizer of transformers. Raises `ValueError` if there is too little text.
    """
    if length < 2 or count < 1:
        raise ValueError(f"{count} windows of {length} tokens: ask for at least 1 window of at least 2 tokens")
    texts, stream, draw = _stream(documents, tokenizer, POOL * count * length, seed)
    there = len(stream) // length
    if there < count:
        raise ValueError(
            f"{texts} documents hold {len(stream)} tokens, {count} windows of {length} need {count * length}: "
            + (f"ask for at most {there} windows, " if there else f"ask for windows of at most {len(stream)}, ")
            + "for shorter ones, or give more text"
        )
    starts = [length * i for i in draw.sample(range(there), count)]
    return torch.tensor([stream[s : s + length] for s in starts])


def every_window(
    documents: Iterable[Document | str], tokenizer: Any, length: int, most: int, seed: int = 0
) -> Int[Tensor, "count length"]:
    """The windows of a stream like that of `windows`, all of them or the first `most`: to learn from, not to sample.

    Raises `ValueError` if there is not even one.
    """
    if length < 2 or most < 1:
        raise ValueError(f"{most} windows of {length} tokens: ask for at least 1 window of at least 2 tokens")
    texts, stream, _ = _stream(documents, tokenizer, most * length, seed)
    count = min(most, len(stream) // length)
    if not count:
        raise ValueError(f"{texts} documents hold {len(stream)} tokens: ask for windows of at most {len(stream)}")
    return torch.tensor(stream[: count * length]).view(count, length)


def _stream(
    documents: Iterable[Document | str], tokenizer: Any, enough: int, seed: int
) -> tuple[int, list[int], random.Random]:
    """How many documents there are; their tokens, shuffled and joined, until there are enough; and the dice."""
    draw = random.Random(seed)
    texts = [d if isinstance(d, str) else d.text for d in documents]
    draw.shuffle(texts)
    opener, stream = opener_of(tokenizer), []
    for text in texts:
        stream += opener + encode(tokenizer, text)
        if len(stream) >= enough:
            break
    return len(texts), stream, draw


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text alone: no special tokens, no warning that it is longer than the model's context."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def opener_of(tokenizer: Any) -> list[int]:
    """What opens a document, as a list of no or one id."""
    ids = (getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None))
    return [i for i in ids if i is not None][:1]
