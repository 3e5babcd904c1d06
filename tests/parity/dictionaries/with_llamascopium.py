"""Run in an environment with llamascopium: read a directory and say what it makes of x, or write one of a kind."""

import pathlib
import sys

import torch
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
from safetensors.torch import load_file, save_file

DIM, LATENTS = 16, 64


def write(kind, place):
    """As it is stored during training: inputs are scaled, and codes are counted with their rows' lengths."""
    hook = "blocks.3.hook_resid_post"
    cfg = SAEConfig(
        hook_point_in=hook,
        hook_point_out=hook,
        d_model=DIM,
        expansion_factor=4,
        act_fn=kind,
        top_k=5,
        norm_activation="inference",
        sparsity_include_decoder_norm=kind != "topk",
    )
    sae = SparseAutoEncoder(cfg)
    make = torch.Generator().manual_seed(7)
    for p in sae.parameters():
        p.data = torch.randn(p.shape, generator=make) / 4
    sae.save_pretrained(place)
    sae.cfg.save_hyperparameters(place)


if sys.argv[1] == "read":
    place, x, out = sys.argv[2:]
else:
    kind, place, x, out = sys.argv[2:]
    pathlib.Path(place).mkdir()
    write(kind, place)
sae = SparseAutoEncoder.from_pretrained(place)
x = load_file(x)["x"]
with torch.no_grad():
    z = sae.encode(x)
    save_file({"z": z.contiguous(), "out": sae.decode(z).contiguous()}, out)
