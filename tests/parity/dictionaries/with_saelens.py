"""Run in an environment with SAELens: read a directory and say what it makes of x, or write one of a kind."""

import sys

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

DIM, LATENTS = 16, 64


def said(sae, x):
    with torch.no_grad():
        z = sae.encode(x)
        return {"z": z.contiguous(), "out": sae(x).contiguous()}


def write(kind, place):
    from sae_lens.registry import get_sae_class, get_sae_training_class

    kind, _, how = kind.partition("-")
    training = kind == "batchtopk"
    sae_class, cfg_class = (get_sae_training_class if training else get_sae_class)(kind)
    more = {"k": 5} if "topk" in kind else {}
    more |= {"rescale_acts_by_decoder_norm": how == "rescaled"} if kind in ("topk", "abstopk") else {}
    more |= {"d_out": 12, "apply_b_dec_to_input": False} if "transcoder" in kind else {}
    more |= {"apply_b_dec_to_input": False} if how == "plain" else {}
    sae = sae_class(cfg_class(d_in=DIM, d_sae=LATENTS, **more))
    make = torch.Generator().manual_seed(7)
    for name, p in sae.named_parameters():
        p.data = torch.randn(p.shape, generator=make) / (4 if p.ndim == 2 else 3)
        if name == "threshold":
            p.data = p.data.abs()
    if not training:
        sae.save_model(place)
        return sae
    sae.topk_threshold.fill_(0.7)
    sae.save_inference_model(place)  # a jumprelu
    return SAE.load_from_disk(place)


if sys.argv[1] == "read":
    place, x, out = sys.argv[2:]
    sae = SAE.load_from_disk(place)
else:
    kind, place, x, out = sys.argv[2:]
    sae = write(kind, place)
save_file(said(sae, load_file(x)["x"]), out)
