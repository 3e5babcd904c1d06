"""Several processes, each with its share of the latents: dictionaries that are too large for one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fewer import kernels
from fewer.calibrate import Crew
from fewer.core import Budget
from fewer.features import ByKeep, ByScore, Own, Sparsifier, coded, spoken
from fewer.layout import Codes

from .pupil import Lesson, Pupil
from .sharing import Sharing

SPLIT = {"encoder", "encoder_bias", "decoder", "silent"}  # a row for each latent


@dataclass(frozen=True)
class ByLatents(Sharing):
    """Each process holds latents / processes rows of encoder and decoder, and both their moments, and sees all of each batch.

    It finds its own k loudest, all tell how loud theirs are, and each knows then which of its own are among the k loudest of
    all. What they say is summed, and each moves its own rows: nothing else of the gradients need be told. A process hears
    4 batch k bytes from each other one, and 2 * 4 batch dim in the sum; never [batch, latents]. Once latents have died, the
    same again with the loudest of the dead in place of k.

    The state is kept as of one dictionary, gathered by the first process, tensor by tensor, in its main memory.
    """

    crew: Crew

    def check(self, pupils: Sequence[Pupil], lesson: Lesson, batch: int, together: bool) -> None:
        if together:
            raise ValueError("dictionaries that add up cannot be dealt out by latents: share out rows (ByRows)")
        for pupil in pupils:
            m, b = pupil.sparsifier, pupil.budget
            if pupil.latents % self.crew.size:
                raise ValueError(f"{pupil.latents} latents cannot be dealt out evenly to {self.crew.size} processes")
            plain = isinstance(m, ByScore) and not m.looks
            same = ("keep", "code"), ("views", "idle", "penalty", "begin")
            for known, names in zip((ByScore, Sparsifier), same, strict=True):
                plain = plain and all(getattr(type(m), name) is getattr(known, name) for name in names)
            if not plain or type(m).score is not ByScore.score or b.scope != "row" or b.group or b.unit != (1, 1):
                raise ValueError(
                    f"{m.name} '{b}' looks at all latents at once, of which a process holds a share: take features/top_k or features/abs_top_k and k latents a row, or share out rows (ByRows)"
                )

    def mine(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rank, size = self.crew.rank, self.crew.size
        return {name: t.chunk(size)[rank].clone() if _split(name, t) else t for name, t in tensors.items()}

    def whole(self, tensors: Mapping[str, Tensor], everywhere: bool = True) -> dict[str, Tensor]:
        found = {}
        for name, t in tensors.items():
            every = self.crew.stack(t.detach().cpu()).flatten(0, 1).to(t.device) if _split(name, t) else t
            if everywhere or self.crew.rank == 0:
                found[name] = every
        return found

    def coded(self, m: ByKeep, budget: Budget, x: Tensor, w: Tensor, b: Tensor, own: Own) -> Codes:
        k = min(budget.of(self.crew.size * len(w)), self.crew.size * len(w))
        codes, pre = coded(m, replace(budget, keep=min(k, len(w))), x, w, b, own)  # from the left: of equals, the first
        keep = self._among(m.score(pre.detach()), k)  # type: ignore[attr-defined]
        slot = kernels.places(keep)  # few are left: the other slots are not carried along
        real, slot = slot >= 0, slot.clamp(min=0)
        value = torch.where(real, codes.value.gather(1, slot), 0.0)
        return Codes(codes.index.gather(1, slot), value, codes.size)

    def missed(
        self, codes: Codes, parts: Iterable[tuple[float, Codes]], atoms: Tensor, y: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        error = y - bias - self.added(spoken(codes, atoms))
        return error.square().mean(), error.detach()

    def added(self, out: Float[Tensor, "rows out"]) -> Float[Tensor, "rows out"]:
        return _Added.apply(out, self.crew)

    def most(self, number: float) -> float:
        return self.crew.stack(torch.tensor(number)).max().item()

    def number(self, few: int) -> int:
        return int(self.crew.sum(torch.tensor(few)))

    def loudest(self, pre: Float[Tensor, "rows some"], k: int) -> tuple[Tensor, Tensor, Tensor | None]:
        value, at = pre.topk(min(k, pre.shape[1]), dim=1, sorted=False)
        return value, at, self._among(value, k)

    def agreed(self, due: bool) -> bool:
        return self.crew.first(lambda: due)

    def _among(self, score: Float[Tensor, "rows c"], k: int) -> Bool[Tensor, "rows c"]:
        """Which of this process's best are among the k best of all; of equals, those of lower processes."""
        rows, c = score.shape
        every = self.crew.stack(F.pad(score, (0, k - c), value=-torch.inf))
        keep = kernels.top_k(every.transpose(0, 1).reshape(rows, -1), k)
        return keep[:, self.crew.rank * k :][:, :c]


class _Added(torch.autograd.Function):
    """A sum over processes that all go on with; each one's part of it has the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, crew: Crew) -> Tensor:
        return crew.sum(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _split(name: str, t: Tensor) -> bool:
    return name.rpartition("/")[2] in SPLIT and t.ndim > 0
