"""kvpress 0.5.5 keeps the same tokens as ours, layer by layer, head by head. FEWER_PEER_KVPRESS names a python that has it:

python -m venv kv && kv/bin/pip install kvpress==0.5.5 "transformers<5.3" torch
FEWER_PEER_KVPRESS=kv/bin/python pytest -s tests/parity/test_kvpress.py     # -s prints the table
"""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewer.cache import Around, Past, Received, Rope
from fewer.cache.ada import Ada
from fewer.cache.block_wise import BlockWise
from fewer.cache.chunk_kv import ChunkKv
from fewer.cache.chunk_wise import ChunkWise
from fewer.cache.compactor import Compactor
from fewer.cache.critical_kv import CriticalKv
from fewer.cache.cur import Cur
from fewer.cache.duo import Duo
from fewer.cache.expected_attention import ExpectedAttention
from fewer.cache.finch import Finch
from fewer.cache.key_diff import KeyDiff
from fewer.cache.key_norm import KeyNorm
from fewer.cache.lag_kv import LagKv
from fewer.cache.leverage import Leverage
from fewer.cache.non_causal_attention import NonCausalAttention
from fewer.cache.observed_attention import ObservedAttention
from fewer.cache.pyramid import Pyramid
from fewer.cache.q_filters import QFilters
from fewer.cache.rerotated import Rerotated
from fewer.cache.snap_kv import SnapKv
from fewer.cache.streaming_llm import StreamingLlm
from fewer.cache.tova import Tova

PEER = os.environ.get("FEWER_PEER_KVPRESS")
pytestmark = pytest.mark.skipif(PEER is None, reason="FEWER_PEER_KVPRESS does not name a python with kvpress 0.5.5")

N, LAYERS, KV, DIM = 400, 3, 2, 16
SHARES = {"50%": 200, "25%": 100}
FLAT = ExpectedAttention(values=False)
PLAIN = {
    "Knorm": KeyNorm(),
    "StreamingLLM": StreamingLlm(),
    "SnapKV": SnapKv(),
    "SnapKV window 16 kernel 7": SnapKv(16, 7),
    "TOVA": Tova(),
    "ExpectedAttention": ExpectedAttention(),
    "ExpectedAttention no covariance": ExpectedAttention(covariance=False),
    "ExpectedAttention no values": FLAT,
    "ExpectedAttention epsilon": ExpectedAttention(floor=0.02),
    "KeyDiff": KeyDiff(),
    "LeverageScore": Leverage(),
    "CUR": Cur(),
    "ObservedAttention": ObservedAttention(),
    "ChunkKV of SnapKV": ChunkKv(SnapKv()),
    "ChunkKV of Knorm": ChunkKv(KeyNorm()),
    "Chunk of Knorm": ChunkWise(KeyNorm(), 100),
    "Chunk of KeyDiff": ChunkWise(KeyDiff(), 100),
    "Block of KeyDiff": BlockWise(KeyDiff(), 32),
    "CriticalKV of SnapKV": CriticalKv(SnapKv()),
    "CriticalKV of ExpectedAttention": CriticalKv(FLAT),
    "Finch": Finch(32),
}
ONCE = {"LagKV": LagKv(), "LagKV across": LagKv(across=True), "KeyRerotation of Knorm": KeyNorm()}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    out = tmp_path_factory.mktemp("kvpress") / "kept.safetensors"
    script = Path(__file__).parent / "cache" / "with_kvpress.py"
    done = subprocess.run(
        [PEER, script, out, str(N)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


def past_of(theirs, layer, window):
    """What we see of a layer: all queries, or the last of them."""
    q, k, v = (theirs[f"{x}.{layer}"] for x in "qkv")
    past = Past.of(k, v, q)
    past = replace(past, rope=Rope(theirs["frequency"]), project=theirs[f"o.{layer}"], layer=layer)
    if window:
        return replace(past, q=q[:, :, -window:], now=past.now[:, -window:])
    readers = torch.arange(N, 0, -1)
    return replace(past, received=past.grouped(past.attention().sum(2) / readers).mean(2))


def kept(theirs, m, each, unscaled=False):
    out = []
    for layer in range(LAYERS):
        past = past_of(theirs, layer, 0 if Received in m.needs else m.window)
        past = replace(past, scale=1.0) if unscaled else past
        out.append(m.evict(past, torch.full((1, KV), each))[0])
    return torch.stack(out)


def divided(theirs, m, allocator, each):
    out = []
    for layer in range(LAYERS):
        past = past_of(theirs, layer, m.window)
        score = (m.of if isinstance(m, Around) else m).score(past)
        out.append(m.evict(past, allocator.allocate(score, torch.full((1, KV), each), layer, LAYERS))[0])
    return torch.stack(out)


def ours(theirs):
    """(press, budget, kept)"""
    filters = QFilters(tuple(tuple(tuple(u) for u in layer) for layer in (-theirs["filters"]).tolist()))
    gates = tuple(tuple(row) for row in theirs["gates"].tolist())
    for share, each in SHARES.items():
        for press, m in (PLAIN | {"QFilter": filters}).items():
            yield press, share, kept(theirs, m, each)
        removed = 1 - each / N
        yield "NonCausalAttn", share, kept(theirs, NonCausalAttention(100), each, unscaled=True)
        yield "Compactor", share, kept(theirs, Compactor(chunk=(N - 12) // 4, blend=removed), each, unscaled=True)
        for press, m in (("SnapKV", SnapKv()), ("Knorm", KeyNorm())):
            yield f"AdaKV of {press}", share, divided(theirs, m, Ada(), each)
        yield "CriticalAdaKV of SnapKV", share, divided(theirs, CriticalKv(SnapKv()), Ada(), each)
    for press, m in ONCE.items():
        yield press, "50%", kept(theirs, m, 200)
    yield "PyramidKV", "50%", divided(theirs, SnapKv(8), Pyramid(5.0, 8), 200)
    yield "DuoAttention", "220", divided(theirs, StreamingLlm(8), Duo(gates, 0.5, 8, 32), 220)


def test_the_same_tokens_stay(theirs):
    rows = [(f"{press}/{share}", keep, theirs[f"keep.{press}/{share}"]) for press, share, keep in ours(theirs)]
    assert {name for name, *_ in rows} == {name[5:] for name in theirs if name.startswith("keep.")}
    other = {name: int((mine != peer).sum()) for name, mine, peer in rows}
    for name, mine, _ in rows:
        print(f"{name:40} {'differs' if other[name] else 'same':8} {other[name]:4} of {mine.numel()} slots")
    assert not {name: n for name, n in other.items() if n}


def test_keys_turn_to_the_same_places_but_for_where_the_first_stands(theirs):
    for layer in range(LAYERS):
        past = past_of(theirs, layer, 1)
        keep = KeyNorm().evict(past, torch.full((1, KV), 200))
        after = Rerotated().correct(past, keep)
        mine = after.k[keep].view(1, KV, 200, DIM)
        places = after.at[keep].view(1, KV, 200)
        back = past.rope.turn(mine, -places[..., :1].expand_as(places))  # theirs begin at place 0
        torch.testing.assert_close(back, theirs[f"turned.{layer}"], atol=2e-4, rtol=1e-4)
        assert torch.equal(places - places[..., :1], torch.arange(200).expand_as(places))
