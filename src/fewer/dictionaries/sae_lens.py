"""SAELens' directories, both ways: `cfg.json` and `sae_weights.safetensors` (its version 6)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewer.core import budget
from fewer.features import Dictionary, Sparsifier
from fewer.features.abs_top_k import AbsTopK
from fewer.features.batch_top_k import BatchTopK
from fewer.features.jump_relu import JumpRelu
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_k import TopK

from . import hooks

NOTE, TENSORS = "cfg.json", "sae_weights.safetensors"
MADE_BY = "6.54.12"  # whose form this is; without a version it would be read as one before 6
PLAIN = {"standard": ReluL1(), "topk": TopK(), "abstopk": AbsTopK(), "jumprelu": JumpRelu()}
CODERS = {
    "transcoder": ReluL1(),
    "skip_transcoder": ReluL1(),
    "jumprelu_transcoder": JumpRelu(),
    "jumprelu_skip_transcoder": JumpRelu(),
}


def read(folder: Path) -> Dictionary:
    """ValueError: an architecture that is not known, a field or a tensor that is missing or does not fit."""
    cfg, t = _read(folder)
    kind = cfg.get("architecture", "standard")
    sparsifier = (PLAIN | CODERS).get(kind)
    if sparsifier is None:
        raise ValueError(
            f"{folder / NOTE}: architecture={kind!r} is not known here; known: {', '.join(PLAIN | CODERS)}"
        )
    encoder, decoder = t["W_enc"].mT.contiguous(), t["W_dec"].contiguous()
    bias = t["b_enc"]
    if kind in PLAIN and cfg.get("apply_b_dec_to_input", True):
        bias = bias - encoder @ t["b_dec"]
    normalised = cfg.get("normalize_activations", "none")
    if normalised not in ("none", None):
        raise ValueError(
            f"{folder / NOTE}: normalize_activations={normalised!r} depends on each input; fold it in with SAELens first"
        )
    if cfg.get("rescale_acts_by_decoder_norm"):
        norm = decoder.norm(dim=1)
        encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]
    own = {"threshold": t["threshold"]} if "threshold" in t else {}
    site, about = hooks.site_of(cfg), {"made by": "SAELens", "architecture": kind, "metadata": cfg.get("metadata", {})}
    reads = (site,) if site else ()
    kept = budget(str(int(cfg["k"]))) if "k" in cfg else budget("100%")
    return Dictionary(sparsifier, kept, encoder, bias, decoder, t["b_dec"], own, t.get("W_skip"), reads, reads, about)


def write(dictionary: Dictionary, folder: str | Path) -> None:
    """Write the directory anew. A threshold that is fitted (BatchTopK) makes a JumpReLU of it, as SAELens does.

    ValueError: a sparsifier that SAELens has no architecture for.
    """
    folder, d = Path(folder), dictionary.to("cpu")
    if folder.exists():
        raise ValueError(f"{folder} exists; name a new directory")
    kind, extra = _kind(d)
    t = {"W_enc": d.encoder.mT, "W_dec": d.decoder, "b_enc": d.encoder_bias, "b_dec": d.decoder_bias}
    if kind.startswith("jumprelu"):
        t["threshold"] = d.own["threshold"].expand(d.latents)
    if d.skip is not None:
        t["W_skip"] = d.skip
    metadata = {
        "sae_lens_version": MADE_BY,
        "hook_name": hooks.hook_of(d.reads[0]) if d.reads else None,
        "model_name": d.about.get("model"),
    }
    cfg = {
        "architecture": kind,
        "d_in": d.encoder.shape[1],
        "d_sae": d.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
        **extra,
    }
    if "transcoder" in kind:
        cfg["d_out"] = d.decoder.shape[1]
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir()
    save_file({name: x.float().contiguous().clone() for name, x in t.items()}, part / TENSORS)
    (part / NOTE).write_text(json.dumps(cfg, indent=1) + "\n", encoding="utf-8")
    part.rename(folder)


def _kind(d: Dictionary) -> tuple[str, Mapping[str, Any]]:
    m: Sparsifier = d.sparsifier
    kind = {TopK: "topk", AbsTopK: "abstopk", JumpRelu: "jumprelu", ReluL1: "standard"}.get(type(m))
    if isinstance(m, BatchTopK) and "threshold" in d.own:
        kind = "jumprelu"
    if kind is None:
        raise ValueError(
            f"SAELens has no architecture for {m.name}" + (" without a threshold" if isinstance(m, BatchTopK) else "")
        )
    if d.is_autoencoder:
        extra = (
            {"k": d.budget.of(d.latents), "rescale_acts_by_decoder_norm": False} if kind in ("topk", "abstopk") else {}
        )
        return kind, extra
    if kind not in ("standard", "jumprelu"):
        raise ValueError(f"SAELens has no transcoders of the kind {m.name}")
    return ("jumprelu_" if kind == "jumprelu" else "") + ("skip_" if d.skip is not None else "") + "transcoder", {}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        cfg, t = json.loads((folder / NOTE).read_text(encoding="utf-8")), load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as wrong:
        raise ValueError(f"{folder}: {wrong}") from wrong
    t = {name: x.float() for name, x in t.items()}
    jumps = "jumprelu" in str(cfg.get("architecture"))
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", *(("threshold",) if jumps else ())):
        if name not in t:
            raise ValueError(
                f"{folder / TENSORS} has no {name!r}, which architecture={cfg.get('architecture')!r} needs"
            )
    (d_in, n), d_out = t["W_enc"].shape, t["W_dec"].shape[-1]
    right = {"W_dec": (n, d_out), "b_enc": (n,), "b_dec": (d_out,), "threshold": (n,), "W_skip": (d_out, d_in)}
    for name, shape in right.items():
        if name in t and tuple(t[name].shape) != shape:
            raise ValueError(f"{folder / TENSORS}: {name!r} is {list(t[name].shape)}, W_enc asks for {list(shape)}")
    if any(not x.isfinite().all() for x in t.values()):
        raise ValueError(f"{folder / TENSORS}: a number is NaN or infinite")
    return cfg, t
