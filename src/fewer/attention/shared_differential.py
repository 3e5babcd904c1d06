"""Shared differential attention: both maps from one projection, each with a small change of its own."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import Mixer, Out, Reading, Shape, by_rows
from fewer.attention.differential import NAMES, Differential, share
from fewer.core import Budget, Paper, method


@method(Paper("2501.17900", "Shared DIFF Transformer", 2025, ledger=239))
class SharedDifferential(Mixer):
    """Weigh by one softmax less lambda times another, whose queries and keys differ from the model's by a low-rank change each.

    q_i = q + x A_i B_i for i = 1, 2, and the same for keys: W is shared, A_i B_i of rank `rank` is learnt. lambda, the norm of each
    head's output and 1 - lambda_init are those of `differential`. B begins at zero, so that both maps are the model's own
    and each head says its softmax attention, brought to one length.

    The changes are rotated as the model rotates its queries and keys. Both changed keys are remembered: a cache with three
    times the keys.

    Differs from the paper: where a model normalises its queries and keys, the change comes behind the norm.

    >>> first = SharedDifferential(rank=1).begin(Shape(heads=2, kv_heads=1, dim=4, hidden=8), torch.Generator())
    >>> {name: list(t.shape) for name, t in first.items() if name[0] in "qk"}
    {'q_down': [2, 8, 1], 'q_up': [2, 1, 8], 'k_down': [2, 8, 1], 'k_up': [2, 1, 4]}
    """

    rank: int = 16
    floor: float = 1e-5  # of the mean square
    file: str = ""

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        if self.rank < 1 or not shape.hidden:
            raise ValueError(f"{self.name}: a change of rank {self.rank} of x, {shape.hidden} wide; write rank=16")
        parts = {name: 0.1 * torch.randn(shape.dim, generator=make) for name in NAMES}
        for name, heads in (("q", shape.heads), ("k", shape.kv_heads)):
            parts[f"{name}_down"] = torch.randn(2, shape.hidden, self.rank, generator=make) * shape.hidden**-0.5
            parts[f"{name}_up"] = torch.zeros(2, self.rank, heads * shape.dim)
        return {**parts, "gain": torch.ones(shape.dim)}

    def note(self, r: Reading) -> Float[Tensor, "batch kv_heads keys wide"]:
        return torch.cat(self._changes(r, "k", r.k.shape[1]), -1)

    def mix(self, r: Reading, budget: Budget) -> Out:
        assert r.note is not None
        dim, least = r.q.shape[-1], Differential().least(r.layer)
        queries, keys = self._changes(r, "q", r.q.shape[1]), r.note.split(dim, -1)
        first, second = (
            by_rows(replace(r, q=r.q + q, k=r.k + k), lambda score, may, some: score.softmax(-1))
            for q, k in zip(queries, keys, strict=True)
        )
        z = first - share(r.parts, least) * second
        z = z * (z.square().mean(-1, keepdim=True) + self.floor).rsqrt() * r.parts["gain"].to(z.dtype) * (1 - least)
        return z.to(r.q.dtype)

    def _changes(self, r: Reading, name: str, heads: int) -> list[Tensor]:
        """x A_i B_i of each head, rotated."""
        if r.x is None:
            raise ValueError(f"{self.name} changes what is made of hidden states, and this module is given none")
        down, up = r.parts[f"{name}_down"], r.parts[f"{name}_up"]
        out = []
        for a, b in zip(down, up, strict=True):
            change = (r.x.to(a.dtype) @ a @ b).unflatten(-1, (heads, -1)).transpose(1, 2).to(r.q.dtype)
            out.append(change if r.turn is None else r.turn(change))
        return out
