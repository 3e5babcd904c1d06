"""Patterns that learn what to read of each attention module: what they are, and what they are taught by."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.calibrate.held import NONE, Held, read_parts, write_parts

from ._protocol import ByScore, Key, Query, Score, in_blocks, newest

__all__ = ["NONE", "Held", "Learnt", "Mass", "Shape", "divergence", "pooled", "read_parts", "write_parts"]

Mass = Float[Tensor, "batch heads queries keys"]


@dataclass(frozen=True)
class Shape:
    """What parts are made for: an attention module's heads, those of its keys, their width, and that of its input."""

    heads: int
    kv_heads: int
    dim: int
    hidden: int = 0
    layer: int = 0


class Learnt(ByScore):
    """A pattern whose scores are learnt, for each attention module apart, from what the frozen model's own attention reads.

    `file` holds what was learnt of all modules (`fewer train`), `parts` is that of one: `at` puts it in. Without either it
    says something sensible.
    """

    file: str = ""
    parts: Held = NONE

    @abstractmethod
    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        """The parts of one module before the first step; training moves them."""

    @abstractmethod
    def truth(self, mass: Mass) -> Score:
        """What the softmax of the scores is to be, of the true attention's probabilities: whole blocks of queries at a time."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Where it is kept: a result depends on what is in there."""
        return (Path(self.file),) if self.file else ()

    def at(self, module: str) -> "Learnt":
        if self.parts or not self.file:
            return self
        every = read_parts(self.file)
        if module not in every:
            raise ValueError(f"{self.file} holds nothing of {module}; it knows {', '.join(sorted(every)[:3])}, ...")
        return replace(self, parts=every[module])


def divergence(m: Learnt, q: Query, k: Key, truth: Score) -> Float[Tensor, ""]:
    """KL(truth || softmax of the scores), nats, the mean over blocks of queries; of the future neither says anything.

    >>> from fewer.attention.seer import Seer
    >>> q, k = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    >>> truth = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    >>> divergence(Seer(rows=1, block=1), q, k, truth)  # 0 and log 2
    tensor(0.3466)
    """
    score = m.score(q, m.digest(k))
    block = torch.arange(score.shape[-1], device=score.device)
    future = block > newest(q, k.shape[2], m)[:, None]
    said = score.float().masked_fill(future, -torch.inf).log_softmax(-1).masked_fill(future, 0.0)
    truth = truth.detach().float()
    return (torch.special.xlogy(truth, truth) - truth * said).sum(-1).mean()


def pooled(mass: Mass, m: Learnt) -> Score:
    """The largest probability in each block, as shares of their sum: SeerAttention's ground truth."""
    wide = torch.nn.functional.pad(mass, (0, -mass.shape[-1] % m.block)).unflatten(-1, (-1, m.block)).amax(-1)
    high = in_blocks(wide, m.rows).amax(3)
    return high / high.sum(-1, keepdim=True).clamp(min=1e-30)
