"""In which dtype a model's weights are kept, whatever it computes in."""

import json
from pathlib import Path

import torch
from torch import nn


def stored_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the checkpoint that the model came from, else of its own weights.

    A bfloat16 checkpoint is opened in float32 to compute; what is pruned is stored in bfloat16 again.
    """
    source = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    told: dict = {}
    if source and (file := Path(source) / "config.json").is_file():
        told = json.loads(file.read_text())
    name = told.get("dtype") or told.get("torch_dtype")
    if isinstance(kind := getattr(torch, str(name), None), torch.dtype):
        return kind
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
