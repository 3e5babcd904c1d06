"""SAELens' directories, both ways: `cfg.json` and `sae_weights.safetensors` (its version 6, and what it reads of older ones)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewer.features import Dictionary, Sparsifier
from fewer.features.abs_top_k import AbsTopK
from fewer.features.gated import Gated
from fewer.features.jump_relu import JumpRelu
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_k import TopK
from fewer.models.hook_names import hook_of, site_of

from ._disk import Tensors, note_of, one_of, tensors_of, whole_number, write_note, write_tensors
from ._form import ALL, PLAIN, folded, kept, plain, single, thresholds, top

NAME, NOTE, TENSORS = "saelens", "cfg.json", "sae_weights.safetensors"
MADE_BY = "6.54.12"  # whose form this is; without a version it would be read as one before 6
TOGETHER = {"W_enc": "in latents", "W_dec": "latents out", "b_dec": "out", "scaling_factor?": "latents"}
BIAS, THRESHOLD, SKIP = {"b_enc": "latents"}, {"threshold": "latents"}, {"W_skip": "out in"}
GATE = {"b_gate": "latents", "b_mag": "latents", "r_mag": "latents"}
KNOWN: dict[
    str, tuple[Sparsifier, dict[str, str]]
] = {  # architecture -> who speaks, and what it has beside both matrices
    "standard": (ReluL1(), BIAS),
    "topk": (TopK(), BIAS),
    "abstopk": (AbsTopK(), BIAS),
    "jumprelu": (JumpRelu(), BIAS | THRESHOLD),
    "gated": (Gated(), GATE),
    "transcoder": (ReluL1(), BIAS),
    "skip_transcoder": (ReluL1(), BIAS | SKIP),
    "jumprelu_transcoder": (JumpRelu(), BIAS | THRESHOLD),
    "jumprelu_skip_transcoder": (JumpRelu(), BIAS | THRESHOLD | SKIP),
}
OURS = {"hook_name", "hook_name_out", "model_name", "sae_lens_version"}  # what the metadata say of themselves


def read(folder: Path) -> Dictionary:
    """ValueError: an architecture that is not known, a field or a tensor that is missing or does not fit.

    b_dec is folded in where the encoder subtracts it. With `rescale_acts_by_decoder_norm` the codes are those that SAELens
    gives: of rows at length one. What normalises each input by itself is no dictionary, and refused.
    """
    file = folder / NOTE
    cfg = _modern(note_of(file))
    sparsifier, asked = one_of(file, cfg, "architecture", KNOWN)
    t = tensors_of(folder / TENSORS, TOGETHER | asked)
    scale = _scale(file, cfg)
    t["W_enc"], t["W_dec"], t["b_dec"] = t["W_enc"].mT.contiguous() * scale, t["W_dec"] / scale, t["b_dec"] / scale
    if "scaling_factor" in t:  # of codes, found after training
        t["W_dec"] = t["W_dec"] * t["scaling_factor"][:, None]
    coder = "transcoder" in cfg["architecture"]
    bias = t.get("b_enc", t.get("b_gate"))
    if not coder and cfg.get("apply_b_dec_to_input", True):
        bias = folded(bias, t["W_enc"], t["b_dec"])
    if cfg.get("rescale_acts_by_decoder_norm"):
        norm = t["W_dec"].norm(dim=1)
        t["W_enc"], bias, t["W_dec"] = t["W_enc"] * norm[:, None], bias * norm, t["W_dec"] / norm[:, None]
    meta = cfg.get("metadata") or {}
    reads, writes = site_of(meta.get("hook_name"), meta.get("model_name")), None
    if coder:
        reads, writes = reads or "in", site_of(meta.get("hook_name_out"), meta.get("model_name")) or "out"
    about = {"made by": "SAELens", "architecture": cfg["architecture"], "model": meta.get("model_name")}
    return Dictionary(
        sparsifier,
        kept(whole_number(file, cfg, "k", len(bias))) if "topk" in cfg["architecture"] else ALL,
        t["W_enc"],
        bias,
        t["W_dec"],
        t["b_dec"],
        _own(t, bias),
        t.get("W_skip"),
        (reads,) if reads else (),
        ((writes or reads),) if reads else (),
        {k: v for k, v in {**meta, **about}.items() if k not in OURS and v is not None},
    ).to(torch.float32)


def write(dictionary: Dictionary, folder: Path) -> None:
    """What a fitted threshold stands for (BatchTopK) becomes a JumpReLU, as SAELens does it; `about` goes into its metadata."""
    d = plain(dictionary, NAME, PLAIN)
    coder = not d.is_autoencoder
    kinds = [k for k, (m, asked) in KNOWN.items() if type(m) is type(d.sparsifier) and ("transcoder" in k) is coder]
    kinds = [k for k in kinds if ("W_skip" in KNOWN[k][1]) is (d.skip is not None)]
    if not kinds:
        raise ValueError(f"the form {NAME!r} has no transcoder of {d.sparsifier.name}; save as 'fewer'")
    t = {"W_enc": d.encoder.mT, "W_dec": d.decoder, "b_dec": d.decoder_bias} | _beside(d)
    if d.skip is not None:
        t["W_skip"] = d.skip
    model = str(d.about.get("model") or "")
    places = {name: hook_of(at[0], model) for name, at in (("hook_name", d.reads), ("hook_name_out", d.writes)) if at}
    about = {k: v for k, v in d.about.items() if k not in ("made by", "architecture", "model")}
    if not coder:
        places.pop("hook_name_out", None)
    cfg = {
        "architecture": kinds[0],
        "d_in": d.encoder.shape[1],
        "d_sae": d.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if places.get("hook_name", "").endswith("hook_z") else "none",
        "metadata": {**about, **places, "model_name": model or None, "sae_lens_version": MADE_BY},
    }
    cfg |= {"d_out": d.decoder.shape[1]} if coder else {}
    cfg |= {"k": top(d, NAME), "rescale_acts_by_decoder_norm": False} if "topk" in kinds[0] else {}
    write_tensors(folder / TENSORS, t)
    write_note(folder / NOTE, cfg)


FORM = single(NAME, (NOTE, TENSORS), read, write)


def _own(t: Tensors, bias: torch.Tensor) -> Tensors:
    """Their magnitudes are exp(r_mag) W x + b_mag; ours go on from the gate, W x + b_gate."""
    if "r_mag" in t:
        scale = t["r_mag"].double()
        return {"scale": t["r_mag"], "shift": t["b_mag"].double() - scale.exp() * t["b_gate"].double()}
    return {"threshold": t["threshold"]} if "threshold" in t else {}


def _beside(d: Dictionary) -> Tensors:
    if isinstance(d.sparsifier, Gated):  # in float64: see `unfolded`
        scale, bias = d.own["scale"], d.encoder_bias
        return {"b_gate": bias, "r_mag": scale, "b_mag": d.own["shift"].double() + scale.double().exp() * bias.double()}
    return {"b_enc": d.encoder_bias} | ({"threshold": thresholds(d)} if isinstance(d.sparsifier, JumpRelu) else {})


def _scale(file: Path, cfg: Mapping[str, Any]) -> float:
    """What inputs are multiplied by."""
    normalised, scale = cfg.get("normalize_activations") or "none", cfg.get("norm_scaling_factor")
    if normalised == "none":
        return 1.0
    if normalised != "expected_average_only_in":
        raise ValueError(
            f"{file}: normalize_activations={normalised!r} depends on each input; fold it in with SAELens first"
        )
    if not isinstance(scale, float | int) or not scale > 0:
        raise ValueError(
            f"{file}: normalize_activations={normalised!r} means inputs times a factor that is not here; write it as "
            "'norm_scaling_factor' (SAELens' table of releases has it)"
        )
    return float(scale)


def _modern(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration from before version 6, as SAELens reads it."""
    meta = cfg.get("metadata") or {}
    if not isinstance(meta, dict):
        return dict(cfg, metadata={})
    version = str(meta.get("sae_lens_version") or cfg.get("sae_lens_version") or "0")
    if version.partition(".")[0].isdigit() and int(version.partition(".")[0]) >= 6:
        return dict(cfg)
    new = {"architecture": "standard", "apply_b_dec_to_input": True, **cfg}
    if new.get("activation_fn_str", new.get("activation_fn")) == "topk":
        arguments = new.get("activation_fn_kwargs") or {}
        new |= {"architecture": "topk", "k": arguments.get("k", new.get("k"))}
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    names = ("model_name", "prepend_bos", "context_size", "dataset_path")
    return new | {
        "metadata": {k: new[k] for k in names if k in new}
        | {"hook_name": new.get("hook_name", new.get("hook_point")), **meta}
    }
