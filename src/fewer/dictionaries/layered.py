"""One dictionary for several layers: what the layers say, the dictionary at each of them, and how it serves each."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from fewer.features import Dictionary
from fewer.measure import LayerSpread, layer_cosine, layer_spread, reconstruction
from fewer.measure.quality import at_rest, device_of
from fewer.models.tap import Tap, activations, all_but, find_taps


def layered(dictionary: Dictionary, sites: Sequence[str]) -> Dictionary:
    """The same as one for all of these sites: it names none as its own, and `about["layers"]` says which it was learnt on."""
    return replace(dictionary, reads=(), writes=(), about={**dictionary.about, "layers": [*sites]})


def at_layers(dictionary: Dictionary) -> list[Dictionary]:
    """The dictionary at each of its layers, to be spliced in and judged there; itself if it is for one site.

    >>> from fewer.core import budget
    >>> from fewer.features.top_k import TopK
    >>> w = torch.eye(2)
    >>> d = layered(Dictionary(TopK(), budget("1"), w, torch.zeros(2), w, torch.zeros(2)), ["layers.0", "layers.1"])
    >>> [at.reads for at in at_layers(d)]
    [('layers.0',), ('layers.1',)]
    """
    layers = dictionary.about.get("layers")
    if dictionary.reads or not isinstance(layers, list | tuple):
        return [dictionary]
    return [replace(dictionary, reads=(str(site),), writes=(str(site),)) for site in layers]


def heard(
    model: nn.Module, taps: Sequence[Tap], windows: Int[Tensor, "count length"], leave: Collection[int] = ()
) -> Iterator[Float[Tensor, "layers n dim"]]:
    """What all sites say of each window's tokens but those in `leave`. ValueError: sites of different widths."""
    real = all_but(leave)
    for ids in windows.split(1):
        with at_rest(model):
            rows = activations(model, taps, ids)[real(ids).to(device_of(model))]
        if rows.shape[1] % len(taps):
            raise ValueError(f"{', '.join(map(str, taps))}: {rows.shape[1]} numbers a token are not of equal widths")
        yield rows.view(len(rows), len(taps), -1).transpose(0, 1)


def layer_report(
    dictionary: Dictionary, model: nn.Module, windows: Int[Tensor, "count length"], leave: Collection[int] = ()
) -> tuple[list[dict[str, Any]], LayerSpread]:
    """How one dictionary serves each of its layers, and where its latents speak (Lawson et al. 2024, 2409.04185).

    A row a layer: `site`, `l0`, `fvu` and `explained` there alone, `share` of all that is said, and `cosine`, the mean cosine
    with what the next layer says of the same token. ValueError: a dictionary that is not for several layers (see `layered`).
    """
    at = at_layers(dictionary)
    if len(at) < 2:
        raise ValueError(
            "this dictionary is for one site: give one of several layers (`layered`, fewer train --groups)"
        )
    taps, dictionary = find_taps(model, [d.reads[0] for d in at]), dictionary.to(device_of(model))
    pieces = list(heard(model, taps, windows, leave))
    codes = [[dictionary.encode(x) for x in window] for window in pieces]
    spread, alike = layer_spread(codes), layer_cosine(pieces)
    rows = []
    for layer, tap in enumerate(taps):
        found = reconstruction(
            (x[layer], dictionary.decode(z[layer]), z[layer]) for x, z in zip(pieces, codes, strict=True)
        )
        row = {"site": str(tap), "l0": found.l0.value, "fvu": found.fvu.value, "explained": found.explained.value}
        row["share"] = float(spread.mass[layer].sum() / spread.mass.sum())
        rows.append(row | ({"cosine": float(alike[layer, layer + 1])} if layer + 1 < len(taps) else {}))
    return rows, spread
