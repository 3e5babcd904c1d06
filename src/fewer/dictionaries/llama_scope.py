"""Llama Scope's directories, both ways: `hyperparams.json` and `checkpoints/final.safetensors`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewer.features import Dictionary
from fewer.features.jump_relu import JumpRelu
from fewer.features.relu_l1 import ReluL1
from fewer.models.hook_names import hook_of, site_of

from ._disk import note_of, one_of, tensors_of, write_note, write_tensors
from ._form import ALL, plain, single, thresholds

NAME, NOTE, TENSORS = "llama_scope", "hyperparams.json", "checkpoints/final.safetensors"
SHAPES = {
    "encoder.weight": "latents in",
    "encoder.bias": "latents",
    "decoder.weight": "out latents",
    "decoder.bias": "out",
}
MODEL = "meta-llama/Llama-3.1-8B"  # the one that it is of; the files do not say so


def read(folder: Path) -> Dictionary:
    """Inputs are scaled to a mean length of sqrt(dim), outputs back; both are folded in.

    Codes are of scaled inputs, as SAELens gives them. The one threshold is stored for plain inputs, so it is scaled too.
    """
    file, t = folder / NOTE, tensors_of(folder / TENSORS, SHAPES)
    cfg = note_of(file)
    one_of(file, cfg, "act_fn", {"jumprelu": JumpRelu}, "jumprelu")
    if cfg.get("apply_decoder_bias_to_pre_encoder"):
        raise ValueError(
            f"{file}: apply_decoder_bias_to_pre_encoder must be false: how it goes with scaling is not known"
        )
    width = t["encoder.weight"].shape[1]
    scale_in, scale_out = (math.sqrt(width) / norm for norm in _norms(file, cfg))
    threshold = _number(file, cfg, "jump_relu_threshold", 0.0)
    model = cfg.get("model", MODEL)
    at = [site_of(cfg.get(f"hook_point_{side}"), model) for side in ("in", "out")]
    return Dictionary(
        JumpRelu(),
        ALL,
        t["encoder.weight"] * scale_in,
        t["encoder.bias"],
        t["decoder.weight"].mT.contiguous() / scale_out,
        t["decoder.bias"] / scale_out,
        {"threshold": torch.full_like(t["encoder.bias"], threshold * scale_in)},
        None,
        (at[0],) if at[0] else (),
        (at[1] or at[0],) if at[0] else (),
        {"made by": "Llama Scope", **({"model": model} if model else {})},
    ).to(torch.float32)


def write(dictionary: Dictionary, folder: Path) -> None:
    """JumpReLU with one threshold for all (BatchTopK has one) and ReLU."""
    d = plain(dictionary, NAME, (JumpRelu, ReluL1))
    theta = thresholds(d)
    if d.skip is not None or (theta != theta[0]).any():
        what = "skip connection" if d.skip is not None else "threshold for each latent, but one for all"
        raise ValueError(f"the form {NAME!r} has no {what}; save as 'saelens'")
    model = d.about.get("model")
    cfg = {
        "d_model": d.encoder.shape[1],
        "d_sae": d.latents,
        "act_fn": "jumprelu",
        "jump_relu_threshold": theta[0].item(),
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": math.sqrt(d.encoder.shape[1]), "out": math.sqrt(d.encoder.shape[1])},
        "apply_decoder_bias_to_pre_encoder": False,
        "use_decoder_bias": True,
        "sparsity_include_decoder_norm": False,
        "hook_point_in": hook_of(d.reads[0], str(model or "")) if d.reads else None,
        "hook_point_out": hook_of(d.writes[0], str(model or "")) if d.writes else None,
        "model": model,
    }
    (folder / TENSORS).parent.mkdir()
    t = {"encoder.weight": d.encoder, "encoder.bias": d.encoder_bias}
    write_tensors(folder / TENSORS, t | {"decoder.weight": d.decoder.mT, "decoder.bias": d.decoder_bias})
    write_note(folder / NOTE, cfg)


FORM = single(NAME, (NOTE, TENSORS), read, write)


def _norms(file: Path, cfg: Mapping[str, Any]) -> list[float]:
    norms = cfg.get("dataset_average_activation_norm")
    if not isinstance(norms, dict):
        raise ValueError(f"{file}: dataset_average_activation_norm must be an object with 'in' and 'out'")
    return [_number(file, norms, side, 1e-30) for side in ("in", "out")]


def _number(file: Path, note: Mapping[str, Any], name: str, least: float) -> float:
    value = note.get(name)
    if not isinstance(value, float | int) or not math.isfinite(value) or value < least:
        raise ValueError(f"{file}: {name}={value!r} must be a number, at least {least:g}")
    return float(value)
