"""sparsify's directories, both ways: `cfg.json` and `sae.safetensors`, named after the place in the model."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fewer.core import budget
from fewer.features import Dictionary
from fewer.features.top_k import TopK

NOTE, TENSORS = "cfg.json", "sae.safetensors"
NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def read(folder: Path) -> Dictionary:
    """An autoencoder subtracts b_dec from what it reads, a transcoder does not. The directory's name is the site.

    `num_latents` of the file is not asked: it is 0 where sparsify itself says so; the encoder knows.
    """
    try:
        cfg, t = json.loads((folder / NOTE).read_text(encoding="utf-8")), load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as wrong:
        raise ValueError(f"{folder}: {wrong}") from wrong
    if missing := [name for name in NAMES if name not in t]:
        raise ValueError(f"{folder / TENSORS} has no {missing[0]!r}")
    if cfg.get("activation", "topk") != "topk":
        raise ValueError(f"{folder / NOTE}: activation={cfg['activation']!r} is not known here; known: 'topk'")
    encoder, bias, decoder, said = (t[name].float() for name in NAMES)
    if encoder.shape[0] != decoder.shape[0] or bias.shape != encoder.shape[:1] or said.shape != decoder.shape[1:]:
        raise ValueError(f"{folder / TENSORS}: {[list(t[name].shape) for name in NAMES]} do not fit together")
    if not cfg.get("transcode"):
        bias = bias - encoder @ said
    site = (folder.name,)
    skip = t["W_skip"].float() if "W_skip" in t else None
    return Dictionary(
        TopK(), budget(str(int(cfg["k"]))), encoder, bias, decoder, said, {}, skip, site, site, {"made by": "sparsify"}
    )


def write(dictionary: Dictionary, folder: str | Path) -> None:
    """Write the directory anew. ValueError: another sparsifier than TopK."""
    folder, d = Path(folder), dictionary.to("cpu")
    if folder.exists():
        raise ValueError(f"{folder} exists; name a new directory")
    if not isinstance(d.sparsifier, TopK):
        raise ValueError(f"sparsify has TopK alone, not {d.sparsifier.name}")
    bias = d.encoder_bias + d.encoder @ d.decoder_bias if d.is_autoencoder else d.encoder_bias
    t = {"encoder.weight": d.encoder, "encoder.bias": bias, "W_dec": d.decoder, "b_dec": d.decoder_bias}
    if d.skip is not None:
        t["W_skip"] = d.skip
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, d.latents // d.encoder.shape[1]),
        "normalize_decoder": False,
        "num_latents": d.latents,
        "k": d.budget.of(d.latents),
        "multi_topk": False,
        "skip_connection": d.skip is not None,
        "transcode": not d.is_autoencoder,
        "d_in": d.encoder.shape[1],
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir()
    save_file({name: x.float().contiguous().clone() for name, x in t.items()}, part / TENSORS)
    (part / NOTE).write_text(json.dumps(cfg, indent=1) + "\n", encoding="utf-8")
    part.rename(folder)
