"""What a dictionary made of some inputs when it was written, and whether it still does."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.features import Dictionary

from ._disk import loaded, write_tensors

FILE = "probe.safetensors"  # beside the files of any form; who does not know it passes it by
INPUTS, SPEAK = 8, 4
NEAR = 1e-3  # how far an output may be from the kept one, as a share of the largest


def write_probe(several: Sequence[Dictionary], folder: Path) -> None:
    """Inputs, who spoke (-1: nobody) and what was said, for each dictionary."""
    t = {}
    for i, d in enumerate(several):
        d = d.to("cpu").to(torch.float32)
        x = probing(d)
        codes = d.encode(x)
        who = codes.index.masked_fill(codes.value == 0, -1)
        t |= {f"{i}.x": x, f"{i}.who": who, f"{i}.said": d.decode(codes, x)}
    write_tensors(folder / FILE, t)


def check_probe(several: Sequence[Dictionary], folder: Path) -> None:
    """ValueError if a dictionary says something else of its probe than it did. A few inputs may be off: on another machine, a
    latent at its threshold can fall on the other side.
    """
    if not (file := folder / FILE).is_file():
        return
    t = loaded(file)
    for i, d in enumerate(several):
        x, who, said = (t.get(f"{i}.{name}") for name in ("x", "who", "said"))
        if x is None or who is None or said is None:
            raise ValueError(f"{file} has no probe of dictionary {i}: is it that of other files?")
        off = _off(d.to("cpu").to(torch.float32), x, who, said) if _fits(d, x, who, said) else len(x)
        if off > len(x) // 4:
            raise ValueError(
                f"{folder}: {off} of {len(x)} probes come out otherwise than when it was written: its files were changed or "
                "damaged; load(..., verify=False) opens it all the same"
            )


def _fits(d: Dictionary, x: Tensor, who: Tensor, said: Tensor) -> bool:
    inside = x.shape[1:] == d.encoder.shape[1:] and said.shape == (len(x), d.decoder.shape[1]) and len(who) == len(x)
    return inside and who.ndim == 2 and not who.is_floating_point() and bool((who < d.latents).all())


def _off(d: Dictionary, x: Tensor, who: Tensor, said: Tensor) -> int:
    """How many inputs are spelt by others, or say something else."""
    codes = d.encode(x)
    then = torch.zeros(len(x), d.latents + 1, dtype=torch.bool).scatter_(1, who + 1, True)[:, 1:]
    far = (d.decode(codes, x) - said).abs().amax(1) > NEAR * said.abs().max()
    return int(((codes.keep() != then).any(1) | far).sum())


def probing(d: Dictionary) -> Float[Tensor, "inputs in"]:
    """Inputs of which some latents, drawn by a fixed seed, have pre-activations well above 0 and above their thresholds."""
    some = torch.randint(d.latents, (INPUTS, SPEAK), generator=torch.Generator().manual_seed(0))
    heard = d.how.heard(some)  # by each of them, one map or several
    rows, bias = d.encoder[heard].double().flatten(1, 2), d.encoder_bias[heard].double().flatten(1)
    theta = d.own.get("threshold", torch.zeros(())).double().expand(d.latents)[some]
    theta = theta.repeat_interleave(heard.shape[2], 1)
    wanted = 2 * theta.clamp(min=0) + 4 * rows.norm(dim=2) - bias
    return (torch.linalg.pinv(rows) @ wanted[..., None])[..., 0].to(d.encoder)
