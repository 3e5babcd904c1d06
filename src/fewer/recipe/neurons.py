"""The hidden neurons of a model, layer by layer: who is on, who stays on, and what a token would have to read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fewer.core import Site
from fewer.measure import (
    Activity,
    Estimate,
    Laziness,
    Reading,
    Reuse,
    Score,
    activity,
    nll,
    reads,
    reuse,
    tail_cut,
    tail_score,
    total,
)
from fewer.measure.tail import on, output_size
from fewer.models import sites
from fewer.models.groups import mlps
from fewer.models.tap import Tap, activations, hooked

MEMORY = 1 << 29  # bytes of hidden neurons held at a time: as many layers are heard in one run as fit
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Layer:
    """One MLP's hidden neurons, of which those count as on whose output is not below `cut`."""

    name: str
    cut: float
    activity: Activity
    reuse: Reuse
    tail: Score
    reading: tuple[Reading, ...]

    def as_dict(self) -> dict[str, Any]:
        """The row of a table: shares, with the ends of their intervals."""
        each = {
            "density": self.activity.density,
            "cett": self.tail,
            "jaccard": self.reuse.jaccard,
            "run": self.reuse.run,
        }
        row: dict[str, Any] = {"layer": self.name, "neurons": len(self.activity.on), "cut": self.cut}
        for field, score in each.items():
            e = score.estimate
            row |= {field: e.value, f"{field}_low": e.low, f"{field}_high": e.high}
        cold = self.activity.cold()
        return row | {
            "median": self.activity.token_density(0.5), "busiest": self.activity.token_density(0.95), "hot": self.activity.hot(),
            "cold": cold.value, "cold_low": cold.low, "cold_high": cold.high, "chance": self.reuse.chance,
            "read": total(self.reading).value, "dense": sum(r.bytes for r in self.reading),
        }  # fmt: skip


def hidden_sites(model: nn.Module) -> list[Site]:
    """The maps that read hidden neurons. ValueError: the model has none that is a module of its own."""
    found = [s for s in sites(model, "down") if s.index is None and s.part is None]
    if not found:
        raise ValueError(f"{type(model).__name__} has no MLP whose hidden neurons can be heard")
    return found


def neurons(
    model: nn.Module, fit: Int[Tensor, "some length"], tokens: Int[Tensor, "windows length"], error: float = 0.2,
    stored: torch.dtype = torch.bfloat16, progress: Progress | None = None,
) -> list[Layer]:  # fmt: skip
    """Measure the hidden neurons of every MLP on `tokens`, after cuts of the same tail error were found on `fit`.

    A token reads, if it knew which neurons are on: where nothing is gated the first map and the columns of the second; where
    something is, the gate, and of the other two maps what is on; stored as `stored`.
    """
    found = hidden_sites(model)
    layers, written = [], {g.reader.name: g.writers for g in mlps(model)}
    for group in _groups(found, (len(fit) + len(tokens)) * tokens.shape[1]):
        learnt, heard = _heard(model, group, fit), _heard(model, group, tokens)
        for site, some, h in zip(group, learnt, heard, strict=True):
            down = site.read().float()
            cut = tail_cut([some], down, error)
            is_on = on(h, down, cut)
            active = activity([is_on])
            tail = tail_score(h.split(1), down, cut)
            layers.append(
                Layer(
                    site.name,
                    cut,
                    active,
                    reuse([is_on]),
                    tail,
                    _reading(written.get(site.name, ()), site, active.density.estimate, stored),
                )
            )
            if progress:
                progress(len(layers), len(found))
    return layers


def tail_for_rise(
    model: nn.Module,
    fit: Int[Tensor, "some length"],
    tokens: Int[Tensor, "windows length"],
    rise: float,
    steps: int = 6,
) -> float:
    """The tail error, the same in all layers, at which the mean loss on `tokens` rises by `log(1 + rise)`: PPL-p% of
    Sparsing Law (section 3), by bisection over 0..1 to `2 ** -steps`. ValueError: not even the smallest error tried is allowed.
    """
    found = hidden_sites(model)
    most = nll(model, tokens).mean().item() + torch.log1p(torch.tensor(rise)).item()
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        cuts = [
            tail_cut([h], s.read().float(), middle)
            for group in _groups(found, fit.numel())
            for s, h in zip(group, _heard(model, group, fit), strict=True)
        ]
        with cut_off(model, found, cuts):
            low, high = (middle, high) if nll(model, tokens).mean().item() <= most else (low, middle)
    if low == 0:
        raise ValueError(
            f"perplexity rises by more than {rise:.2%} at a tail error of {high:.3g}: ask for a larger rise"
        )
    return low


def cut_off(model: nn.Module, found: Sequence[Site], cuts: Sequence[float]) -> Any:
    """While this is open, hidden neurons whose output is below their layer's cut say nothing."""

    def change(site: Site, cut: float) -> Callable[[Tensor], Tensor]:
        reach = site.read()
        return lambda h: torch.where(output_size(h, reach) < cut, 0, h)

    return hooked(model, {_tap(s): change(s, c) for s, c in zip(found, cuts, strict=True)})


def laziness(layers: Sequence[Layer]) -> Laziness:
    """The density of all layers in order."""
    return Laziness(tuple(layer.activity.density for layer in layers))


def bytes_a_token(layers: Sequence[Layer]) -> tuple[Score, float]:
    """What a token reads of all MLPs if it knows who is on, and what it reads of them densely."""
    every = [r for layer in layers for r in layer.reading]
    return total(every), float(sum(r.bytes for r in every))


def _tap(site: Site) -> Tap:
    return Tap(site.name, hears=True)


def _groups(found: Sequence[Site], tokens: int) -> Iterator[list[Site]]:
    group: list[Site] = []
    for site in found:
        if group and sum(s.read().shape[1] for s in [*group, site]) * tokens * 4 > MEMORY:
            yield group
            group = []
        group.append(site)
    yield group


def _heard(model: nn.Module, group: Sequence[Site], ids: Tensor) -> list[Tensor]:
    widths = [s.read().shape[1] for s in group]
    pieces = [activations(model, [_tap(s) for s in group], some).split(widths, dim=-1) for some in ids.split(4)]
    together = (torch.cat(each) for each in zip(*pieces, strict=True))
    return [h.reshape(*ids.shape, -1) for h in together]  # some models put all tokens in one row before their MLP


def _reading(beside: Sequence[Site], site: Site, density: Estimate, stored: torch.dtype) -> tuple[Reading, ...]:
    whole = Estimate(1.0, 1.0, 1.0, density.n)
    gated = any(s.role == "gate" for s in beside)
    maps = [(s, density if gated and s.role == "up" else whole) for s in beside] + [(site, density)]
    return tuple(reads(d, *s.read().shape, stored) for s, d in maps)
