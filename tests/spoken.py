"""Codes with planted facts, and the index that is built of them: what the tests of features on disk share."""

import torch

from fewer.core import budget
from fewer.dictionaries.spool import Spool
from fewer.features import Dictionary
from fewer.features.top_k import TopK
from fewer.layout import Codes

WINDOWS, LENGTH, FEATURES, VOCABULARY = 12, 20, 17, 30


def text(seed=0, windows=WINDOWS, length=LENGTH):
    return torch.randint(0, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))


def dense(seed=0, tokens=WINDOWS * LENGTH, features=FEATURES):
    """Codes of both signs, sparse; the last feature never speaks, the first often, and two always together."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, features, generator=draw) * (torch.rand(tokens, features, generator=draw) < 0.15)
    z[:, 0] = torch.rand(tokens, generator=draw) + 0.1
    z[:, 2] = 3 * z[:, 1]
    z[:, -1] = 0
    return z


def built(z, tokens, out, batch=30, chunk=1 << 20, real=None, about=None):
    spool = Spool(out, z.shape[1], tokens, about, chunk)
    for start in range(spool.done, len(z), batch):
        some = z[start : start + batch]
        spool.add(Codes.pack(some, some != 0), None if real is None else real[start : start + batch])
    return spool.finish()


def stored(z):
    """What is left of codes: float16 of each, divided by its feature's power of two."""
    top = z.abs().amax(0).double()
    scale = 2.0 ** (torch.floor(torch.log2(top.clamp(min=1e-300))) - 14)
    return torch.where(top > 0, (z / scale).half().double() * scale, 0.0).numpy()


def dictionary(features=FEATURES, dim=32, seed=0, reads=("model.layers.0",), rule=None, keep="4"):
    draw = torch.Generator().manual_seed(seed)
    w, d = torch.randn(features, dim, generator=draw), torch.randn(features, dim, generator=draw)
    return Dictionary(
        rule or TopK(), budget(keep), w, torch.zeros(features), d, torch.zeros(dim), reads=reads, writes=reads
    )
