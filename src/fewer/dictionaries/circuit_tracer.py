"""circuit-tracer's directories, both ways: transcoders of each layer, and cross-layer transcoders; with `config.yaml`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewer.features import Dictionary
from fewer.features.jump_relu import JumpRelu
from fewer.features.relu_l1 import ReluL1
from fewer.models.hook_names import hook_of, site_of

from ._disk import Tensors, tensors_of, write_tensors
from ._form import ALL, Form, plain, thresholds

LAYERS, ACROSS, NOTE = "circuit_tracer", "circuit_tracer_clt", "config.yaml"
THRESHOLD = "activation_function.threshold"
SHAPES = {"W_enc": "latents in", "W_dec": "latents out", "b_enc": "latents", "b_dec": "out"}
SHAPES |= {f"{THRESHOLD}?": "latents", "W_skip?": "out in"}


def read(folder: Path) -> list[Dictionary]:
    """One transcoder a layer, `layer_0.safetensors` and on."""
    note, out = _note(folder / NOTE), []
    for i in _numbers(folder, "layer_"):
        file = folder / f"layer_{i}.safetensors"
        t = tensors_of(file, SHAPES)
        sites = _sites(note, i, (i,))
        out.append(
            _built(file, t["W_enc"], t["b_enc"], t["W_dec"], t["b_dec"], t.get(THRESHOLD), t.get("W_skip"), note, sites)
        )
    return out


def write(several: Sequence[Dictionary], folder: Path) -> None:
    """ReLU and JumpReLU; from layer 0 on without a gap, all at the same place of their layers."""
    whole = [plain(d, LAYERS, (JumpRelu, ReluL1)) for d in several]
    if len({d.latents for d in whole}) > 1:
        raise ValueError(
            f"the form {LAYERS!r} has equally many latents in each layer, not {[d.latents for d in whole]}"
        )
    note = _noted(whole, "transcoder_set", [(i,) for i in range(len(whole))])
    for i, d in enumerate(whole):
        t = {"W_enc": d.encoder, "W_dec": d.decoder, "b_enc": d.encoder_bias, "b_dec": d.decoder_bias}
        t |= {} if d.skip is None else {"W_skip": d.skip}
        t |= {THRESHOLD: thresholds(d)} if isinstance(d.sparsifier, JumpRelu) else {}
        write_tensors(folder / f"layer_{i}.safetensors", t)
    _write_note(folder / NOTE, note)


def read_across(folder: Path) -> list[Dictionary]:
    """A cross-layer transcoder is one dictionary a layer, which writes there and at all later ones; what they write adds up.

    The bias of a layer's output goes to the dictionary that reads there, as does its skip connection (which lies transposed).
    """
    numbers, note, out = _numbers(folder, "W_enc_"), _note(folder / NOTE), []
    for i in numbers:
        left = len(numbers) - i
        file, shapes = folder / f"W_enc_{i}.safetensors", {"W_enc": "latents dim", "b_enc": "latents", "b_dec": "dim"}
        shapes |= {"threshold?": "latents", "W_skip?": "dim dim"}
        found = tensors_of(file, {f"{n.removesuffix('?')}_{i}" + "?" * n.endswith("?"): s for n, s in shapes.items()})
        t = {name.removesuffix(f"_{i}"): x for name, x in found.items()}
        atoms = tensors_of(folder / f"W_dec_{i}.safetensors", {f"W_dec_{i}": "latents layers dim"})[f"W_dec_{i}"]
        (n, dim), right = t["W_enc"].shape, (len(t["b_enc"]), left, len(t["b_dec"]))
        if tuple(atoms.shape) != right:
            raise ValueError(
                f"{folder}/W_dec_{i}.safetensors: W_dec_{i} is {list(atoms.shape)}; {list(right)} would fit"
            )
        skip = F.pad(t["W_skip"].mT, (0, 0, 0, (left - 1) * dim)) if "W_skip" in t else None
        sites = _sites(note, i, range(i, len(numbers)))
        said = F.pad(t["b_dec"], (0, (left - 1) * dim))
        out.append(
            _built(file, t["W_enc"], t["b_enc"], atoms.reshape(n, -1), said, t.get("threshold"), skip, note, sites)
        )
    return out


def write_across(several: Sequence[Dictionary], folder: Path) -> None:
    """ReLU and JumpReLU; the dictionary of layer i of L writes L - i layers. Biases at a layer's output are added up."""
    whole = [plain(d, ACROSS, (JumpRelu, ReluL1)) for d in several]
    count, dim, n = len(whole), whole[0].encoder.shape[1], whole[0].latents
    for i, d in enumerate(whole):
        if d.encoder.shape != (n, dim) or d.decoder.shape[1] != (count - i) * dim:
            raise ValueError(
                f"the form {ACROSS!r}: dictionary {i} of {count} must read {dim} numbers with {n} latents and write "
                f"{(count - i) * dim}, for {count - i} layers; it reads {d.encoder.shape[1]}, has {d.latents}, writes {d.decoder.shape[1]}"
            )
        if d.skip is not None and d.skip[dim:].any():
            raise ValueError(
                f"the form {ACROSS!r}: the skip connection of dictionary {i} must write at its own layer alone"
            )
    note = _noted(whole, "cross_layer_transcoder", [range(i, count) for i in range(count)])
    jumps, skips = (
        any(which)
        for which in zip(*((isinstance(d.sparsifier, JumpRelu), d.skip is not None) for d in whole), strict=True)
    )
    said = torch.stack([F.pad(d.decoder_bias, (i * dim, 0)) for i, d in enumerate(whole)]).sum(0).view(count, dim)
    for i, d in enumerate(whole):
        t: Tensors = {"W_enc": d.encoder, "b_enc": d.encoder_bias, "b_dec": said[i]}
        t |= {"threshold": thresholds(d)} if jumps else {}
        t |= {"W_skip": torch.zeros(dim, dim) if d.skip is None else d.skip[:dim].mT} if skips else {}
        write_tensors(folder / f"W_enc_{i}.safetensors", {f"{name}_{i}": x for name, x in t.items()})
        write_tensors(folder / f"W_dec_{i}.safetensors", {f"W_dec_{i}": d.decoder.view(n, count - i, dim)})
    _write_note(folder / NOTE, note)


FORMS = (
    Form(LAYERS, ("layer_0.safetensors",), read, write),
    Form(ACROSS, ("W_enc_0.safetensors", "W_dec_0.safetensors"), read_across, write_across),
)


def _built(
    file: Path,
    encoder: Tensor,
    bias: Tensor,
    decoder: Tensor,
    said: Tensor,
    threshold: Tensor | None,
    skip: Tensor | None,
    note: Mapping[str, Any],
    sites: tuple[tuple[str, ...], tuple[str, ...]],
) -> Dictionary:
    if threshold is not None and threshold.min() < 0:
        raise ValueError(
            f"{file}: a threshold is below 0, which lets codes below 0 speak: nothing here says such codes"
        )
    sparsifier, own = (ReluL1(), {}) if threshold is None else (JumpRelu(), {"threshold": threshold})
    about = {"made by": "circuit-tracer"} | ({"model": note["model_name"]} if note.get("model_name") else {})
    return Dictionary(sparsifier, ALL, encoder, bias, decoder, said, own, skip, *sites, about).to(torch.float32)


def _numbers(folder: Path, start: str) -> list[int]:
    """Of the files, which begin with 0 and leave none out."""
    found = [re.fullmatch(rf"{start}(\d+)\.safetensors", file.name) for file in folder.iterdir()]
    numbers = sorted(int(name[1]) for name in found if name)
    if numbers != list(range(len(numbers))):
        missing = next(i for i in range(len(numbers)) if i not in numbers)
        raise ValueError(f"{folder}: {start}{missing}.safetensors is missing; there are those of {numbers}")
    return numbers


def _note(file: Path) -> dict[str, Any]:
    """The configuration; without the file, nothing is known of places."""
    import yaml

    if not file.is_file():
        return {}
    try:
        note = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as wrong:
        raise ValueError(f"{file} cannot be read: {wrong}") from wrong
    if not isinstance(note, dict):
        raise ValueError(f"{file}: expected names and values, got {type(note).__name__}")
    return note


def _sites(note: Mapping[str, Any], reads: int, writes: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`hook_mlp_out` is that of each layer, with or without `blocks.{layer}.` before it."""
    sides = []
    for side, layers in (("input", (reads,)), ("output", writes)):
        hook = str(note.get(f"feature_{side}_hook") or side).removeprefix("blocks.{layer}.")
        sides.append(tuple(str(site_of(f"blocks.{i}.{hook}", note.get("model_name"))) for i in layers))
    return sides[0], sides[1]


def _noted(several: Sequence[Dictionary], kind: str, layers: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The configuration. ValueError: sites that are not the same place of layer 0, 1, 2, ..."""
    model = str(several[0].about.get("model") or "")
    hooks: list[set[str]] = [set(), set()]
    for i, d in enumerate(several):
        for found, sites, numbers in ((hooks[0], d.reads, (i,)), (hooks[1], d.writes, layers[i])):
            named = [hook_of(site, model) for site in sites]
            found |= {name.removeprefix(f"blocks.{n}.") for name, n in zip(named, numbers, strict=False)}
            if len(named) != len(numbers):
                raise ValueError(
                    f"circuit-tracer: dictionary {i} has sites {sites}, where {len(numbers)} are asked for"
                )
    if any(len(found) != 1 for found in hooks):
        raise ValueError(
            "circuit-tracer: all must read at one place of their layers, from layer 0 on, and write at one; they read "
            f"{[d.reads for d in several]} and write {[d.writes for d in several]}"
        )
    (reads,), (writes,) = hooks
    return {"model_kind": kind, "model_name": model or None, "feature_input_hook": reads, "feature_output_hook": writes}


def _write_note(file: Path, note: Mapping[str, Any]) -> None:
    import yaml

    file.write_text(yaml.safe_dump(dict(note), sort_keys=False), encoding="utf-8")
