"""What gates learn from data before they act: the statistics of their maps, thresholds, and budgets for each place."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fewer.activations import Cut, Remembering
from fewer.calibrate import Quantiles, Stats
from fewer.calibrate.held import read_parts, write_parts
from fewer.calibrate.stats import see
from fewer.core import Budget
from fewer.measure.quality import at_rest
from fewer.models import stored_dtype

from .gates import Place, scores
from .gating import Gating
from .look import Progress, observe
from .walk import Device, Walk


def learn(
    model: nn.Module, engine: Gating, data: Tensor | None, progress: Progress | None = None, device: Device = None
) -> None:
    """Give each place of an engine its statistics, its budget and its threshold, block by block of the dense model.

    ValueError, before any work: data that somebody asks for and that are missing or too short.
    """
    for p in engine.places:
        p.cut = _from_file(p)
        _of_weights(p)
    asking = [p for p in engine.places if _asks(p)]
    if not asking:
        return
    _enough(asking[0], data)
    engine.acting = ()
    try:
        with at_rest(model), Walk(model, data, stored_dtype(model), device=device) as walk:
            walk.with_rest([p.site for p in asking])
            for number, block in enumerate(walk.blocks):
                if progress:
                    progress(f"calibrating {block}", number, len(walk.blocks))
                here = [p for p in asking if walk.number(p.site) == number]
                with walk.on(number), walk.near(number):
                    _block(walk, number, here, engine, data.shape[1])
                    if number < len(walk.blocks) - 1:
                        walk.advance(number)
    finally:
        engine.acting, engine.hear = None, None


def _asks(p: Place) -> bool:
    return _ranks(p) or any(k.of_input for k in p.gate.needs) or _learns(p)


def _ranks(p: Place) -> bool:
    """Whether its threshold or its budget is to be found; one that a file holds was found with both."""
    return p.cut is None and bool(p.step.correctors or p.step.allocator)


def _learns(p: Place) -> bool:
    return isinstance(p.gate, Remembering) and p.gate.learns


def _enough(p: Place, data: Tensor | None) -> None:
    if data is None:
        raise ValueError(f"'{p.step}' is fitted on text: give data, [windows, length] token ids")
    if not len(data) or (not data.is_floating_point() and data.ndim == 2 and data.shape[1] < 2):
        raise ValueError(
            f"'{p.step}': data of {tuple(data.shape)} are less than one window of two tokens; give more text"
        )


def _of_weights(p: Place) -> None:
    """The statistics of the map alone."""
    w = p.told.read()
    p.stats = Stats({k: k.of(w) for k in p.gate.needs if not k.of_input})
    for kind, stat in p.stats.items():
        if not stat.finite:
            raise ValueError(f"{p.told.name}: NaN or infinite weights ({kind.__name__}); is the checkpoint whole?")


def _block(walk: Walk, number: int, here: Sequence[Place], engine: Gating, length: int) -> None:
    """All that the places of a block learn."""
    wanted = [(p.told, tuple(k for k in p.gate.needs if k.of_input)) for p in here]
    found = observe(walk, number, [(s, kinds) for s, kinds in wanted if kinds])
    for p in here:
        p.stats |= found.get(p.told.name, Stats())
    ranking = [p for p in here if _ranks(p)]
    cutting = [p for p in ranking if p.step.correctors]
    ranked = {p: Quantiles.of(p.site.read()) for p in cutting}
    texts: dict[Place, list[Tensor]] = {p: [] for p in here if _learns(p)}

    def hear(p: Place, x: Tensor) -> None:
        if p in ranked:
            see(ranked[p], scores(p, x))
        if p in texts:
            texts[p].append(x.detach().reshape(-1, length, x.shape[-1]))

    if cutting or texts:
        engine.hear = hear
        walk.listen(number)
        engine.hear = None
    for p, heard in texts.items():
        assert isinstance(p.gate, Remembering)
        p.learnt = p.gate.fit(torch.cat(heard))

    def under(p: Place, budget: Budget) -> None:
        p.budget = budget
        for cut in p.step.correctors:
            assert isinstance(cut, Cut)
            p.cut = None if budget.whole else cut.fit(ranked[p], budget, p.site.shape[1])

    for p in ranking:
        under(p, p.budget)
    for allocator in dict.fromkeys(p.step.allocator for p in ranking if p.step.allocator):
        some = [p for p in ranking if p.step.allocator == allocator]
        error = _error(walk, number, some, under, engine)
        for p, budget in zip(
            some, allocator.allocate(some[0].step.budget, [p.share for p in some], error), strict=True
        ):  # type: ignore[attr-defined]
            under(p, budget)


def _error(
    walk: Walk, number: int, some: Sequence[Place], under: Callable[[Place, Budget], None], engine: Gating
) -> Callable[[Sequence[Budget]], float]:
    """What a block's answer loses if these places are under other budgets and all others dense."""
    dense = [said for _, said in walk.through(number)]
    length = sum(said.float().square().sum() for said in dense)

    def error(budgets: Sequence[Budget]) -> float:
        for p, budget in zip(some, budgets, strict=True):
            under(p, budget)
        engine.acting = some
        try:
            said = [new for _, new in walk.through(number)]
        finally:
            engine.acting = ()
        wrong = sum((a.float() - b.float()).square().sum() for a, b in zip(said, dense, strict=True))
        return float((wrong / length).sqrt())

    return error


def _from_file(p: Place) -> float | None:
    """The threshold that a file holds for a place. ValueError: it holds those of others."""
    file = next((c.file for c in p.step.correctors if getattr(c, "file", "")), None)
    if file is None:
        return None
    held = read_parts(file)
    if p.name not in held:
        raise ValueError(f"{file} holds no threshold for {p.name}, but {', '.join(sorted(held)[:3])} ...; fit it anew")
    return float(held[p.name]["cut"])


def write_cuts(engine: Gating, path: str | Path) -> Path:
    """The thresholds of an engine as the file that `activations/threshold(file=...)` reads."""
    cuts = {p.name: {"cut": torch.tensor(p.cut, dtype=torch.float64)} for p in engine.places if p.cut is not None}
    if not cuts:
        raise ValueError("no place has a threshold: write '+ threshold' after the budget")
    write_parts(path, cuts, {})
    return Path(path)
