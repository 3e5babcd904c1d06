"""SAELens, sparsify, dictionary_learning, circuit-tracer and llamascopium read what we write and we read what they write.

Each lives in an environment of its own, named by a variable that holds its python:

python -m venv sl && sl/bin/pip install sae-lens==6.54.12                        FEWER_PEER_SAELENS=sl/bin/python
python -m venv sp && sp/bin/pip install eai-sparsify==1.3.3                      FEWER_PEER_SPARSIFY=sp/bin/python
python -m venv dl && dl/bin/pip install dictionary-learning==0.1.0               FEWER_PEER_DICTIONARY_LEARNING=dl/bin/python
python -m venv ct && ct/bin/pip install circuit-tracer==0.5.0                    FEWER_PEER_CIRCUIT_TRACER=ct/bin/python
python -m venv ls && ls/bin/pip install llamascopium==2.0.0b34 "transformer-lens<4"  FEWER_PEER_LLAMASCOPIUM=ls/bin/python
then: pytest tests/parity/test_dictionaries.py
"""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewer.core import budget
from fewer.dictionaries import load, load_all, save
from fewer.features import Dictionary
from fewer.features.abs_top_k import AbsTopK
from fewer.features.batch_top_k import BatchTopK
from fewer.features.gated import Gated
from fewer.features.jump_relu import JumpRelu
from fewer.features.matryoshka import Matryoshka
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_k import TopK

DIM, LATENTS, NEAR = 16, 64, 1e-6
PEERS = ("saelens", "sparsify", "dictionary_learning", "circuit_tracer", "llamascopium")
SCRIPTS = Path(__file__).with_name("dictionaries")


def python(peer):
    found = os.environ.get(f"FEWER_PEER_{peer.upper()}")
    if found is None:
        pytest.skip(f"FEWER_PEER_{peer.upper()} names no python with it")
    return found


def run(peer, *arguments):
    done = subprocess.run(
        [python(peer), SCRIPTS / f"with_{peer}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "", "SPARSIFY_DISABLE_TRITON": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def learnt(sparsifier, own=None, skip=False, out=None, sites=("model.layers.0",), written=None):
    make = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=make)

    return Dictionary(
        sparsifier,
        budget("5"),
        draw(LATENTS, DIM) / DIM**0.5,
        draw(LATENTS) / 4,
        torch.nn.functional.normalize(draw(LATENTS, out or DIM), dim=1) * (1 + draw(LATENTS, 1).abs()),
        draw(out or DIM),
        own or {},
        draw(out or DIM, DIM) if skip else None,
        sites,
        written or sites,
        {"model": "llama", "seed": 3},
    )


THETA = torch.rand(LATENTS, generator=torch.Generator().manual_seed(1))
OWN = {
    Gated: {"scale": THETA - 0.5, "shift": THETA.flip(0) - 0.3},
    JumpRelu: {"threshold": THETA},
    BatchTopK: {"threshold": torch.tensor(0.7)},
    Matryoshka: {"threshold": torch.tensor(0.7)},
}
MLP = {"sites": ("model.layers.0.mlp:in",), "written": ("model.layers.0.mlp",)}
X = 2 * torch.randn(200, DIM, generator=torch.Generator().manual_seed(2))

WE_WRITE = [
    *(("saelens", kind, {}) for kind in (ReluL1, TopK, AbsTopK, JumpRelu, Gated, BatchTopK)),
    *(("saelens", kind, MLP | {"skip": skip, "out": 12}) for kind in (ReluL1, JumpRelu) for skip in (False, True)),
    ("sparsify", TopK, {}),
    ("sparsify", TopK, MLP),
    ("sparsify", TopK, MLP | {"skip": True}),
    *(("dictionary_learning", kind, {}) for kind in (ReluL1, TopK, JumpRelu, Gated, BatchTopK, Matryoshka)),
    *(("llamascopium", kind, {}) for kind in (ReluL1, TopK, JumpRelu, BatchTopK)),
    ("circuit_tracer", ReluL1, MLP),
    ("circuit_tracer", JumpRelu, MLP),
    ("circuit_tracer", ReluL1, MLP | {"skip": True}),
]


@pytest.mark.parametrize("peer, kind, more", WE_WRITE, ids=[f"{p}-{k.__name__}-{len(m)}" for p, k, m in WE_WRITE])
def test_it_reads_what_we_write_and_we_get_it_back_to_the_bit(peer, kind, more, tmp_path):
    python(peer)
    d = learnt(kind(), OWN.get(kind), **more)
    save(d, tmp_path / "written", format=peer)
    save_file({"x": X}, tmp_path / "x.st")
    run(peer, "read", tmp_path / "written", tmp_path / "x.st", tmp_path / "said.st")
    theirs = load_file(tmp_path / "said.st")
    codes = d.encode(X)
    assert (theirs["z"] != 0).sum() > len(X)
    assert torch.allclose(theirs["z"], codes.dense(), atol=NEAR * 10, rtol=1e-5)
    assert torch.allclose(theirs["out"], d.decode(codes, X), atol=NEAR * 10, rtol=1e-5)
    again = load(tmp_path / "written")
    assert all(torch.equal(again.tensors()[name], t) for name, t in d.tensors().items())
    assert torch.equal(again.encode(X).dense(), codes.dense())


THEY_WRITE = [
    *(("saelens", kind) for kind in ("standard", "topk", "topk-rescaled", "abstopk", "jumprelu", "gated")),
    *(("saelens", kind) for kind in ("transcoder", "skip_transcoder", "jumprelu_transcoder")),
    *(("saelens", kind) for kind in ("jumprelu_skip_transcoder", "standard-plain", "batchtopk")),
    *(("sparsify", kind) for kind in ("sae", "transcoder", "skip")),
    *(("dictionary_learning", kind) for kind in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder")),
    *(("dictionary_learning", kind) for kind in ("AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder")),
    ("dictionary_learning", "MatryoshkaBatchTopKSAE"),
    *(("llamascopium", kind) for kind in ("relu", "topk", "jumprelu")),
    *(("circuit_tracer", kind) for kind in ("clt", "clt-jump")),
]


@pytest.mark.parametrize("peer, kind", THEY_WRITE)
def test_we_read_what_it_writes(peer, kind, tmp_path):
    python(peer)
    save_file({"x": X}, tmp_path / "x.st")
    run(peer, "write", kind, tmp_path / "written", tmp_path / "x.st", tmp_path / "said.st")
    theirs = load_file(tmp_path / "said.st")
    several = load_all(tmp_path / "written")
    out = torch.zeros_like(theirs["out"])
    for i, d in enumerate(several):  # those of a cross-layer transcoder write what adds up
        codes = d.encode(X)
        assert (codes.value != 0).sum() > len(X)
        z = theirs["z"] if len(several) == 1 else theirs["z"][i]
        assert torch.allclose(z, codes.dense(), atol=NEAR * 10, rtol=1e-5)
        out[:, -d.decoder.shape[1] :] += d.decode(codes, X)
    assert torch.allclose(theirs["out"], out, atol=NEAR * 10, rtol=1e-5)


@pytest.mark.parametrize("kind", [ReluL1, JumpRelu])
def test_circuit_tracer_reads_our_cross_layer_transcoder(kind, tmp_path):
    python("circuit_tracer")
    d, several = learnt(kind(), OWN.get(kind)), []
    for i in range(3):
        make = torch.Generator().manual_seed(i)
        atoms = torch.randn(LATENTS, (3 - i) * DIM, generator=make)
        said = torch.nn.functional.pad(torch.randn(DIM, generator=make), (0, (2 - i) * DIM))
        sites = {"reads": (f"model.layers.{i}.mlp:in",), "writes": tuple(f"model.layers.{j}.mlp" for j in range(i, 3))}
        several.append(replace(d, decoder=atoms, decoder_bias=said, **sites))
    save(several, tmp_path / "written", format="circuit_tracer_clt")
    save_file({"x": X}, tmp_path / "x.st")
    run("circuit_tracer", "read", tmp_path / "written", tmp_path / "x.st", tmp_path / "said.st")
    theirs = load_file(tmp_path / "said.st")
    out = torch.zeros(len(X), 3 * DIM)
    for i, one in enumerate(several):
        assert torch.allclose(theirs["z"][i], one.encode(X).dense(), atol=NEAR * 10)
        out[:, i * DIM :] += one(X)
    assert torch.allclose(theirs["out"], out, atol=NEAR * 100, rtol=1e-5)
    for again, one in zip(load_all(tmp_path / "written"), several, strict=True):
        assert all(torch.equal(again.tensors()[name], t) for name, t in one.tensors().items())
        assert (again.reads, again.writes) == (one.reads, one.writes)
