"""What the nodes of a circuit speak of: their effects beside what the index on disk knows of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from .circuits import Circuit
from .facts import Example, Pair, Show, examples, heard
from .store import Index

LOUDEST = Show(quantiles=((1.0, 3),))


@dataclass(frozen=True)
class Described:
    """A latent of a circuit; `position` is None where nodes are of all positions, `count` how often it speaks in the index."""

    site: str
    position: int | None
    latent: int
    effect: float
    count: int
    heard: Sequence[Pair]
    examples: Sequence[Example]


def described(
    effects: Circuit, indexes: Mapping[str, Index], count: int = 20, show: Show = LOUDEST
) -> Iterator[Described]:
    """The `count` latents with the largest effects of either sign, largest first, with what each is heard on.

    `indexes` by site, as `indexed` makes them for the page and for explainers; errors of dictionaries are no latents and are
    left out. ValueError: a site without an index, or one of another dictionary.
    """
    for site, nodes in effects.items():
        if site not in indexes:
            raise ValueError(f"site {site!r} has no index; there are: {', '.join(indexes) or 'none'}")
        if indexes[site].features != nodes.latents.shape[1]:
            raise ValueError(
                f"site {site!r}: its index is of {indexes[site].features} features, the circuit has {nodes.latents.shape[1]}"
            )
    flat = torch.cat([nodes.latents.abs().flatten() for nodes in effects.values()])
    ends = torch.tensor([nodes.latents.numel() for nodes in effects.values()]).cumsum(0)
    names = [*effects]
    for at in flat.argsort(descending=True, stable=True)[:count].tolist():
        number = int(torch.searchsorted(ends, at, right=True))
        site, table = names[number], effects[names[number]].latents
        row, latent = divmod(at - int(ends[number]) + table.numel(), table.shape[1])
        index = indexes[site]
        yield Described(
            site,
            row if len(table) > 1 else None,
            latent,
            table[row, latent].item(),
            len(index.of(latent)[0]),
            heard(index, latent, show.tokens),
            examples(index, latent, show),
        )
