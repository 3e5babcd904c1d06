"""dictionary_learning's directories, both ways: `ae.pt`, a state dict, and `config.json` with the trainer's settings."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewer.features import Dictionary
from fewer.features.batch_top_k import BatchTopK
from fewer.features.gated import Gated
from fewer.features.jump_relu import JumpRelu
from fewer.features.matryoshka import Matryoshka
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_k import TopK
from fewer.models.hook_names import hook_of, layer_of, site_of

from ._disk import Tensors, fitting, note_of, one_of, whole_number, widened, write_note
from ._form import ALL, autoencoder, folded, kept, plain, single, thresholds, top, unfolded

NAME, NOTE, STATE = "dictionary_learning", "config.json", "ae.pt"
LINEAR = {"encoder.weight": "latents dim", "decoder.weight": "dim latents"}
BARE = {"W_enc": "dim latents", "W_dec": "latents dim", "b_enc": "latents", "b_dec": "dim"}
BIASED = LINEAR | {"encoder.bias": "latents"}
SHAPES = {
    "AutoEncoder": BIASED | {"bias": "dim"},
    "AutoEncoderNew": BIASED | {"decoder.bias": "dim"},
    "GatedAutoEncoder": LINEAR
    | {"decoder_bias": "dim", "r_mag": "latents", "gate_bias": "latents", "mag_bias": "latents"},
    "AutoEncoderTopK": BIASED | {"b_dec": "dim"},
    "BatchTopKSAE": BIASED | {"b_dec": "dim", "threshold": ""},
    "MatryoshkaBatchTopKSAE": BARE | {"threshold": ""},
    "JumpReluAutoEncoder": BARE | {"threshold": "latents"},
}


def read(folder: Path) -> Dictionary:
    """`ae.pt` is read as tensors and nothing else. As in their own loader, `AutoEncoder` gets rows of length one.

    Their threshold of -1, before it is known, lets all that is positive pass.
    """
    file = folder / NOTE
    trainer = note_of(file).get("trainer")
    if not isinstance(trainer, dict):
        raise ValueError(f"{file}: 'trainer' must be an object with 'dict_class'")
    shapes = one_of(file, trainer, "dict_class", SHAPES)
    state = _state(folder / STATE)
    t = widened(fitting(folder / STATE, state, shapes))
    d = BUILT[trainer["dict_class"]](t)
    if "topk" in trainer["dict_class"].lower():
        d = replace(d, budget=kept(whole_number(file, trainer, "k", d.latents)))
    sizes = _sizes(folder / STATE, state["group_sizes"], d.latents) if "group_sizes" in state else []
    if sizes:
        d = replace(d, sparsifier=Matryoshka(tuple(end / d.latents for end in itertools.accumulate(sizes))))
    model = trainer.get("lm_name")
    site = _site(trainer, model)
    sites = (site,) if site else ()
    about = {k: v for k, v in trainer.items() if k in ("steps", "lr", "seed", "wandb_name")}
    about |= {"made by": NAME} | ({"group_sizes": sizes} if sizes else {}) | ({"model": model} if model else {})
    return replace(d, reads=sites, writes=sites, about=about).to(torch.float32)


def write(dictionary: Dictionary, folder: Path) -> None:
    """ReLU as `AutoEncoderNew`, which subtracts nothing; BatchTopK and Matryoshka with the threshold that was fitted."""
    autoencoder(dictionary, NAME)
    d = dictionary.to("cpu").to(torch.float32)
    if not (isinstance(d.sparsifier, BatchTopK | Matryoshka) and "threshold" in d.own):
        d = plain(d, NAME, (TopK, ReluL1, JumpRelu, Gated))
    kind, state = WRITTEN[type(d.sparsifier)](d)
    torch.save({name: t.detach().contiguous().clone() for name, t in state.items()}, folder / STATE)
    model = d.about.get("model")
    site = d.reads[0] if d.reads else ""
    trainer = {
        "trainer_class": f"{kind}Trainer",
        "dict_class": kind,
        "activation_dim": d.encoder.shape[1],
        "dict_size": d.latents,
        "layer": layer_of(site),
        "lm_name": model,
        "submodule_name": hook_of(site, str(model or "")) or None,
        **{k: v for k, v in d.about.items() if k in ("steps", "lr", "seed", "wandb_name")},
    }
    trainer |= {"k": top(d, NAME)} if "k" in state else {}
    write_note(folder / NOTE, {"trainer": trainer, "buffer": {"ctx_len": d.about.get("length")}})


FORM = single(NAME, (NOTE, STATE), read, write)


def _state(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as wrong:  # torch has many ways to say that a file is not what it was
        raise ValueError(f"{file} cannot be read as tensors: {str(wrong).splitlines()[0]}") from wrong
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{file}: expected names and tensors, got {type(state).__name__}")
    return state


def _site(trainer: Mapping[str, Any], model: object) -> str | None:
    """Their `submodule_name` if it is a place; else the residual stream after the layer."""
    name = trainer.get("submodule_name")
    if isinstance(name, str) and "." in name:
        return site_of(name, model)
    layer = trainer.get("layer")
    return site_of(f"blocks.{layer}.hook_resid_post", model) if type(layer) is int else None


def _sizes(file: Path, sizes: Tensor, latents: int) -> list[int]:
    if sizes.ndim != 1 or sizes.is_floating_point() or int(sizes.sum()) != latents or int(sizes.min()) < 1:
        raise ValueError(f"{file}: 'group_sizes' must be whole numbers that add up to {latents}")
    return sizes.tolist()


def _linear(t: Tensors, said: str, bias: Tensor | None = None) -> Dictionary:
    """`bias` is that of the encoder if it subtracts what the decoder adds."""
    encoder = t["encoder.weight"]
    bias = t["encoder.bias"] if bias is None else folded(bias, encoder, t[said])
    return Dictionary(ReluL1(), ALL, encoder, bias, t["decoder.weight"].mT.contiguous(), t[said])


def _bare(t: Tensors) -> Dictionary:
    return Dictionary(ReluL1(), ALL, t["W_enc"].mT.contiguous(), t["b_enc"], t["W_dec"], t["b_dec"])


def _one_long(d: Dictionary) -> Dictionary:
    norm = d.decoder.norm(dim=1)
    if torch.allclose(norm, torch.ones_like(norm)):
        return d
    return replace(
        d, encoder=d.encoder * norm[:, None], encoder_bias=d.encoder_bias * norm, decoder=d.decoder / norm[:, None]
    )


def _gated(t: Tensors) -> Dictionary:
    scale = t["r_mag"].double()
    own = {"scale": t["r_mag"], "shift": t["mag_bias"].double() - scale.exp() * t["gate_bias"].double()}
    return replace(_linear(t, "decoder_bias", t["gate_bias"]), sparsifier=Gated(), own=own)


def _batch(t: Tensors) -> Dictionary:
    d = _linear(t, "b_dec", t["encoder.bias"])
    return replace(d, sparsifier=BatchTopK(), own={"threshold": t["threshold"].clamp(min=0)})


def _nested(t: Tensors) -> Dictionary:
    d = _bare(t)
    bias = folded(d.encoder_bias, d.encoder, d.decoder_bias)
    own = {"threshold": t["threshold"].clamp(min=0)}
    return replace(d, sparsifier=BatchTopK(), encoder_bias=bias, own=own)


BUILT: dict[str, Callable[[Tensors], Dictionary]] = {
    "AutoEncoder": lambda t: _one_long(_linear(t, "bias", t["encoder.bias"])),
    "AutoEncoderNew": lambda t: _linear(t, "decoder.bias"),
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": lambda t: replace(_linear(t, "b_dec", t["encoder.bias"]), sparsifier=TopK()),
    "BatchTopKSAE": _batch,
    "MatryoshkaBatchTopKSAE": _nested,
    "JumpReluAutoEncoder": lambda t: replace(_bare(t), sparsifier=JumpRelu(), own={"threshold": t["threshold"]}),
}


def _matrices(d: Dictionary) -> Tensors:
    return {"encoder.weight": d.encoder, "decoder.weight": d.decoder.mT}


def _counted(d: Dictionary) -> Tensors:
    threshold = d.own["threshold"].reshape(()) if "threshold" in d.own else torch.tensor(-1.0)
    return {"k": torch.tensor(top(d, NAME), dtype=torch.int32), "threshold": threshold}


def _centred(d: Dictionary) -> Tensor:
    return unfolded(d.encoder_bias, d.encoder, d.decoder_bias)


def _as_relu(d: Dictionary) -> tuple[str, Tensors]:
    return "AutoEncoderNew", _matrices(d) | {"encoder.bias": d.encoder_bias, "decoder.bias": d.decoder_bias}


def _as_gated(d: Dictionary) -> tuple[str, Tensors]:
    gate, scale = _centred(d), d.own["scale"]
    biases = {"gate_bias": gate, "mag_bias": d.own["shift"].double() + scale.double().exp() * gate}
    return "GatedAutoEncoder", _matrices(d) | {"decoder_bias": d.decoder_bias, "r_mag": scale} | biases


def _as_top(kind: str) -> Callable[[Dictionary], tuple[str, Tensors]]:
    return lambda d: (kind, _matrices(d) | {"encoder.bias": _centred(d), "b_dec": d.decoder_bias} | _counted(d))


def _as_jump(d: Dictionary) -> tuple[str, Tensors]:
    t = {"W_enc": d.encoder.mT, "W_dec": d.decoder, "b_enc": d.encoder_bias, "b_dec": d.decoder_bias}
    return "JumpReluAutoEncoder", t | {"threshold": thresholds(d)}


def _as_nested(d: Dictionary) -> tuple[str, Tensors]:
    sizes = torch.tensor([0, *d.sparsifier.ends(d.latents)]).diff()  # type: ignore[attr-defined]
    t = {"W_enc": d.encoder.mT, "W_dec": d.decoder, "b_enc": _centred(d), "b_dec": d.decoder_bias}
    return "MatryoshkaBatchTopKSAE", t | _counted(d) | {"group_sizes": sizes}


WRITTEN: dict[type, Callable[[Dictionary], tuple[str, Tensors]]] = {
    ReluL1: _as_relu,
    Gated: _as_gated,
    TopK: _as_top("AutoEncoderTopK"),
    BatchTopK: _as_top("BatchTopKSAE"),
    JumpRelu: _as_jump,
    Matryoshka: _as_nested,
}
