"""From milliseconds to a number of keys, by the measured costs of the kernels; and the length below which dense is faster."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fewer.attention import ByPlace, ByScore
from fewer.core import Budget
from fewer.core.target import Seconds
from fewer.kernels.attend_pages.cost import Decoding, estimate
from fewer.models.cache_layer import Asked

from .hearing import WHOLE, slots_of
from .phases import beyond
from .steps import Step
from .ways import Ways

LONGEST = 2**24


def in_time(model: nn.Module, s: Step, data: Tensor | None) -> tuple[list[Step], list[str]]:
    """As many keys as can be read in the time that choosing them leaves; below the crossover attention stays dense."""
    target, slots = s.budget, slots_of(model, s)
    assert isinstance(target, Seconds)
    keys = target.tokens or getattr(getattr(model.config, "text_config", model.config), "max_position_embeddings", 0)
    if not keys:
        raise ValueError(f"'{s}': the model does not say how long its texts may be; write '{target} at 32768'")
    costs = [_Costs.of(s, w, one, size) for w, one, size in slots.values()]
    if (budget := _most(lambda n: sum(c.sparse(n, keys) for c in costs) <= target.amount, keys)) < 1:
        least = sum(c.sparse(1, keys) for c in costs)
        raise ValueError(
            f"'{s}': at {keys} tokens one key alone takes {least * 1e3:.3g} ms with all that comes before it"
        )
    whole, some = (sum(c.sparse(n, keys) if n < keys else c.dense(keys) for c in costs) for n in (keys, budget))
    if whole <= target.amount or budget >= keys:
        return [replace(s, budget=WHOLE)], [
            f"{s.method.name} {target}: dense takes {whole * 1e3:.3g} ms at {keys} tokens"
        ]
    said = f"{budget} keys take {some * 1e3:.3g} ms at {keys} tokens, dense {whole * 1e3:.3g}"
    step = replace(s, budget=Budget(budget))
    if s.axis == "attention":  # beyond the crossover dense stays dearer: both are lines of the length
        dense = _most(lambda n: sum(c.dense(n) - c.sparse(min(budget, n), n) for c in costs) <= 0, LONGEST)
        step = replace(step, where=", ".join([*([] if s.where == "*" else [s.where]), beyond(dense)]))
        said += f"; up to {dense} tokens dense is as fast, and stays"
    return [step], [f"{s.method.name} {target}: {said}"]


@dataclass(frozen=True)
class _Costs:
    """Of one module: bytes of a token's keys and values, and of what a pattern looks at to choose, for each token."""

    slot: float
    looked: float
    dtype: torch.dtype
    cuda: bool

    @classmethod
    def of(cls, s: Step, w: Ways, one: Asked, slot: float) -> "_Costs":
        looked = 0.0
        if w.forget is None:
            m = s.method
            if isinstance(m, ByScore):
                block = one.k[:, :, :1].expand(-1, -1, m.block, -1)
                looked = sum(t.numel() * t.element_size() for t in m.digest(block)) / m.block
            elif not isinstance(m, ByPlace):
                raise ValueError(
                    f"'{s}': {m.name} looks at every key before it chooses, and what that takes is not measured"
                )
        if not estimate(Decoding(1, one.k.dtype, one.k.is_cuda)):
            raise ValueError(f"'{s}': no machine like this one was measured; see bench/attention/fit.py")
        return cls(slot, looked, one.k.dtype, one.k.is_cuda)

    def dense(self, keys: int) -> float:
        return self._took(int(self.slot * keys), 0)

    def sparse(self, read: int, keys: int) -> float:
        return self._took(int(self.slot * read), int(self.looked * keys))

    def _took(self, read: int, chosen: int) -> float:
        return next(iter(estimate(Decoding(read, self.dtype, self.cuda, chosen)).values()))


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The greatest number up to `most` that fits, if smaller ones do; 0 if 1 does not."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
