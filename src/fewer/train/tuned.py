"""Learning through the loss of the whole model: parts of a mixer, or a model's weights while it reads or computes less."""

import copy
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewer.attention import Mixer, write_parts
from fewer.core import Budget, Method
from fewer.core.replace import exchange
from fewer.core.spell import spell
from fewer.measure.quality import device_of

from .kept import Kept, job_of
from .learner import Learner
from .loop import Told, Training, train
from .masks import Judge, next_token

PARTS = "attention.safetensors"  # beside a model that was learnt too


@dataclass(frozen=True, eq=False)
class Tuned(Learner[Mixer]):
    """Learn the parts of a mixer in `model` at `where`, with the weights frozen, and write them at `out`; or, with `weights`,
    the model's weights too, and then `out` is a directory with the model and its parts. A killed run goes on where it was.

    What is learnt is a copy of the model in float32, `judge` the loss, and `put` does a step to a model for a while
    (`fewer.apply`). With `weights` a method may also be a pattern or a gate, which have no parts: the model learns to read, or to compute, so; a gate may say how gradients pass it
    (`heard`) and what hidden neurons cost meanwhile (`Pressed`).
    """

    model: nn.Module
    out: Path
    put: Callable[..., AbstractContextManager[Any]]
    where: str = "*"
    how: Training = Training()  # noqa: RUF009  frozen
    weights: bool = False
    judge: Judge = next_token
    told: Told | None = None
    force: bool = False  # to replace the state of a run with other settings

    def fit(self, method: Method, budget: Budget, batches: Iterable[Tensor]) -> Method:
        batches = list(batches)
        twin = copy.deepcopy(self.model).float().requires_grad_(False).train(self.weights)
        place = "" if self.where == "*" else f" @ {self.where}"
        with self.put(twin, f"{spell(method)} {budget}{place}") as applied:
            learning = {name: p for name, p in twin.named_parameters() if p.requires_grad or self.weights}
            if not learning:
                raise ValueError(
                    f"{method.name} has no parts that could learn: learn the model's weights with it (weights=True)"
                )
            for p in learning.values():
                p.requires_grad_(True)
            kept = Kept(self.out, self._key(method, budget, batches), force=self.force)

            def loss(batch: Tensor, progress: float) -> Tensor:
                if applied.gating:
                    applied.gating.learning = progress
                with torch.enable_grad():
                    found = self.judge(twin, batch.to(device_of(twin)))
                    return found + applied.gating.priced() if applied.gating else found

            train(learning, loss, batches, self.how, kept, self.told)
            parts = applied.attending.learnt() if applied.attending else {}
        file = self._write(twin, parts, spell(method))
        kept.finish()
        return replace(method, file=str(file)) if parts else method  # type: ignore[type-var]

    def _write(self, twin: nn.Module, parts: dict[str, dict[str, Tensor]], said: str) -> Path:
        """The file of the parts."""
        if not self.weights:
            write_parts(self.out, parts, {"method": said})
            return self.out
        whole = self.out.with_name(f".{self.out.name}.part")
        shutil.rmtree(whole, ignore_errors=True)
        twin.requires_grad_(False).eval().to(next(self.model.parameters()).dtype).save_pretrained(whole)  # type: ignore[operator]
        if parts:
            write_parts(whole / PARTS, parts, {"method": said})
        if self.out.exists():
            exchange(whole, self.out)
            shutil.rmtree(whole)
        else:
            whole.rename(self.out)
        return self.out / PARTS

    def _key(self, method: Method, budget: Budget, batches: list[Tensor]) -> str:
        said = f"{spell(method)} {budget} {self.where} weights={self.weights} {replace(self.how, save_after=0.0)}"
        return job_of(said, self.model.named_parameters(), batches)
