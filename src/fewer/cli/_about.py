"""What made a result: model, data, machine, command; said under every figure."""

import datetime
import os
import pathlib
import platform
import shlex
from collections.abc import Sequence

import fewer


def about(model: str, data: str, arguments: Sequence[str]) -> dict[str, str]:
    """The lines under a figure, in order."""
    return {
        "model": model,
        "data": data,
        "machine": machine(),
        "command": shlex.join(["fewer", *arguments]),
        "made": f"{datetime.date.today():%Y-%m-%d}, fewer {fewer.__version__}",
    }


def machine() -> str:
    """Processor, cores, Python and torch."""
    import torch

    info = pathlib.Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
