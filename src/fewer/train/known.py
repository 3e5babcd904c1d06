"""Where activations lie: what a dictionary must not have to learn."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """The mean of the data, and a scale for each site; which columns are read and which are written.

    >>> known = Known.of(torch.tensor([[0.0, 10.0], [4.0, 30.0]]), widths=[1, 1], reads=1)
    >>> known.seen(torch.tensor([[4.0, 40.0]]))
    (tensor([[1.]]), tensor([[2.]]))
    """

    mean: Float[Tensor, " dim"]
    scale: Float[Tensor, " dim"]  # E|x - mean|^2 of a site is its width, after division
    cut: int | None  # the first column that is written; None if what is read is written

    @classmethod
    def of(cls, rows: Float[Tensor, "n dim"], widths: Sequence[int], reads: int | None) -> "Known":
        """From some rows, in float64. `reads` of the sites are read, the others written; None: all of them both."""
        if not rows.isfinite().all():
            raise ValueError("an activation is NaN or infinite: nothing can be learnt from these batches")
        if sum(widths) != rows.shape[1] or min(widths) < 1:
            raise ValueError(
                f"widths={list(widths)}: batches have {rows.shape[1]} columns, which the sites must share out"
            )
        if reads is not None and not 0 < reads < len(widths):
            raise ValueError(
                f"{reads} sites to read and {len(widths) - reads} to write: at least one of each is needed"
            )
        mean, variance = rows.double().mean(0), rows.double().var(0, correction=0)
        parts = variance.split(list(widths))
        flat = [number for number, part in enumerate(parts) if not part.sum() > 0]
        if flat:
            raise ValueError(f"site {flat[0]} of the batches says the same always: there is nothing to learn")
        scale = torch.cat([part.mean().sqrt().expand(len(part)) for part in parts])
        ends = [0, *itertools.accumulate(widths)]
        return cls(mean.float(), scale.float(), None if reads is None else ends[reads])

    def seen(self, batch: Float[Tensor, "n dim"]) -> tuple[Float[Tensor, "n in"], Float[Tensor, "n out"]]:
        """What is read and what is written, about the mean and scaled."""
        rows = (batch.float() - self.mean.to(batch.device)) / self.scale.to(batch.device)
        return (
            (rows, rows) if self.cut is None else (rows[:, : self.cut].contiguous(), rows[:, self.cut :].contiguous())
        )

    def sides(self, t: Float[Tensor, " dim"]) -> tuple[Tensor, Tensor]:
        """Of a vector over the columns: what is read, and what is written."""
        return (t, t) if self.cut is None else (t[: self.cut], t[self.cut :])
