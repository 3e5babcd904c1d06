"""Adam for matrices whose gradients are sums over the few who used each row."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewer.kernels.adam import Move, adam
from fewer.layout import Codes

Use = tuple[Codes, Tensor]


class RowAdam(torch.optim.Optimizer):
    """Adam without weight decay, by the kernel `adam`. What is in `rows` gets a list `owed` in place of a gradient.

    `unit`: names of matrices whose rows have length 1 and keep it.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        rows: Iterable[str] = (),
        unit: Iterable[str] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self.betas, self.eps = betas, eps
        self.unit = {id(parameters[name]) for name in unit}
        super().__init__([p for p in parameters.values() if p.requires_grad], {"lr": 1e-3})
        for name in rows:
            parameters[name].owed = []  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for p in self._all():
            if hasattr(p, "owed"):
                p.owed.clear()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self._all():
            uses: list[Use] = list(getattr(p, "owed", ()))
            if p.grad is not None:
                uses.append(_dense(p.grad))
            if not uses:
                continue
            state = self.state[p]
            if not state:
                state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            state["step"] += 1
            move = Move(self.param_groups[0]["lr"], int(state["step"]), self.betas, self.eps, id(p) in self.unit)
            codes, y = _together(uses, len(p) if p.ndim else 1)
            adam(*(_flat(t) for t in (p, state["exp_avg"], state["exp_avg_sq"])), codes, y, move)

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def _flat(p: Tensor) -> Tensor:
    """A matrix as it is; a vector as one of width 1."""
    return p.detach().view(len(p), -1) if p.ndim else p.detach().view(1, 1)


def _dense(grad: Tensor) -> Use:
    """A gradient that is written down: each row is used by itself."""
    y = _flat(grad)
    every = torch.arange(len(y), device=y.device)[:, None]
    return Codes(every, y.new_ones(len(y), 1), len(y)), y


def _together(uses: list[Use], size: int) -> Use:
    """One use that says what several do."""
    if len(uses) == 1:
        return uses[0]
    k = max(c.index.shape[1] for c, _ in uses)
    index, value = (
        torch.cat([F.pad(getattr(c, name), (0, k - c.index.shape[1])) for c, _ in uses]) for name in ("index", "value")
    )
    return Codes(index, value, size), torch.cat([y for _, y in uses])
