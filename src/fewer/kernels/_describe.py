"""What would run here, and why: the answer of `fewer kernels`."""

import importlib
import importlib.util
from dataclasses import dataclass

import torch

from ._costs import profile
from ._dispatch import Choice, backends, cheapest, missing, operations


@dataclass(frozen=True)
class Machine:
    """What the choice depends on. `costs` names the measured machine whose times are used, None if there is none."""

    cpu: str
    threads: int
    gpu: str | None
    costs: str | None


@dataclass(frozen=True)
class Operation:
    """One operation: what it does, its backends with the reason why each cannot run here (None: it can), examples."""

    op: str
    what: str
    backends: dict[str, str | None]
    examples: tuple[tuple[str, Choice], ...]


def machine() -> Machine:
    """This machine, as the dispatcher sees it."""
    cuda = torch.cuda.is_available()
    found = profile(cuda)
    return Machine(
        cpu=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if cuda else None,
        costs=found[0] if found else None,
    )


def describe() -> list[Operation]:
    """Every operation: which backends exist, why the others do not run here, what example shapes would take."""
    return [_operation(op) for op in operations()]


def _operation(op: str) -> Operation:
    module = importlib.import_module(f"fewer.kernels.{op}")
    examples: list[tuple[str, Choice]] = []
    if importlib.util.find_spec(f"fewer.kernels.{op}.cost"):
        device = "gpu" if torch.cuda.is_available() else "cpu"
        for text, seconds in importlib.import_module(f"fewer.kernels.{op}.cost").examples():
            examples.append((text, cheapest(op, device, seconds)))
    what = (module.__doc__ or op).strip().splitlines()[0]
    return Operation(op, what, {b: missing(b) for b in backends(op)}, tuple(examples))
