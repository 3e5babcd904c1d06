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
        self.betas, self.eps, self.number = betas, eps, 0
        self.scales: Tensor | None = None  # on a GPU
        self.unit = {id(parameters[name]) for name in unit}
        super().__init__([p for p in parameters.values() if p.requires_grad], {"lr": 1e-3})
        for name in rows:
            parameters[name].owed = []  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for p in self._all():
            if hasattr(p, "owed"):
                p.owed.clear()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count()
        self.move()

    def count(self) -> None:
        """One step more: what is recorded of `move` finds here how far to go. All parameters count the same steps."""
        known = [state["step"] for state in self.state.values() if state]
        self.number = 1 + int(known[0]) if known else 1
        for step in known:
            step.fill_(self.number)
        device = self._all()[0].device
        if device.type == "cuda":
            self.scales = torch.empty(2, device=device) if self.scales is None else self.scales
            for place, x in zip(self.scales, self._how().scales, strict=True):
                place.fill_(x)  # unlike a copy from the host it does not wait

    @torch.no_grad()
    def move(self) -> None:
        """The step itself, with the number that was counted."""
        for p in self._all():
            uses: list[Use] = list(getattr(p, "owed", ()))
            if p.grad is None and not uses:
                continue
            state = self.state[p]
            if not state:
                number = torch.tensor(float(self.number))
                state |= {"step": number, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            codes, y = _all_of(uses, p.grad)
            small = self._small(p) if uses else None
            moved = (_flat(t) for t in (p, state["exp_avg"], state["exp_avg_sq"]))
            adam(*moved, codes, y, self._how(id(p) in self.unit), small)
            if small is not None:
                p.small = small, p._version  # type: ignore[attr-defined]

    def _how(self, unit: bool = False) -> Move:
        return Move(self.param_groups[0]["lr"], self.number, self.betas, self.eps, unit, self.scales)

    def _small(self, p: Tensor) -> Tensor | None:
        """Where a matrix on a GPU is kept in bfloat16 too: it is read so until the next step (`features.narrowed`)."""
        if not p.is_cuda:
            return None
        found: Tensor = getattr(p, "small", (None, 0))[0]
        return torch.empty_like(p, dtype=torch.bfloat16) if found is None else found

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def _flat(p: Tensor) -> Tensor:
    """A matrix as it is; a vector as one of width 1."""
    return p.detach().view(len(p), -1) if p.ndim else p.detach().view(1, 1)


def _all_of(uses: list[Use], grad: Tensor | None) -> tuple[Codes | None, Tensor]:
    """A gradient as `adam` takes it: who used which row, or all of it."""
    if grad is None:
        return together(uses)
    if not uses:
        return None, _flat(grad)
    y = _flat(grad)
    every = torch.arange(len(y), device=y.device)[:, None]
    return together([*uses, (Codes(every, y.new_ones(len(y), 1), len(y)), y)])


def together(uses: list[Use]) -> Use:
    """One use that says what several do."""
    if len(uses) == 1:
        return uses[0]
    k = max(c.index.shape[1] for c, _ in uses)
    index, value = (
        torch.cat([F.pad(getattr(c, name), (0, k - c.index.shape[1])) for c, _ in uses]) for name in ("index", "value")
    )
    return Codes(index, value, uses[0][0].size), torch.cat([y for _, y in uses])
