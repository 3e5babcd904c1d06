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
    draw = random.Random(seed)
    texts = [d if isinstance(d, str) else d.text for d in documents]
    draw.shuffle(texts)
    opener, stream = opener_of(tokenizer), []
    for text in texts:
        stream += opener + encode(tokenizer, text)
        if len(stream) >= POOL * count * length:
            break
    there = len(stream) // length
    if there < count:
        raise ValueError(
            f"{len(texts)} documents hold {len(stream)} tokens, {count} windows of {length} need {count * length}: "
            + (f"ask for at most {there} windows, " if there else f"ask for windows of at most {len(stream)}, ")
            + "for shorter ones, or give more text"
        )
    starts = [length * i for i in draw.sample(range(there), count)]
    return torch.tensor([stream[s : s + length] for s in starts])


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text alone: no special tokens, no warning that it is longer than the model's context."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def opener_of(tokenizer: Any) -> list[int]:
    """What opens a document, as a list of no or one id."""
    ids = (getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None))
    return [i for i in ids if i is not None][:1]
