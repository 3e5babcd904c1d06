"""From a dictionary, a model and windows of tokens to an index of features, in one pass."""

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fewer.features import Dictionary
from fewer.models.tap import activations, all_but, find_taps

from .spool import spooled
from .store import Index

AT_ONCE = 8  # windows

Told = Callable[[int, int], None]


def indexed(
    dictionary: Dictionary,
    model: nn.Module,
    windows: Int[Tensor, "count length"],
    out: str | Path,
    leave: Collection[int] = (),
    told: Told | None = None,
) -> Index:
    """The index of what each feature says of each token, in the directory `out`; tokens in `leave` are left out.

    A killed run goes on where it was; an index that is there already, of the same dictionary and tokens, is taken as it is.
    `told` hears how many windows are done, and of how many. ValueError: the sites do not fit the dictionary.
    """
    taps = find_taps(model, dictionary.reads)
    if not taps:
        raise ValueError("the dictionary does not say which sites it reads: give it `reads`, such as ('layers.4',)")
    about = {**_about(dictionary), "leave": sorted(leave)}
    spool = spooled(out, dictionary.latents, windows, about)
    if isinstance(spool, Index):
        return spool
    real = all_but(leave)
    done = spool.done // windows.shape[1]
    with torch.no_grad():
        for some in windows[done:].split(AT_ONCE):
            rows = activations(model, taps, some).flatten(0, 1)
            if rows.shape[1] != dictionary.encoder.shape[1]:
                sites, wants = ", ".join(dictionary.reads), dictionary.encoder.shape[1]
                raise ValueError(
                    f"{sites}: {rows.shape[1]} numbers a token, the dictionary reads {wants}; another model?"
                )
            spool.add(dictionary.encode(rows.to(dictionary.encoder)), real(some).flatten())
            done += len(some)
            if told:
                told(done, len(windows))
    return spool.finish()


def _about(dictionary: Dictionary) -> dict[str, object]:
    """What the index is of: the sites, the rule, and a sum that another training would not share."""
    spoken = sum(float(t.double().sum()) for t in dictionary.tensors().values())
    rule = f"{dictionary.sparsifier!r} {dictionary.budget}"
    return {"reads": list(dictionary.reads), "writes": list(dictionary.writes), "rule": rule, "sum": repr(spoken)}
