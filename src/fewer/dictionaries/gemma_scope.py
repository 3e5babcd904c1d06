"""Gemma Scope's directories, both ways: `params.npz` of the first, `params.safetensors` and `config.json` of the second."""

import math
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from fewer.features import Dictionary
from fewer.features.jump_relu import JumpRelu
from fewer.features.relu_l1 import ReluL1
from fewer.models.hook_names import path_of

from ._disk import fitting, note_of, one_of, tensors_of, widened, write_note, write_tensors
from ._form import ALL, plain, single, thresholds

FIRST, SECOND = "gemma_scope", "gemma_scope_2"
ARRAYS, NOTE, TENSORS = "params.npz", "config.json", "params.safetensors"
BIASES = {"b_enc": "latents", "b_dec": "out", "threshold": "latents"}
SHAPES = {"W_enc": "in latents", "W_dec": "latents out"} | BIASES
SHAPES_2 = {"w_enc": "in latents", "w_dec": "latents out", "affine_skip_connection?": "in out"} | BIASES
PLACES = {  # what the repository's name ends with -> where it reads and writes
    "res": ("hook_resid_post", "hook_resid_post"),
    "mlp": ("hook_mlp_out", "hook_mlp_out"),
    "att": ("attn.hook_z", "attn.hook_z"),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}


def read(folder: Path) -> Dictionary:
    """The first. Model and site are told by the names of the directories above alone; those of embeddings hear x / sqrt(dim)."""
    file = folder / ARRAYS
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {re.sub("^w_", "W_", name): torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as wrong:
        raise ValueError(f"{file} cannot be read as arrays of numbers: {wrong}") from wrong
    t = widened(fitting(file, found, SHAPES))
    root = _root(folder, t["W_enc"].shape[0])
    t["W_enc"], t["W_dec"] = t["W_enc"] / root, t["W_dec"] * root
    reads, writes, about = _told(folder)
    encoder, own = t["W_enc"].mT.contiguous(), {"threshold": t["threshold"]}
    d = Dictionary(JumpRelu(), ALL, encoder, t["b_enc"], t["W_dec"], t["b_dec"], own, None, reads, writes, about)
    return d.to(torch.float32)


def write(dictionary: Dictionary, folder: Path) -> None:
    """JumpReLU and ReLU. The arrays alone: site and model have no place there."""
    d = plain(dictionary, FIRST, (JumpRelu, ReluL1))
    if d.skip is not None:
        raise ValueError(f"the form {FIRST!r} has no skip connection; save as {SECOND!r}")
    root = _root(folder, d.encoder.shape[1])
    t = {"W_enc": d.encoder.mT * root, "W_dec": d.decoder / root, "b_enc": d.encoder_bias, "b_dec": d.decoder_bias}
    np.savez(folder / ARRAYS, **{k: v.contiguous().numpy() for k, v in (t | {"threshold": thresholds(d)}).items()})


def read_second(folder: Path) -> Dictionary:
    """The second, which names its places itself; its skip connection lies transposed."""
    t = tensors_of(folder / TENSORS, SHAPES_2)
    cfg = note_of(folder / NOTE)
    one_of(folder / NOTE, cfg, "architecture", {"jump_relu": JumpRelu})
    at = [_site(cfg.get(f"hf_hook_point_{side}")) for side in ("in", "out")]
    reads = at[0] or ("in" if at[1] or "affine_skip_connection" in t else None)
    skip = t["affine_skip_connection"].mT.contiguous() if "affine_skip_connection" in t else None
    return Dictionary(
        JumpRelu(),
        ALL,
        t["w_enc"].mT.contiguous(),
        t["b_enc"],
        t["w_dec"],
        t["b_dec"],
        {"threshold": t["threshold"]},
        skip,
        (reads,) if reads else (),
        (at[1] or reads,) if reads else (),
        {"made by": "Gemma Scope 2", **{k: v for k, v in (("model", cfg.get("model_name")),) if v}},
    ).to(torch.float32)


def write_second(dictionary: Dictionary, folder: Path) -> None:
    """JumpReLU and ReLU, with a skip connection or without."""
    d = plain(dictionary, SECOND, (JumpRelu, ReluL1))
    t = {"w_enc": d.encoder.mT, "w_dec": d.decoder, "b_enc": d.encoder_bias, "b_dec": d.decoder_bias}
    t |= {"threshold": thresholds(d)} | ({} if d.skip is None else {"affine_skip_connection": d.skip.mT})
    cfg = {"architecture": "jump_relu", "model_name": d.about.get("model"), "affine_connection": d.skip is not None}
    cfg |= {"hf_hook_point_in": _hook(d.reads[0])} if d.reads else {}
    cfg |= {"hf_hook_point_out": _hook(d.writes[0])} if d.writes and not d.is_autoencoder else {}
    write_tensors(folder / TENSORS, t)
    write_note(folder / NOTE, cfg)


FORMS = (single(FIRST, (ARRAYS,), read, write), single(SECOND, (NOTE, TENSORS), read_second, write_second))


def _root(folder: Path, dim: int) -> float:
    return math.sqrt(dim) if "embedding" in folder.absolute().parent.parts[-2:] else 1.0


def _told(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]:
    """From `.../gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`, or as much of it as is there."""
    path = folder.absolute().as_posix()
    repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", path)
    layer = re.search(r"layer_(\d+)", path)
    about = {"made by": "Gemma Scope", "place": "/".join(folder.absolute().parts[-3:])}
    if not repository or not layer:
        return (), (), about
    model = f"google/gemma-2-{repository[1]}" + ("-it" if repository[2] == "it" else "")
    hooks = [f"blocks.{layer[1]}.{place}" for place in PLACES[repository[3]]]
    reads, writes = (path_of(hook, model) or hook for hook in hooks)
    return (reads,), (writes,), about | {"model": model}


def _site(hook: object) -> str | None:
    """`model.layers.3.self_attn.o_proj.input` -> `model.layers.3.self_attn.o_proj:in`."""
    if not isinstance(hook, str) or not hook:
        return None
    return hook.removesuffix(".input") + ":in" if hook.endswith(".input") else hook.removesuffix(".output")


def _hook(site: str) -> str:
    return site.removesuffix(":in") + ".input" if site.endswith(":in") else f"{site}.output"
