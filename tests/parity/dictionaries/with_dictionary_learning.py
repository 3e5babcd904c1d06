"""Run in an environment with dictionary_learning: read a directory and say what it makes of x, or write one of a kind."""

import json
import pathlib
import sys
import types

import torch

sys.modules["nnsight"] = types.ModuleType("nnsight")  # 0.3 of it wants an old transformers; no dictionary needs it
sys.modules["nnsight"].LanguageModel = object

from dictionary_learning import dictionary  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402
from dictionary_learning.utils import load_dictionary  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

DIM, LATENTS = 16, 64
MORE = {
    "AutoEncoderTopK": {"k": 5},
    "BatchTopKSAE": {"k": 5},
    "MatryoshkaBatchTopKSAE": {"k": 5, "group_sizes": [4, 20, 40]},
}
OTHERS = {
    "AutoEncoderTopK": AutoEncoderTopK,
    "BatchTopKSAE": BatchTopKSAE,
    "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE,
}


def write(kind, place):
    cls = OTHERS.get(kind) or getattr(dictionary, kind)
    ae = cls(DIM, LATENTS, **MORE.get(kind, {}))
    make = torch.Generator().manual_seed(7)
    for name, p in ae.named_parameters():
        p.data = torch.randn(p.shape, generator=make) / 4
        if name == "threshold":
            p.data = p.data.abs()
    if "BatchTopK" in kind:
        ae.threshold.fill_(0.7)
    place = pathlib.Path(place)
    place.mkdir()
    torch.save(ae.state_dict(), place / "ae.pt")
    trainer = {
        "dict_class": kind,
        "activation_dim": DIM,
        "dict_size": LATENTS,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m",
    }
    trainer |= {"k": 5} if "k" in MORE.get(kind, {}) else {}
    (place / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))


if sys.argv[1] == "read":
    place, x, out = sys.argv[2:]
else:
    kind, place, x, out = sys.argv[2:]
    write(kind, place)
ae, _ = load_dictionary(place, "cpu")
x = load_file(x)["x"]
with torch.no_grad():
    z = ae.encode(x)
    save_file({"z": z.contiguous(), "out": ae.decode(z).contiguous()}, out)
