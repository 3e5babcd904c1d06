"""Run in an environment with circuit-tracer: read a directory and say what it makes of x, or write one of a kind."""

import pathlib
import sys

import torch
import yaml
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import load_file, save_file

DIM, LATENTS, LAYERS = 16, 64, 3


def across(clt, x):
    """x at every layer; outputs side by side."""
    several = x.expand(clt.n_layers, *x.shape).contiguous()
    z = clt.encode(several)
    out = clt.decode(z.to_sparse(), several)
    return {"z": z.contiguous(), "out": out.transpose(0, 1).reshape(len(x), -1).contiguous()}


def read(place, x):
    place = pathlib.Path(place)
    note = yaml.safe_load((place / "config.yaml").read_text())
    if note["model_kind"] == "cross_layer_transcoder":
        return across(load_clt(str(place), dtype=torch.float32, device=torch.device("cpu")), x)
    paths = {0: str(place / "layer_0.safetensors")}
    hooks = (note["feature_input_hook"], note["feature_output_hook"])
    kept = load_transcoder_set(paths, "here", *hooks, torch.device("cpu"), torch.float32)
    t = kept[0]
    z = t.encode(x)
    out = t.decode(z, x)
    return {"z": z.contiguous(), "out": out.contiguous()}


def write(kind, place, x):
    jump = "jump_relu" if kind.endswith("jump") else "relu"
    clt = CrossLayerTranscoder(
        LAYERS, LATENTS, DIM, jump, lazy_decoder=False, device=torch.device("cpu"), dtype=torch.float32
    )
    make = torch.Generator().manual_seed(7)
    for name, p in clt.named_parameters():
        p.data = torch.randn(p.shape, generator=make) / 4
        if name.endswith("threshold"):
            p.data = p.data.abs()
    pathlib.Path(place).mkdir()
    clt.to_safetensors(place)
    return across(clt, x)


with torch.no_grad():
    if sys.argv[1] == "read":
        place, x, out = sys.argv[2:]
        save_file(read(place, load_file(x)["x"]), out)
    else:
        kind, place, x, out = sys.argv[2:]
        save_file(write(kind, place, load_file(x)["x"]), out)
