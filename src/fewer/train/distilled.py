"""Learning what a pattern is to read from what the frozen model's own attention reads, layer by layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.attention import Held, Learnt, Mass, Shape, divergence
from fewer.attention._act import allowed_slots
from fewer.core import Budget
from fewer.kernels._scores import scores
from fewer.measure.quality import at_rest, device_of
from fewer.models.attention import attended, attentions_at
from fewer.models.cache_layer import Asked, Engine, Memory

from .kept import Kept, job_of
from .learner import Learner
from .loop import Told, Training
from .parts import train_parts

CHUNK = 256  # queries whose true attention is in memory at once, or a block of them


@dataclass(frozen=True, eq=False)
class Distilled(Learner[Learnt]):
    """Learn a pattern's parts for the attention modules of `model` at `where`, and write them at `out`.

    The loss is the mean over modules of KL(what attention reads || softmax of the pattern's scores), nats for each block of
    queries. The model runs as it is; no number of it changes. A budget is not asked for: scores rank, whatever is read of them.
    A killed run goes on where it was, to the bit.
    """

    model: nn.Module
    out: Path
    where: str = "*"
    how: Training = Training()  # noqa: RUF009  frozen
    told: Told | None = None
    force: bool = False  # to replace the state of a run with other settings

    def fit(self, method: Learnt, budget: Budget, batches: Iterable[Tensor]) -> Learnt:
        batches = list(batches)
        if not batches:
            raise ValueError("there is no batch to learn from: give at least one")
        found = attentions_at(self.model, self.where)
        shapes = shapes_of(self.model, found, batches[0][:1])
        make = torch.Generator().manual_seed(self.how.seed)
        first = {name: method.begin(shape, make) for name, shape in shapes.items()}
        parts = {
            name: {part: t.to(device_of(self.model)).requires_grad_() for part, t in begun.items()}
            for name, begun in first.items()
        }
        listening = _Listening({m: replace(method, parts=Held(parts[name])) for name, m in found})  # type: ignore[type-var]

        def loss(batch: Tensor, progress: float) -> Tensor:
            listening.costs.clear()
            with at_rest(self.model), attended(self.model, listening):
                self.model(input_ids=batch.to(device_of(self.model)), use_cache=False)
            return torch.stack(listening.costs).mean()

        kept = Kept(self.out, self._key(method, batches), force=self.force)
        return train_parts(method, parts, loss, batches, self.out, kept, self.how, self.told)

    def _key(self, method: Learnt, batches: list[Tensor]) -> str:
        """Which job this is: the same would be learnt by the same one only."""
        said = f"{method!r} {self.where} {replace(self.how, save_after=0.0)}"
        return job_of(said, self.model.named_parameters(), batches)


def true_mass(a: Asked, some: slice) -> Mass:
    """The probabilities of some queries over the keys as far as the last of them, as the model has them: window, cap and sinks."""
    end, wide = a.k.shape[2] - a.q.shape[2] + some.stop, torch.promote_types(a.q.dtype, torch.float32)
    at = torch.arange(end, dtype=torch.int32, device=a.q.device).expand(len(a.q), 1, -1)
    now = at[:, 0, end - (some.stop - some.start) :]
    k = a.k[:, :, :end].repeat_interleave(a.q.shape[1] // a.k.shape[1], 1)
    score = scores(a.q[:, :, some].to(wide), k.to(wide), a.scale, a.cap)
    score = score.masked_fill(~allowed_slots(at, now, a.window), -torch.inf)
    if a.sinks is None:
        return score.softmax(-1)
    sink = a.sinks[None, :, None, None].to(wide).expand(*score.shape[:3], 1)
    return torch.cat([score, sink], -1).softmax(-1)[..., :-1]


@dataclass(eq=False)
class _Listening(Engine):
    """Attention as it is, and how far what a pattern would read is from what it reads."""

    patterns: Mapping[nn.Module, Learnt]
    costs: list[Tensor] = field(default_factory=list)

    def memory(self, module: nn.Module) -> Memory:
        raise ValueError("learning needs no cache: run the model with use_cache=False")

    def attend(self, module: nn.Module, asked: Asked, memory: Memory | None) -> Float[Tensor, "batch heads new out"]:
        if asked.mask is not None or asked.real is not None or not asked.causal:
            raise ValueError("what is read is learnt from whole windows of text: causal, without padding and masks")
        m, n = self.patterns.get(module), asked.q.shape[2]
        group, outs, costs = asked.q.shape[1] // asked.k.shape[1], [], []
        for some in _parts(n, m.rows if m else 1):
            mass = true_mass(asked, some)
            outs.append(mass.to(asked.v.dtype) @ asked.v[:, :, : mass.shape[-1]].repeat_interleave(group, 1))
            if m:
                costs.append(_cost(m, asked, some, mass))
        if m:
            with torch.enable_grad():
                self.costs.append(torch.stack(costs).sum() / n)
        return torch.cat(outs, 2)


@torch.enable_grad()
def _cost(m: Learnt, a: Asked, some: slice, mass: Mass) -> Tensor:
    """The divergence of these queries, times their number."""
    q, k = a.q[:, :, : some.stop].to(mass.dtype), a.k[:, :, : some.stop].to(mass.dtype)
    if m.hears:
        now = torch.arange(some.stop, device=a.q.device).expand(len(a.q), -1)
        q, k = m.sees(q, k, a.x[:, : some.stop].to(mass.dtype), now)  # type: ignore[index]
    q = q[:, :, some]
    return divergence(m, q, k, m.truth(mass)) * (some.stop - some.start)


def _parts(n: int, rows: int) -> list[slice]:
    size = max(rows, CHUNK // rows * rows)
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def shapes_of(model: nn.Module, found: list[tuple[str, nn.Module]], ids: Tensor) -> dict[str, Shape]:
    """What each of these attention modules asks with, by its name: found by running the model once."""
    asking = _Asking()
    with at_rest(model), attended(model, asking):
        model(input_ids=ids[:, :2].to(device_of(model)), use_cache=False)
    return {name: replace(asking.seen[m], layer=i) for i, (name, m) in enumerate(found)}


@dataclass(eq=False)
class _Asking(Engine):
    seen: dict[nn.Module, Shape] = field(default_factory=dict)

    def memory(self, module: nn.Module) -> Memory:
        raise ValueError("no cache is wanted here: run the model with use_cache=False")

    def attend(self, module: nn.Module, asked: Asked, memory: Memory | None) -> Float[Tensor, "batch heads new out"]:
        a = asked
        self.seen[module] = Shape(a.q.shape[1], a.k.shape[1], a.q.shape[3], 0 if a.x is None else a.x.shape[-1])
        return a.v.repeat_interleave(a.q.shape[1] // a.k.shape[1], 1)
