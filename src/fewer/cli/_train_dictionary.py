"""fewer train features/...: a dictionary, learnt on what a model says at some sites."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewer.core import Budget

from ._print import note

if TYPE_CHECKING:
    from fewer.features import Sparsifier

BATCH = 1024  # tokens in a step


@dataclass(frozen=True)
class Wanted:
    """What the options of dictionaries say."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    latents: int | None
    tokens: int
    rate: float | None
    seed: int
    skip: bool


def dictionary(
    sparsifier: "Sparsifier",
    kept: Budget,
    model: str,
    out: Path,
    data: tuple[str, int],
    wanted: Wanted,
    device: str,
    force: bool,
    told: Callable[[Any], None],
) -> str:
    """Learn one and write it; what to do with it then."""
    from fewer.dictionaries import save
    from fewer.models import find_taps, locate, open_model, tokenizer_of
    from fewer.train import Lesson, Live, Pupil, activations, learn

    if not wanted.reads:
        raise ValueError("--site is missing: say what the dictionary reads, such as --site layers.4")
    tokenizer = tokenizer_of(locate(model))
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer: what is learnt here is learnt on text")
    opened, _ = open_model(model, device)
    reads, writes = find_taps(opened, wanted.reads), find_taps(opened, wanted.writes)
    text = _windows(data, tokenizer, wanted)
    sites = {str(tap): activations(opened, [tap], text[:1, :2]).shape[-1] for tap in dict.fromkeys([*reads, *writes])}
    names = tuple(map(str, reads)), tuple(map(str, writes))
    width = sum(sites[name] for name in names[0])
    pupil = Pupil(sparsifier, kept, wanted.latents or 8 * width, wanted.seed, *names)
    taps = find_taps(opened, [*sites])
    source = Live(opened, taps, text, BATCH, frozenset(tokenizer.all_special_ids), seed=wanted.seed)
    lesson = Lesson(max(1, wanted.tokens // BATCH), wanted.rate, skip=wanted.skip, seed=wanted.seed)
    note(
        f"{pupil.latents} latents for {', '.join(names[0])}: {lesson.steps} steps of {BATCH} tokens, {text.numel()} different ones"
    )
    about = {"model": model, "data": data[0], "length": data[1]}
    (learnt,) = learn([pupil], source, lesson, sites, out=out, told=told, about=about)
    save(learnt, out, force=force)
    return f"written: {out}; look at it with `fewer explore {out}`"


def _windows(data: tuple[str, int], tokenizer: Any, wanted: Wanted) -> Any:
    """As many windows as are asked for, or as there are, of the parts that no test reads."""
    from fewer.data import corpus, every_window

    source, length = data
    documents = [*corpus(source, "calibration"), *corpus(source, "validation")]
    return every_window(documents, tokenizer, length, -(-wanted.tokens // length), wanted.seed)
