"""fewer train attention/... and activations/...: what is read, from what the frozen model reads; how it is read or computed, through the model's loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewer.core import Budget, Method

from ._bar import Bar, both, loss
from ._print import lines, note
from ._train_masks import opened


def attention(
    pupil: Method,
    kept: Budget,
    model: str,
    out: Path,
    data: tuple[str, int, int],
    run: tuple[int, float, int, int],
    batch: int,
    where: str,
    last: tuple[bool, str | None],
    device: str,
    force: bool,
    json: bool,
    board: Callable[[Any], None] | None,
) -> None:
    """Learn and write it, and say what to write in a step then.

    `data` is the corpus, how many windows, and how long they are; `run` the steps, the rate, what a step accumulates, the seed;
    `last` whether the model learns too, and the activation to put into its MLPs first.
    """
    from fewer.activations import Gate, Predictor
    from fewer.attention import Mixer
    from fewer.core.spell import spell
    from fewer.models.activation import put_activation
    from fewer.recipe import apply
    from fewer.train import Cosine, Training, Tuned, learner_of

    whole, acts = last[0] or (isinstance(pupil, Gate) and not isinstance(pupil, Predictor)), last[1]
    ends = whole or isinstance(pupil, Mixer)
    teacher, (steps, rate, accumulate, seed) = None if ends else learner_of(type(pupil)), run
    if (out.suffix == ".safetensors") == whole:
        raise ValueError(f"{out}: {'a directory' if whole else 'its name must end in .safetensors'}")
    if acts and not whole:
        raise ValueError(f"--activation {acts}: another activation is learnt with the model's weights; write --whole")
    how = Training(steps, Cosine(rate, rate / 10), accumulate, seed=seed)
    with Bar(json) as bar:
        told = both(board, (lambda row: lines([row])) if json else loss(bar("learning")))
        dense, tokens = opened(model, device, data, seed)
        if acts:
            put_activation(dense, acts)
        if teacher:
            job = teacher(dense.float(), out, where, how, told, force)
        else:
            job = Tuned(dense, out, apply, where, how, whole, told=told, force=force)
        learnt = job.fit(pupil, kept, list(tokens.split(batch)))
    if whole:
        from fewer.models import locate, tokenizer_of

        tokenizer_of(locate(model)).save_pretrained(out)
    of = f" on {out}" if whole else ""
    note(f'written: {out}; use it{of} as "{spell(learnt)} {kept}{"" if where == "*" else f" @ {where}"}"')
