"""Where a dictionary begins: its first tensors, by name."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.features.linear import Linear

from .known import Known
from .pupil import Lesson, Pupil

PARTS = "atoms_"  # begins the names of what the atoms are made of, where they are not learnt themselves


def begun(pupil: Pupil, known: Known, lesson: Lesson, rows: Float[Tensor, "n dim"] | None) -> dict[str, Tensor]:
    """What is learnt, at first. `rows` are data as they come, which some ways to begin must see."""
    p, draw = pupil, torch.Generator().manual_seed(pupil.seed)
    d_in, d_out = (len(known.of_sites(known.mean, names)) for names in (p.reads, p.writes))
    first = F.normalize(torch.randn(p.encoder.maps(p.latents), max(d_in, d_out), generator=draw), dim=1)
    into, out = _seen(p.start.looks, rows, known, p.reads), _seen(p.start.looks, rows, known, p.writes)
    encoder = p.start.directions(first[:, :d_in], into).contiguous()
    atoms = p.encoder.atoms(p.start.directions(first[:, :d_out], out)).contiguous()
    parts = p.decoder.begin(atoms, _seen(p.decoder.looks, rows, known, p.writes, about_mean=False), draw)
    if "decoder" not in parts:
        if p.reads == p.writes and isinstance(p.encoder, Linear):
            encoder = p.decoder.atoms(parts).clone()  # it begins by hearing what it says
        parts = {PARTS + name: t for name, t in parts.items()}
    return {
        "encoder": encoder,
        "encoder_bias": torch.zeros(len(encoder)),
        **parts,
        "decoder_bias": torch.zeros(d_out),
        **({"skip": torch.zeros(d_out, d_in)} if lesson.skip else {}),
        **{f"own_{name}": t for name, t in p.sparsifier.begin(p.latents, p.budget).items()},
    }


def _seen(
    looks: bool, rows: Tensor | None, known: Known, names: tuple[str, ...], about_mean: bool = True
) -> Float[Tensor, "n some"]:
    """Of these sites, by their scale; no rows if nobody looks. ValueError: somebody does, and there are none."""
    if not looks:
        return known.of_sites(known.mean, names)[None][:0]
    if rows is None:
        raise ValueError("how this dictionary begins depends on data: give One(..., rows=...)")
    seen = known.seen(rows) if about_mean else rows.float() / known.scale.to(rows.device)
    return known.of_sites(seen, names)
