"""Learning what stands beside a frozen model, module by module: the one end of it for patterns and predictors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fewer.calibrate.held import Held, write_parts

from .kept import Kept
from .loop import Loss, Told, Training, train


def train_parts(
    method: Any,
    parts: Mapping[str, Mapping[str, Tensor]],
    loss: Loss,
    batches: Sequence[Tensor],
    out: Path,
    kept: Kept,
    how: Training,
    told: Told | None,
) -> Any:
    """Train the parts of each module, write them at `out`, and give back `method` with that file. A killed run goes on, to the bit."""
    every = {f"{name}.{part}": t for name, some in parts.items() for part, t in some.items()}
    train(every, loss, batches, how, kept, told)
    write_parts(out, parts, {"method": repr(replace(method, file="", parts=Held()))})
    kept.finish()
    return replace(method, file=str(out), parts=Held())
