"""sparsify's directories, both ways: `cfg.json` and `sae.safetensors`, named after the place in the model."""

from pathlib import Path

import torch

from fewer.features import Dictionary
from fewer.features.top_k import TopK

from ._disk import note_of, one_of, tensors_of, whole_number, write_note, write_tensors
from ._form import folded, kept, plain, single, top, unfolded

NAME, NOTE, TENSORS = "sparsify", "cfg.json", "sae.safetensors"
SHAPES = {
    "encoder.weight": "latents in",
    "encoder.bias": "latents",
    "W_dec": "latents out",
    "b_dec": "out",
    "W_skip?": "out in",
}


def read(folder: Path) -> Dictionary:
    """An autoencoder subtracts b_dec from what it reads, a transcoder does not. The directory's name is the site.

    `num_latents` of the file is not asked: it is 0 where sparsify itself says so; the encoder knows.
    """
    file, t = folder / NOTE, tensors_of(folder / TENSORS, SHAPES)
    cfg = note_of(file)
    one_of(file, cfg, "activation", {"topk": TopK}, "topk")
    bias, site = t["encoder.bias"], folder.name
    coder = bool(cfg.get("transcode"))
    return Dictionary(
        TopK(),
        kept(whole_number(file, cfg, "k", len(bias))),
        t["encoder.weight"],
        bias if coder else folded(bias, t["encoder.weight"], t["b_dec"]),
        t["W_dec"],
        t["b_dec"],
        {},
        t.get("W_skip"),
        (f"{site}:in" if coder else site,),
        (site,),
        {"made by": "sparsify"},
    ).to(torch.float32)


def write(dictionary: Dictionary, folder: Path) -> None:
    """TopK alone, as wide out as in. Whoever loads it by its place gives the directory the place's name, such as `layers.4`."""
    d = plain(dictionary, NAME, (TopK,))
    coder = not d.is_autoencoder
    if d.encoder.shape[1] != d.decoder.shape[1]:
        raise ValueError(
            f"the form {NAME!r} writes as many numbers as it reads, not {d.decoder.shape[1]} of {d.encoder.shape[1]}"
        )
    t = {
        "encoder.weight": d.encoder,
        "encoder.bias": d.encoder_bias if coder else unfolded(d.encoder_bias, d.encoder, d.decoder_bias),
        "W_dec": d.decoder,
        "b_dec": d.decoder_bias,
    }
    write_tensors(folder / TENSORS, t | ({} if d.skip is None else {"W_skip": d.skip}))
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, d.latents // d.encoder.shape[1]),
        "normalize_decoder": False,
        "num_latents": d.latents,
        "k": top(d, NAME),
        "multi_topk": False,
        "skip_connection": d.skip is not None,
        "transcode": coder,
        "d_in": d.encoder.shape[1],
    }
    write_note(folder / NOTE, cfg)


FORM = single(NAME, (NOTE, TENSORS), read, write)
