"""Automatic interpretation: explain a latent from some examples, and see whether the explanation predicts others."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewer.layout import Codes

from .estimate import Score, jackknife, mean

Vote = bool | None  # None: no answer that can be read


@dataclass(frozen=True)
class Marked:
    """A text with some tokens marked.

    >>> print(Marked(("I", " ran", " home"), (False, True, False)))
    I<< ran>> home
    """

    tokens: tuple[str, ...]
    marks: tuple[bool, ...]

    def __str__(self) -> str:
        return "".join(f"<<{t}>>" if on else t for t, on in zip(self.tokens, self.marks, strict=True))


@dataclass(frozen=True)
class Example:
    """A text in tokens, and how loud the latent is at each."""

    tokens: tuple[str, ...]
    loud: tuple[float, ...]

    def marked(self) -> str:
        """The tokens at which the latent speaks, marked."""
        return str(Marked(self.tokens, tuple(x != 0 for x in self.loud)))


class Explainer(ABC):
    """Says in words what examples have in common, and votes on texts it is shown with such words, and no activations."""

    @abstractmethod
    def explain(self, examples: Sequence[Example]) -> str:
        """What wakes the latent, from examples in which it speaks."""

    @abstractmethod
    def detect(self, explanation: str, texts: Sequence[tuple[str, ...]]) -> list[Vote]:
        """For each text: whether what the explanation describes is in it."""

    @abstractmethod
    def fuzz(self, explanation: str, texts: Sequence[Marked]) -> list[Vote]:
        """For each text: whether the marked tokens are what the explanation describes."""


@dataclass(frozen=True)
class Shown:
    """What there is to show of one latent: texts in which it speaks, and others."""

    active: tuple[Example, ...]
    silent: tuple[Example, ...]


@dataclass(frozen=True)
class Interpretation:
    """An explanation and how well it predicts examples that it was not made from."""

    explanation: str
    detection: Score
    fuzzing: Score


def shown(
    codes: Codes,
    ids: Int[Tensor, "count length"],
    words: Callable[[int], str],
    latent: int,
    count: int = 40,
    context: int = 32,
    seed: int = 0,
) -> Shown:
    """At most `count` texts of `context` tokens of each kind, from codes of all tokens of `ids` in their order.

    Active ones are spread evenly over the ranks of their loudest token, so that quiet ones are seen as well (Paulo et al.
    2024, 2410.13928, sec. 3.2), and shuffled; silent ones are drawn at random. `words` spells a token.
    """
    if len(codes.value) != ids.numel():
        raise ValueError(f"codes of {len(codes.value)} tokens and {ids.numel()} ids: give the codes of these tokens")
    z = torch.where(codes.index == latent, codes.value, 0.0).sum(1).view(ids.shape)
    return texts_of(z, ids, words, count, context, seed)


def texts_of(
    z: Float[Tensor, "count length"],
    ids: "Int[Tensor, 'count length'] | np.ndarray",
    words: Callable[[int], str],
    count: int = 40,
    context: int = 32,
    seed: int = 0,
) -> Shown:
    """As `shown`, from how loud one latent is at each token of `ids`."""
    context = min(context, ids.shape[1])
    used = ids.shape[1] // context * context
    texts, loud = ids[:, :used].reshape(-1, context), z[:, :used].reshape(-1, context).cpu()
    peak = loud.abs().amax(1)
    ranked = peak.argsort(descending=True, stable=True)[: int((peak > 0).sum())]
    spread = (
        ranked[torch.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().long()] if len(ranked) else ranked
    )
    draw = torch.Generator().manual_seed(seed)
    spread = spread[torch.randperm(len(spread), generator=draw)]
    quiet = (peak == 0).nonzero()[:, 0]
    quiet = quiet[torch.randperm(len(quiet), generator=draw)[:count]]

    def of(i: int) -> Example:
        return Example(tuple(words(t) for t in texts[i].tolist()), tuple(loud[i].tolist()))

    return Shown(tuple(map(of, spread.tolist())), tuple(map(of, quiet.tolist())))


def interpret(explainer: Explainer, seen: Shown, share: float = 0.5, seed: int = 0) -> Interpretation:
    """Explain from the first `share` of the active texts, score on the rest and the silent ones.

    ValueError: fewer than 4 active or 2 silent texts.
    """
    if len(seen.active) < 4 or len(seen.silent) < 2:
        raise ValueError(
            f"{len(seen.active)} active and {len(seen.silent)} silent texts: at least 4 and 2 are needed; look at more tokens"
        )
    cut = min(max(1, round(len(seen.active) * share)), len(seen.active) - 2)
    explanation = explainer.explain(seen.active[:cut])
    rest = Shown(seen.active[cut:], seen.silent)
    return Interpretation(
        explanation, detection(explainer, explanation, rest, seed), fuzzing(explainer, explanation, rest, seed)
    )


def detection(explainer: Explainer, explanation: str, seen: Shown, seed: int = 0) -> Score:
    """Balanced accuracy of telling texts in which the latent speaks from others, by the explanation. Higher is better.

    Bills et al. 2023; Paulo et al. 2024 (2410.13928), sec. 3.3.1. (hits / active + rejections / silent) / 2; chance is 1/2. Texts
    are shown in random order. Answers that cannot be read are left out. Jackknife over texts.
    """
    shuffled = _mixed([(e.tokens, True) for e in seen.active] + [(e.tokens, False) for e in seen.silent], seed)
    return _balanced("detection", explainer.detect(explanation, [t for t, _ in shuffled]), [on for _, on in shuffled])


def fuzzing(explainer: Explainer, explanation: str, seen: Shown, seed: int = 0) -> Score:
    """Balanced accuracy of telling right marks from wrong ones, by the explanation. Higher is better.

    Paulo et al. 2024 (2410.13928), sec. 3.3.2: in every other active text the tokens at which the latent speaks are marked, in
    the others as many at which it does not. A text that is loud in more than half of its tokens keeps its marks.
    """
    draw = random.Random(seed)
    texts: list[tuple[Marked, bool]] = []
    for number, e in enumerate(seen.active):
        on = [i for i, x in enumerate(e.loud) if x != 0]
        off = [i for i, x in enumerate(e.loud) if x == 0]
        right = number % 2 == 0 or len(off) < len(on)
        marks = on if right else draw.sample(off, len(on))
        texts.append((Marked(e.tokens, tuple(i in marks for i in range(len(e.tokens)))), right))
    shuffled = _mixed(texts, seed)
    return _balanced("fuzzing", explainer.fuzz(explanation, [t for t, _ in shuffled]), [on for _, on in shuffled])


def shuffled_control(
    explainer: Explainer, seen: Mapping[int, Shown], explanations: Mapping[int, str], seed: int = 0
) -> Score:
    """Mean detection when each latent gets the explanation of another: chance, by which the real ones are to be judged.

    Higher is better, as of `detection`; near 1/2 unless latents overlap. Interval over latents.
    """
    latents = sorted(explanations)
    if len(latents) < 2:
        raise ValueError(f"{len(latents)} explanations: to exchange them takes at least 2")
    order = _mixed(latents, seed)
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    each = [detection(explainer, explanations[other[n]], seen[n], seed).value for n in latents]
    return Score("shuffled", mean(torch.tensor(each, dtype=torch.float64)), higher_is_better=True)


def _mixed(items: list, seed: int) -> list:
    items = list(items)
    random.Random(seed).shuffle(items)
    return items


def _balanced(name: str, votes: Sequence[Vote], truth: Sequence[bool]) -> Score:
    pairs = [(v, t) for v, t in zip(votes, truth, strict=True) if v is not None]
    if not any(t for _, t in pairs) or all(t for _, t in pairs):
        raise ValueError(f"{name}: of {len(votes)} answers {len(pairs)} can be read, none of one of the two kinds")
    said, real = (torch.tensor(side) for side in zip(*pairs, strict=True))

    def balance(rows: Tensor) -> float:
        s, r = said[rows], real[rows]
        rates = [(s == r)[r == kind].double().mean() for kind in (True, False)]
        return torch.stack(rates).nan_to_num(0.5).mean().item()

    return Score(name, jackknife(balance, len(pairs)), higher_is_better=True)
