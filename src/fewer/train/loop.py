"""The loop: steps of AdamW on whatever is learnt, the same to the bit whether it was killed in between or not."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kept import Kept, Rescue
from .rate import Cosine, Rate
from .sharing import ALONE, Sharing
from .source import Source

Loss = Callable[[Tensor, float], Tensor]
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
) -> None:
    """Move `parameters` (leaves that ask for gradients) to lower `loss(batch, progress)`.

    `batches` are gone through again and again, in their order, or are a `Source`. `optimizer` is AdamW by default. Random numbers that `loss` draws from torch's own
    generators are seeded for each batch by seed and number, so a run that goes on from `kept` repeats what would have
    come; what breaks in on a run, Ctrl-C or an error, loses no whole step of it. Of several processes (`by`) each does its part of a step. `told` hears step, steps, loss, rate and norm after each step. ValueError: no batch, or a loss that is not finite.
    """
    device = next(iter(parameters.values())).device
    optimizer = optimizer or torch.optim.AdamW(list(parameters.values()), 1.0, how.betas, weight_decay=how.decay)
    tf32 = how.tf32 and not how.half and device.type == "cuda"
    with Rescue(kept, parameters, optimizer) as rescue, tensor_cores(tf32):
        _steps(parameters, loss, batches, how, kept, told, optimizer, by, device, rescue)


def _steps(
    parameters: Mapping[str, Tensor],
    loss: Loss,
    batches: Iterable[Tensor],
    how: Training,
    kept: Kept | None,
    told: Told | None,
    optimizer: torch.optim.Optimizer,
    by: Sharing,
    device: torch.device,
    rescue: Rescue,
) -> None:
    done = kept.load(parameters, optimizer) if kept else 0
    stream = _since(batches, done * how.accumulate)
    saved = time.monotonic()
    for step in range(done, how.steps):
        progress = how.progress(step)
        optimizer.param_groups[0]["lr"] = rate = how.rate.at(progress)
        optimizer.zero_grad()
        rescue.begin()
        total = 0.0
        for number in range(how.accumulate):
            batch = next(stream).to(device)
            with _seeded(how.seed, step * how.accumulate + number, device), _narrow(device, how.half):
                found = loss(batch, progress) / how.accumulate
            found.backward()  # type: ignore[no-untyped-call]
            total += found.item()
        if not math.isfinite(total):
            raise ValueError(f"step {step + 1}: the loss is {total}; lower the rate, {rate:g} now")
        by.join(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), how.clip).item()
        row = {"step": step + 1, "steps": how.steps, "loss": total, "rate": rate, "norm": norm}
        with rescue.whole(step + 1):
            optimizer.step()
            if kept:
                kept.tell(row)
        if kept and by.agreed(time.monotonic() - saved >= how.save_after or step + 1 == how.steps):
            kept.save(step + 1, parameters, optimizer)
            saved = time.monotonic()
        if told:
            told(row)


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
