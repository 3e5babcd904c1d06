"""An index as delphi's latent cache: one safetensors file for each range of latents."""

import itertools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .store import Index


def to_delphi(
    index: Index, out: str | Path, site: str, splits: int = 5, config: Mapping[str, Any] | None = None
) -> Path:
    """Write OUT/SITE/{first}_{last}.safetensors, as `delphi.latents.LatentDataset` reads them, and SITE/config.json.

    Each file holds `locations` [nonzeros, 3], the window, the position and the latent counted from `first`, in uint16 if
    all fit and uint32 if not; `activations` in float16; `tokens` [windows, length]. `config` should name `model_name`,
    from which delphi opens a tokenizer. One range of latents is in memory at a time. OUT appears whole or not at all.
    """
    from safetensors.numpy import save_file

    out = Path(out)
    part = out.with_name(f"{out.name}.partial")
    if out.exists():
        raise ValueError(f"{out} exists; choose another name, or remove it first")
    if not 0 < splits <= index.features:
        raise ValueError(f"splits={splits}: write 1 to {index.features}, one file each")
    shutil.rmtree(part, ignore_errors=True)
    (part / site).mkdir(parents=True)
    ends = [index.features * i // splits for i in range(splits + 1)]
    tokens = index.tokens.astype(np.int64)
    for first, end in itertools.pairwise(ends):
        lists = [index.of(f) for f in range(first, end)]
        places = np.concatenate([places for places, _ in lists])
        latent = np.repeat(np.arange(end - first), [len(places) for places, _ in lists])
        locations = np.stack([*np.divmod(places, index.tokens.shape[1]), latent], axis=1)
        narrow = np.uint16 if not len(places) or locations.max() < 2**16 else np.uint32
        said = np.concatenate([values for _, values in lists]).clip(-65504, 65504).astype(np.float16)
        held = {"locations": locations.astype(narrow), "activations": said, "tokens": tokens}
        save_file(held, part / site / f"{first}_{end - 1}.safetensors")
    told = {"ctx_len": index.tokens.shape[1], "n_tokens": index.tokens.size, **(config or {})}
    (part / site / "config.json").write_text(json.dumps(told, indent=4), encoding="utf-8")
    os.replace(part, out)
    return out
