"""A job of the frontier, as a value: what to measure on what; doing it; and the key that says two jobs are the same."""

import dataclasses
import functools
import hashlib
import inspect
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

import fewer
from fewer.measure import Reference, flops, quality
from fewer.models import locate, open_model, sites, stored_dtype

from .act import Applied, apply
from .planning import plan
from .point import Point
from .steps import Step
from .steps import step as read

ENGINE = (
    "core",
    "layout",
    "kernels",
    "select",
    "calibrate",
    "models",
    "measure",
    "recipe",
)  # what every job runs through


class Measurable(ABC):
    """What can be measured elsewhere and later: a step done to a model, and what comes of it."""

    model: str
    step: str
    device: str

    @abstractmethod
    def check(self, shape: nn.Module, s: Step) -> None:
        """ValueError for what the model cannot take."""

    @abstractmethod
    def unmeasured(self) -> Point:
        """The point with no numbers yet."""

    @abstractmethod
    def said(self) -> tuple[Any, ...]:
        """What the result depends on, beside the model, the step and the code."""

    @abstractmethod
    def measured(self) -> Point:
        """Do the step, measure, undo."""


@dataclasses.dataclass(frozen=True, eq=False)
class Job(Measurable):
    """One point to measure. `step` is the text of a step, or empty for the dense model; `where` are the maps that count."""

    model: str
    step: str
    where: str
    calibration: Int[Tensor, "count length"]
    test: Int[Tensor, "tests length"]
    device: str = "cpu"

    def unmeasured(self) -> Point:
        if not self.step:
            return Point("", "dense", "dense", "")
        step = read(self.step)
        return Point(step.axis, str(step), label(step), str(step.budget))

    def check(self, shape: nn.Module, s: Step) -> None:
        plan(shape, (s,))

    def said(self) -> tuple[Any, ...]:
        return self.where, self.test, self.calibration if self.step else ""

    def measured(self) -> Point:
        began = time.perf_counter()
        model = opened(self.model, self.device)
        dense, work = _dense(self, model)
        if not self.step:
            return _point(self, model, Applied(model, ()), dense, work, began)
        with apply(model, self.step, self.calibration.to(self.device)) as applied:
            return _point(self, model, applied, dense, work, began)


def label(step: Step) -> str:
    """What a figure calls a step: no axis, no budget; a ranking over several maps is another method.

    >>> label(read("weights/magnitude 50% per model"))
    'magnitude per model'
    """
    text = step.what.removeprefix(f"{step.axis}/")
    return text if step.budget.scope == "row" else f"{text} per {step.budget.scope}"


def measure(job: Measurable) -> Point:
    """Do the step, measure, undo. A process opens a model once and keeps what its dense twin said."""
    return job.measured()


@functools.lru_cache(maxsize=1)
def opened(model: str, device: str) -> nn.Module:
    """The model of that name; one is kept open."""
    return open_model(model, device)[0]


_said: dict[str, tuple[Reference, int]] = {}  # one entry: what the dense model of this process says of the test windows


def _dense(job: Job, model: nn.Module) -> tuple[Reference, int]:
    """What it says of them all, and its FLOPs for the first."""
    about = f"{job.model} {job.device} {_digest(job.test)}"
    if about not in _said:
        _said.clear()
        _said[about] = Reference.of(model, job.test), flops(model, job.test[:1])
    return _said[about]


def _point(job: Job, model: nn.Module, applied: Applied, dense: Reference, work: int, began: float) -> Point:
    changes = applied.changes
    found, width = quality(model, dense, job.test), stored_dtype(model).itemsize
    weights = sum(math.prod(s.shape) for s in sites(model, job.where))
    whole = sum(p.numel() for p in model.parameters()) * width
    before, after = sum(c.bytes_before for c in changes), sum(c.bytes_after for c in changes)
    return dataclasses.replace(
        job.unmeasured(),
        kept=sum(c.kept * c.bytes_before for c in changes) / before if changes else 1.0,
        bits=8 * (weights * width - before + after) / weights,
        bytes_before=whole,
        bytes_after=whole - before + after,
        flops=_flops(job, model, applied, work),
        perplexity=found.perplexity,
        kl=found.kl,
        losses=tuple(found.nll.tolist()),
        seconds=time.perf_counter() - began,
    )


def _flops(job: Job, model: nn.Module, applied: Applied, work: int) -> float:
    """The share of the dense model's arithmetic that is of use: kept weights, low-rank parts, and all that was not touched.

    While a step is applied the model computes densely, zeros and all, so what is spared is taken off the dense `work`.
    """
    spared = sum((1 - c.kept) * c.bytes_before for c in applied.changes) / stored_dtype(model).itemsize
    added = sum(t.numel() for s in applied.stored.values() for t in s.beside)
    return 1 - 2 * job.test[:1].numel() * (spared - added) / work


def key(job: Measurable) -> str:
    """SHA-256 of everything that the result depends on: model, step, data, and the code that is run."""
    told = hashlib.sha256()
    for part in (_content(job.model), job.step, job.device, torch.__version__, fewer.__version__, *job.said()):
        told.update(f"{_digest(part) if isinstance(part, Tensor) else part}\0".encode())
    for file in _sources(read(job.step) if job.step else None):
        told.update(_file(file))
    return told.hexdigest()


def _digest(tokens: Tensor) -> str:
    return hashlib.sha256(f"{tuple(tokens.shape)}".encode() + tokens.cpu().numpy().tobytes()).hexdigest()


@functools.cache
def _file(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


@functools.cache
def _content(model: str) -> str:
    """The model's files; a name on the hub stands for itself."""
    place = Path(locate(model))
    if not place.is_dir():
        return str(place)
    files = sorted(f for f in place.iterdir() if f.suffix in (".safetensors", ".json", ".txt", ".model"))
    return hashlib.sha256(b"".join(f.name.encode() + _file(f) for f in files)).hexdigest()


@functools.cache
def _files(room: str, pattern: str) -> tuple[Path, ...]:
    return tuple(sorted((Path(inspect.getfile(fewer)).parent / room).glob(pattern)))


def _sources(step: Step | None) -> Iterator[Path]:
    """The code that a job runs: a change in another method's file, or in how reports look, measures nothing anew."""
    for room in ENGINE:
        yield from _files(room, "**/*.py")
    if step:
        yield from _files(step.axis, "_*.py")
        for method in filter(None, (step.method, step.allocator, *step.correctors)):
            yield Path(inspect.getfile(type(method)))
            yield from getattr(method, "files", ())  # what was learnt before
