"""The loop: steps of AdamW on whatever is learnt, the same to the bit whether it was killed in between or not."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kept import Kept, Rescue
from .rate import Cosine, Rate
from .recorded import Recorded
from .sharing import ALONE, Sharing
from .source import Source

Loss = Callable[[Tensor, float], Tensor]
Kinds = Callable[[int], Hashable | None]
Told = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Training:
    """How to learn. A step is `accumulate` batches, their gradients averaged, and one move of AdamW."""

    steps: int = 2000
    rate: Rate = Cosine(5e-4, 5e-5)  # noqa: RUF009  frozen
    accumulate: int = 1
    clip: float = 1.0  # of the gradients' norm over all parameters
    decay: float = 0.1  # AdamW's weight decay
    betas: tuple[float, float] = (0.9, 0.95)
    seed: int = 0
    half: bool = True  # bfloat16 autocast, where the parameters are on a GPU
    tf32: bool = True  # there and without it: products of float32 matrices read 10 bits of each mantissa, add up all 24
    save_after: float = 60.0  # seconds between two saved states; when it is saved changes no result

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            raise ValueError(f"{self.steps} steps of {self.accumulate} batches: write at least 1 of each")

    def progress(self, step: int) -> float:
        """0 at the first step, 1 at the last."""
        return step / max(1, self.steps - 1)


def train(
    parameters: Mapping[str, Tensor],
    loss: Loss,
    batches: Iterable[Tensor],
    how: Training,
    kept: Kept | None = None,
    told: Told | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    by: Sharing = ALONE,
    kinds: Kinds | None = None,
) -> None:
    """Move `parameters` (leaves that ask for gradients) to lower `loss(batch, progress)`.

    `batches` are gone through again and again, in their order, or are a `Source`. `optimizer` is AdamW by default. Random numbers that `loss` draws from torch's own
    generators are seeded for each batch by seed and number, so a run that goes on from `kept` repeats what would have
    come; what breaks in on a run, Ctrl-C or an error, loses no whole step of it. Of several processes (`by`) each does its part of a step. Steps of a kind, as `kinds` calls them, may be repeated on a GPU as they were recorded (`Recorded`), by an optimizer that counts and moves apart. `told` hears step, steps, loss, rate and norm after each step. ValueError: no batch, or a loss that is not finite.
    """
    optimizer = optimizer or torch.optim.AdamW(list(parameters.values()), 1.0, how.betas, weight_decay=how.decay)
    job = _Job(parameters, loss, how, optimizer, by, kinds)
    with Rescue(kept, parameters, optimizer) as rescue, tensor_cores(how.tf32 and not how.half and job.on_gpu):
        done = kept.load(parameters, optimizer) if kept else 0
        stream, saved = _since(batches, done * how.accumulate), time.monotonic()
        for step in range(done, how.steps):
            rescue.begin()
            row = job.look(step, [next(stream).to(job.device) for _ in range(how.accumulate)])
            with rescue.whole(step + 1):
                job.move()
                if kept:
                    kept.tell(row)
            if kept and by.agreed(time.monotonic() - saved >= how.save_after or step + 1 == how.steps):
                kept.save(step + 1, parameters, optimizer)
                saved = time.monotonic()
            if told:
                told(row)


class _Job:
    """What a step is: to look where to go, and to go there."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        loss: Loss,
        how: Training,
        optimizer: torch.optim.Optimizer,
        by: Sharing,
        kinds: Kinds | None,
    ):
        self.parameters, self.loss, self.how, self.optimizer, self.by = parameters, loss, how, optimizer, by
        self.kinds, self.kind = (kinds if how.accumulate == 1 else None), None
        self.device = next(iter(parameters.values())).device
        self.on_gpu = self.device.type == "cuda"
        self.looks = Recorded(self._of_a_kind, self.on_gpu)
        self.moves = Recorded(optimizer.move if self.kinds else optimizer.step, self.on_gpu)  # type: ignore[attr-defined]

    def look(self, step: int, batches: list[Tensor]) -> dict[str, Any]:
        """Loss and gradients. ValueError: a loss that is not finite."""
        self.progress = self.how.progress(step)
        self.optimizer.param_groups[0]["lr"] = rate = self.how.rate.at(self.progress)
        self.kind = self.kinds(step) if self.kinds else None
        found = self._of_none(step, batches) if self.kind is None else self.looks(self.kind, *batches)
        total, norm = found.tolist()  # type: ignore[union-attr]
        if not math.isfinite(total):
            raise ValueError(f"step {step + 1}: the loss is {total}; lower the rate, {rate:g} now")
        return {"step": step + 1, "steps": self.how.steps, "loss": total, "rate": rate, "norm": norm}

    def move(self) -> None:
        if self.kinds:
            self.optimizer.count()  # type: ignore[attr-defined]
        self.moves(self.kind)

    def _of_a_kind(self, batch: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        return self._joined(self._back(batch))

    def _of_none(self, step: int, batches: list[Tensor]) -> Tensor:
        self.optimizer.zero_grad()
        found = []
        for number, batch in enumerate(batches, step * self.how.accumulate):
            with _seeded(self.how.seed, number, self.device):
                found.append(self._back(batch))
        return self._joined(torch.stack(found).sum())

    def _back(self, batch: Tensor) -> Tensor:
        with _narrow(self.device, self.how.half):
            found = self.loss(batch, self.progress) / self.how.accumulate
        found.backward()  # type: ignore[no-untyped-call]
        return found.detach()

    def _joined(self, total: Tensor) -> Tensor:
        self.by.join(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.how.clip)
        return torch.stack([total, norm.to(total.device)])


def _since(batches: Iterable[Tensor], number: int) -> Iterator[Tensor]:
    """All batches from that number on."""
    return batches.since(number) if isinstance(batches, Source) else itertools.islice(_again(batches), number, None)


def _again(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """All batches, pass after pass."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "there is no batch to learn from: give at least one (and a list, not an iterator that ends)"
            )


@contextlib.contextmanager
def _seeded(seed: int, number: int, device: torch.device) -> Iterator[None]:
    """Random numbers of this batch alone; those of the caller go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed((seed << 32) + number)
        yield


@contextlib.contextmanager
def tensor_cores(on: bool) -> Iterator[None]:
    """Whether torch's products of float32 matrices on a GPU are made in TF32; as it was, afterwards.

    A model that runs for a stream of activations meanwhile does so too. Our own kernels name their precision and do not.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on or before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _narrow(device: torch.device, half: bool) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=half and device.type == "cuda")
