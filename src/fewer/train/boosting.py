"""Boosting: a second dictionary learns what a first one misses on other text, and what both say adds up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import budget
from fewer.core.spell import spell
from fewer.features import Dictionary
from fewer.features.boosted import Boosted

from .dictionaries import FIRST, HELD, taught
from .known import Known
from .loop import Told
from .one import One
from .pupil import PLAIN, Lesson, Pupil
from .source import Source

READ, MISSED = "read", "missed"


@dataclass(frozen=True, eq=False)
class Missed(Source):
    """What a dictionary reads, and beside it what it misses of what it writes: y - d(x). `whole` has x and y side by side, or
    x alone if that is also what is written."""

    whole: Source
    dictionary: Dictionary

    def since(self, number: int) -> Iterator[Float[Tensor, "batch dim"]]:
        reads, writes = self.dictionary.encoder.shape[1], self.dictionary.decoder.shape[1]
        for batch in self.whole.since(number):
            if batch.shape[1] != reads + writes * (not self.dictionary.is_autoencoder):
                raise ValueError(
                    f"batches have {batch.shape[1]} columns, the dictionary reads {reads} and writes {writes}"
                )
            x, y = batch[:, :reads].float(), batch[:, -writes:].float()
            yield torch.cat([x, y - self.dictionary(x)], 1)


def learn_boost(
    base: Dictionary,
    pupil: Pupil,
    source: Source,
    lesson: Lesson = PLAIN,
    out: str | Path | None = None,
    told: Told | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
    unseen: Source | None = None,
    force: bool = False,
) -> Dictionary:
    """A second dictionary learns the error e = y - base(x) of a first from x, on the text of a domain; both as one are given
    back: x_hat = base(x) + second(x) (Koriagin et al. 2025, 2507.12990).

    The first stays as it is, to the bit, and lies first in what is given back. The second has no bias, so that it adds nothing
    where none of its latents speaks; with a threshold (features/batch_top_k, as in the paper) that is most other text.
    `source` has the columns that the base reads and, if these are others, those it writes. The rest as in `learn`.

    Differs from the paper: the second sees its inputs about their mean and scaled, and its dead are taught.
    """
    base = base.to(next(iter(source)).device)
    stream = Missed(source, base)
    first = torch.cat(stream.first(FIRST))
    widths = {READ: base.encoder.shape[1], MISSED: base.decoder.shape[1]}
    known = Known.of(first, widths)
    known = replace(known, mean=torch.cat([known.mean[known.sites[READ]], torch.zeros_like(base.decoder_bias)]).float())
    one = One(replace(pupil, reads=(READ,), writes=(MISSED,)), known, lesson, len(first) // FIRST, rows=first)
    one.tensors["decoder_bias"].requires_grad_(False)

    def loss(batch: Tensor, progress: float) -> Tensor:
        return one.loss(known.seen(batch), progress)

    taught(
        *([one], loss, stream, lesson, f"{one.pupil} boosts {known.scale.double().sum().item()!r}", out, told),
        force=force,
        alike=True,
    )
    later = stream.first(HELD, lesson.steps) if unseen is None else Missed(unseen, base).first(HELD)
    return boosted(base, one.done(known.seen(torch.cat(later)), about, []))


def boosted(base: Dictionary, second: Dictionary) -> Dictionary:
    """Both as one dictionary at the sites of the first; what they say adds up. ValueError: they are of different widths.

    >>> from fewer.features.top_k import TopK
    >>> one = Dictionary(TopK(), budget("1"), torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2))
    >>> both = boosted(one, one)
    >>> both(torch.tensor([[3.0, 1.0]])), both.latents, str(both.budget), both.sparsifier.parts
    (tensor([[6., 0.]]), 4, '2', 'features/top_k 1 of 2 + features/top_k 1 of 2')
    """
    if base.encoder.shape[1] != second.encoder.shape[1] or base.decoder.shape[1] != second.decoder.shape[1]:
        raise ValueError(
            f"{tuple(base.encoder.shape)} and {tuple(second.encoder.shape)}: dictionaries of one width add up"
        )
    if second.skip is not None:
        raise ValueError("the second dictionary has a skip connection: it has no place in the sum")
    (one, count), (two, _) = _parts(base), _parts(second)
    own = {f"{i}.{name}": t for i, name, t in (*_owned(base, 0), *_owned(second, count))}
    return Dictionary(
        Boosted(f"{one} + {two}"),
        budget(str(base.budget.of(base.latents) + second.budget.of(second.latents))),
        torch.cat([base.encoder, second.encoder]),
        torch.cat([base.encoder_bias, second.encoder_bias]),
        torch.cat([base.decoder, second.decoder]),
        base.decoder_bias + second.decoder_bias,
        own,
        base.skip,
        base.reads,
        base.writes,
        {**base.about, "boosted": [*base.about.get("boosted", ()), dict(second.about)]},
    )


def _many(d: Dictionary) -> bool:
    return isinstance(d.sparsifier, Boosted)


def _parts(d: Dictionary) -> tuple[str, int]:
    """Who is in it, as `Boosted` writes it, and how many."""
    if isinstance(d.sparsifier, Boosted):
        return d.sparsifier.parts, d.sparsifier.parts.count(" + ") + 1
    return f"{spell(d.sparsifier)} {d.budget} of {d.latents}", 1


def _owned(d: Dictionary, after: int) -> Iterator[tuple[int, str, Tensor]]:
    """What its parts have learnt, each with its number."""
    for name, t in d.own.items():
        number, _, rest = name.partition(".") if _many(d) else ("0", "", name)
        yield after + int(number), rest, t
