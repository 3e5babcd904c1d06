"""llamascopium's directories (once Language-Model-SAEs), both ways: `config.json` and `sae_weights.safetensors`."""

import math
from pathlib import Path

import torch

from fewer.features import Dictionary, Sparsifier
from fewer.features.batch_top_k import BatchTopK
from fewer.features.jump_relu import JumpRelu
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_k import TopK
from fewer.models.hook_names import hook_of, site_of

from ._disk import note_of, one_of, tensors_of, whole_number, write_note, write_tensors
from ._form import ALL, kept, plain, single, thresholds, top

NAME, NOTE, TENSORS = "llamascopium", "config.json", "sae_weights.safetensors"
THRESHOLD = "activation_function.log_jumprelu_threshold"
NORM = "dataset_average_activation_norm"
SHAPES = {"W_E": "dim latents", "b_E": "latents", "W_D": "latents dim", "b_D?": "dim"}
KNOWN: dict[str, tuple[Sparsifier, dict[str, str]]] = {
    "relu": (ReluL1(), {}),
    "topk": (TopK(), {}),
    "batchtopk": (BatchTopK(), {}),
    "jumprelu": (JumpRelu(), {THRESHOLD: "latents"}),
}
NOTHING = -1e4  # a logarithm whose exponential is 0


def read(folder: Path) -> Dictionary:
    """SAEs and transcoders of one site. Inputs and outputs that are scaled to a mean length are folded in, codes of plain ones.

    Differs from their own folding: the threshold is scaled with the codes, where theirs stays behind. Where they choose top k by
    the code times its row's length, the codes here are those of rows at length one.
    """
    file = folder / NOTE
    cfg = note_of(file)
    one_of(file, cfg, "sae_type", {"sae": None}, "sae")
    sparsifier, asked = one_of(file, cfg, "act_fn", KNOWN, "relu")
    if cfg.get("use_glu_encoder"):
        raise ValueError(f"{file}: use_glu_encoder must be false: a gated linear unit is not known here")
    places = [cfg.get(f"hook_point_{side}") for side in ("in", "out")]
    scaled = one_of(file, cfg, "norm_activation", {"inference": False, "dataset-wise": True}, "dataset-wise")
    norms = [f"{NORM}.{place}" for place in places]
    t = tensors_of(folder / TENSORS, SHAPES | asked | (dict.fromkeys(norms, "") if scaled else {}))
    wide = {name: x.double() for name, x in t.items()}
    scale_in, scale_out = (math.sqrt(len(t["W_E"])) / wide[norm] for norm in norms) if scaled else (1.0, 1.0)
    encoder, bias, decoder = wide["W_E"].mT, wide["b_E"] / scale_in, wide["W_D"] * (scale_in / scale_out)
    theta = wide[THRESHOLD].exp() / scale_in if THRESHOLD in t else None
    if cfg.get("sparsity_include_decoder_norm", True):
        norm = wide["W_D"].norm(dim=1)
        if theta is not None:
            theta = theta / norm
        elif "topk" in cfg["act_fn"]:
            encoder, bias, decoder = encoder * norm[:, None], bias * norm, decoder / norm[:, None]
    known = (cfg.get("model_name"), *places)
    reads, writes = (site_of(place, known[0]) for place in places)
    return Dictionary(
        sparsifier,
        kept(whole_number(file, cfg, "top_k", len(bias))) if "topk" in cfg["act_fn"] else ALL,
        encoder.contiguous(),
        bias,
        decoder,
        wide["b_D"] / scale_out if "b_D" in t else torch.zeros(decoder.shape[1]),
        {} if theta is None else {"threshold": theta},
        None,
        (reads,) if reads else (),
        ((writes or reads),) if reads else (),
        {"made by": "llamascopium"} | ({"model": known[0]} if known[0] else {}),
    ).to(torch.float32)


def write(dictionary: Dictionary, folder: Path) -> None:
    """ReLU, TopK and JumpReLU (BatchTopK with its threshold), as wide out as in."""
    d = plain(dictionary, NAME, (ReluL1, TopK, JumpRelu))
    dim, n = d.encoder.shape[1], d.latents
    if d.skip is not None or d.decoder.shape[1] != dim:
        raise ValueError(
            f"the form {NAME!r} has no skip connection and writes as many numbers as it reads; save as 'saelens'"
        )
    if len(d.reads) > 1 or len(d.writes) > 1:
        raise ValueError(f"the form {NAME!r} reads one site and writes one, not {d.reads} and {d.writes}")
    model, factor = str(d.about.get("model") or ""), n / dim
    t = {"W_E": d.encoder.mT, "b_E": d.encoder_bias, "W_D": d.decoder, "b_D": d.decoder_bias}
    jumps = isinstance(d.sparsifier, JumpRelu)
    if jumps:  # in float64, so that the exponential gives the same float32 again
        t[THRESHOLD] = thresholds(d).double().log().clamp(min=NOTHING)
    cfg = {
        "sae_type": "sae",
        "d_model": dim,
        "expansion_factor": factor if int(dim * factor) == n else math.nextafter(factor, math.inf),
        "use_decoder_bias": True,
        "act_fn": "jumprelu" if jumps else "topk" if isinstance(d.sparsifier, TopK) else "relu",
        "norm_activation": "inference",
        "sparsity_include_decoder_norm": False,
        "top_k": top(d, NAME) if isinstance(d.sparsifier, TopK) else min(50, n),
        "hook_point_in": hook_of(d.reads[0], model) if d.reads else "in",
        "hook_point_out": hook_of(d.writes[0], model) if d.writes else "in",
        "use_glu_encoder": False,
        "model_name": model or None,
    }
    write_tensors(folder / TENSORS, t)
    write_note(folder / NOTE, cfg)


FORM = single(NAME, (NOTE, TENSORS), read, write)
