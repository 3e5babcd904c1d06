"""Whether a dictionary belongs to a model: asked with a run of two tokens, before any work."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fewer.features import Dictionary
from fewer.measure.quality import at_rest, device_of
from fewer.models.tap import Tap, find_taps, tapped


@dataclass(frozen=True)
class Fit:
    """The sites of a dictionary in a model. `late` says why one run cannot put it in, if it cannot."""

    reads: list[Tap]
    writes: list[Tap]
    late: str = ""


def fit(dictionary: Dictionary, model: nn.Module) -> Fit:
    """Where it reads and writes. ValueError: it names no sites, the model has no such module, or sites of another width.

    What is read later than something that is written, as a crosscoder over layers does, can be explained but not put in.
    """
    if not dictionary.reads or not dictionary.writes:
        raise ValueError(
            "this dictionary names no sites: say what it reads (--site layers.4; in Python `replace(d, reads=..., writes=...)`)"
        )
    reads, writes = find_taps(model, dictionary.reads), find_taps(model, dictionary.writes)
    wide = widths(model, [*reads, *writes])
    made = dictionary.about.get("model")
    for verb, taps, numbers in (
        ("reads", reads, dictionary.encoder.shape[1]),
        ("writes", writes, dictionary.decoder.shape[1]),
    ):
        if (said := sum(wide[tap] for tap in taps)) != numbers:
            of = f"; it was learnt on {made}" if isinstance(made, str) else "; was it learnt on another model?"
            raise ValueError(
                f"{', '.join(map(str, taps))}: {said} numbers a token, the dictionary {verb} {numbers}{of}"
            )
    order = [*wide]
    first, last = min(writes, key=order.index), max(reads, key=order.index)
    late = f"{first} is written before {last} is heard" if order.index(first) < order.index(last) else ""
    return Fit(reads, writes, late)


def widths(model: nn.Module, taps: Sequence[Tap]) -> dict[Tap, int]:
    """How many numbers a token has at each tap, in the order in which a run comes by them."""
    taps = list(dict.fromkeys(taps))
    with at_rest(model), tapped(model, taps) as heard:
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device_of(model)))
    for tap in taps:
        if tap not in heard:
            raise ValueError(f"site {tap} was not reached by a run of the model")
    return {tap: x.shape[-1] for tap, x in heard.items()}
