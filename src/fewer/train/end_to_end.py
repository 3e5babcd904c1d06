"""Learning a dictionary end to end: spliced into the model, whose predictions are to stay what they were."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.features import Dictionary, Sparsifier
from fewer.measure.quality import at_rest, device_of
from fewer.models.rewritten import rewritten
from fewer.models.tap import Tap, activations, all_but, find_taps, tapped

from .aims import Aim, Kl, Run
from .dictionaries import FIRST, HELD, taught
from .known import Known
from .loop import Told
from .one import One
from .pupil import PLAIN, Lesson, Pupil
from .source import Windows

KL = Kl()


def learn_through(
    pupil: Pupil,
    model: nn.Module,
    windows: Windows,
    aim: Aim = KL,
    lesson: Lesson = PLAIN,
    start: Dictionary | None = None,
    leave: frozenset[int] = frozenset(),
    out: str | Path | None = None,
    told: Told | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
    unseen: Windows | None = None,
    force: bool = False,
) -> Dictionary:
    """Learn what lowers `aim` of the frozen model that goes on with what the dictionary writes (Braun et al. 2024, 2405.12241):

        loss = KL(model || model with the dictionary) + what the sparsifier adds,

    or another `Aim`: `Ce()`, `Downstream(sites)`. Nothing asks for a good reconstruction, and it will be a worse one. The dead
    are taught what is left over at the site itself, as in `learn`, which the paper does not do; sparsifiers with views of
    growing size (Matryoshka, HierarchicalTopK) have only their whole taught. Budgets take the place of the paper's L1.

    `start` is a dictionary to begin with, usually one that `learn` gave at the same sites, of the same size; from nothing it
    takes several times the tokens. Of the model no number is changed and no gradient kept. Tokens in `leave` are not replaced.
    Means, scales, seeds, `out`, `told`, `about`, thresholds and resuming are as in `learn`; a step is one batch of `windows`.
    ValueError: no such site, or one that is written before all that is read is heard; a start of another shape.
    """
    reads, writes, later = (find_taps(model, names) for names in (pupil.reads, pupil.writes or pupil.reads, aim.sites))
    if pupil.sparsifier.feels:
        raise ValueError(f"{pupil.sparsifier.name} wants the loss' slope beside each row, which `learn` streams")
    if not reads:
        raise ValueError("the dictionary reads no site: name one, as in Pupil(..., reads=('layers.4',))")
    taps = list(dict.fromkeys([*reads, *writes]))
    real, tokens = all_but(leave), windows.windows.shape[1] * windows.batch
    rows = torch.cat([_rows(model, taps, ids, real(ids)) for ids in windows.first(FIRST)])
    known = Known.of(rows, {str(tap): _width(model, tap, windows) for tap in taps})
    whole = replace(pupil, reads=tuple(map(str, reads)), writes=tuple(map(str, writes)))
    one = One(whole, known, lesson, tokens, rows=rows)
    if start is not None:
        begin_from(one, start)

    def loss(ids: Tensor, progress: float) -> Tensor:
        return _loss(one, model, taps, dict(zip(aim.sites, later, strict=True)), aim, ids, real(ids), progress)

    begun = one.atoms().detach().double().sum().item()
    key = f"{one.pupil} through {aim} {known.mean.double().sum().item()!r} {begun!r}"
    with _unmoved(model):
        taught([one], loss, windows, lesson, key, out, told, force=force)
    count = HELD if type(pupil.sparsifier).settle is not Sparsifier.settle else 1
    later = windows.first(count, lesson.steps) if unseen is None else unseen.first(count)
    held = torch.cat([_rows(model, taps, ids, real(ids)) for ids in later])
    return one.done(known.seen(held), {**about, "tokens": lesson.steps * tokens, "aim": repr(aim)}, [])


def begin_from(one: One, d: Dictionary) -> None:
    """Put a dictionary where one is learnt: mean and scales are taken out of its matrices, its rows brought to length one.

    The inverse of `One.done`, but for rows that had lengths of their own: the codes of these are scaled. ValueError: another
    shape or sparsifier.
    """
    t, p, k = one.tensors, one.pupil, one.known
    mean, scale = k.of_sites(k.mean, p.reads), k.of_sites(k.scale, p.reads)
    mean_out, scale_out = k.of_sites(k.mean, p.writes), k.of_sites(k.scale, p.writes)
    d = d.to(k.mean.device).to(torch.float32)
    rows = d.decoder / scale_out
    length = rows.norm(dim=1).clamp(min=1e-12)
    found = {
        "encoder": d.encoder * scale * length[:, None],
        "encoder_bias": (d.encoder_bias + d.encoder @ mean) * length,
        "decoder": rows / length[:, None],
        "decoder_bias": (d.decoder_bias - mean_out + (0 if d.skip is None else d.skip @ mean)) / scale_out,
        **({} if d.skip is None else {"skip": d.skip * scale / scale_out[:, None]}),
        **{f"own_{name}": x for name, x in d.own.items() if f"own_{name}" in t},
    }
    wants = {name: tuple(x.shape) for name, x in t.items() if x.requires_grad}
    has = {name: tuple(x.shape) for name, x in found.items()}
    if type(d.sparsifier) is not type(p.sparsifier) or wants != has:
        raise ValueError(f"it starts as {d.sparsifier.name} {has}, and {p.sparsifier.name} {wants} is to be learnt")
    with torch.no_grad():
        for name, x in found.items():
            t[name].copy_(x)


def _loss(
    one: One,
    model: nn.Module,
    taps: Sequence[Tap],
    later: Mapping[str, Tap],
    aim: Aim,
    ids: Int[Tensor, "windows length"],
    real: Tensor,
    progress: float,
) -> Tensor:
    """One run as the model is, one with the dictionary, and how far they are apart."""
    known, pupil, every = one.known, one.pupil, [*dict.fromkeys([*taps, *later.values()])]
    with at_rest(model), tapped(model, every) as heard:
        logits = model(input_ids=ids, use_cache=False).logits
        own = Run(ids, logits, {name: heard[tap] for name, tap in later.items()}, real)
        rows = known.seen(torch.cat([heard[tap].float() for tap in taps], -1)[real])
    said, cost = one.told(rows, progress)
    plain = said * known.of_sites(known.scale, pupil.writes) + known.of_sites(known.mean, pupil.writes)

    def say(x: Tensor) -> Tensor:
        return plain.new_zeros(*ids.shape, plain.shape[1]).masked_scatter(real[..., None], plain)

    reads, writes = ([Tap.read(name) for name in names] for names in (pupil.reads, pupil.writes))
    with (
        at_rest(model),
        torch.enable_grad(),
        rewritten(model, reads, writes, say, lambda _: real),
        tapped(model, [*later.values()]) as heard,
    ):
        logits = model(input_ids=ids, use_cache=False).logits
        run = Run(ids, logits, {name: heard[tap] for name, tap in later.items()}, real)
    left = known.of_sites(rows, pupil.writes) - said.detach()
    return aim.of(run, own) + cost + one.of_the_dead(rows, left)


def _rows(model: nn.Module, taps: Sequence[Tap], ids: Tensor, real: Tensor) -> Float[Tensor, "n dim"]:
    """What the sites say, side by side, where the dictionary speaks."""
    with at_rest(model):
        return activations(model, taps, ids)[real.to(device_of(model))]


def _width(model: nn.Module, tap: Tap, windows: Windows) -> int:
    return _rows(model, [tap], windows.windows[:1, :2], torch.ones(1, 2, dtype=torch.bool)).shape[1]


@contextlib.contextmanager
def _unmoved(model: nn.Module) -> Iterator[None]:
    """Gradients pass through the model and none is kept for its parameters."""
    asked = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in asked:
            p.requires_grad_(False)
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)
