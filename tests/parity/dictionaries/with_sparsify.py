"""Run in an environment with sparsify: read a directory and say what it makes of x, or write one of a kind."""

import sys

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

DIM = 16


def said(sae, x):
    with torch.no_grad():
        value, index, _ = sae.encode(x)
        z = torch.zeros(len(x), sae.num_latents).scatter_(1, index, value)
        return {"z": z, "out": sae(x).sae_out.contiguous()}


def write(kind, place):
    cfg = SparseCoderConfig(expansion_factor=4, k=5, transcode=kind != "sae", skip_connection=kind == "skip")
    sae = SparseCoder(DIM, cfg)
    make = torch.Generator().manual_seed(7)
    for p in sae.parameters():
        p.data = torch.randn(p.shape, generator=make) / 4
    sae.save_to_disk(place)
    return sae


if sys.argv[1] == "read":
    place, x, out = sys.argv[2:]
    sae = SparseCoder.load_from_disk(place)
else:
    kind, place, x, out = sys.argv[2:]
    sae = write(kind, place)
save_file(said(sae, load_file(x)["x"]), out)
