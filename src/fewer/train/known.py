"""Where activations lie: what a dictionary must not have to learn."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.models.tap import GRADIENT


@dataclass(frozen=True, eq=False)
class Known:
    """The mean of the data, and a scale for each site; which columns of a batch are whose.

    >>> known = Known.of(torch.tensor([[0.0, 10.0], [4.0, 30.0]]), {"a": 1, "b": 1})
    >>> known.seen(torch.tensor([[4.0, 40.0]])), known.of_sites(torch.tensor([[1.0, 2.0]]), ["b"])
    (tensor([[1., 2.]]), tensor([[2.]]))
    """

    mean: Float[Tensor, " dim"]
    scale: Float[Tensor, " dim"]  # E|x - mean|^2 of a site is its width, after division
    sites: Mapping[str, slice]

    @classmethod
    def of(cls, rows: Float[Tensor, "n dim"], widths: Mapping[str, int]) -> "Known":
        """From some rows, in float64. ValueError: not finite, widths that do not add up, a site that never changes."""
        if not rows.isfinite().all():
            raise ValueError("an activation is NaN or infinite: nothing can be learnt from these batches")
        if sum(widths.values()) != rows.shape[1] or min(widths.values()) < 1:
            raise ValueError(
                f"sites of {dict(widths)} columns: batches have {rows.shape[1]}, which they must share out"
            )
        mean, variance = rows.double().mean(0), rows.double().var(0, correction=0)
        ends = [0, *itertools.accumulate(widths.values())]
        sites = {name: slice(a, b) for name, a, b in zip(widths, ends, ends[1:], strict=False)}
        for name, at in sites.items():
            if name.endswith(GRADIENT):  # a slope has no place and no scale of its own
                mean[at], variance[at] = 0.0, 1.0
        flat = [name for name, at in sites.items() if not variance[at].sum() > 0]
        if flat:
            raise ValueError(f"site {flat[0]!r} says the same always: there is nothing to learn")
        scale = torch.cat([variance[at].mean().sqrt().expand(at.stop - at.start) for at in sites.values()])
        return cls(mean.float(), scale.float(), sites)

    def seen(self, batch: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        """A batch about the mean, and scaled."""
        return (batch.float() - self.mean.to(batch.device)) / self.scale.to(batch.device)

    def of_sites(self, t: Float[Tensor, "*n dim"], names: Sequence[str]) -> Float[Tensor, "*n some"]:
        """The columns of some sites, side by side in their order."""
        return t if [*names] == [*self.sites] else torch.cat([t[..., self.sites[name]] for name in names], -1)
