"""Attention by entmax 1.3's own functions says what our mixers say, and so do its gradients. FEWER_PEER_ENTMAX names a python that has it:

python -m venv peer && peer/bin/pip install entmax==1.3 torch safetensors
FEWER_PEER_ENTMAX=peer/bin/python pytest tests/parity/test_entmax.py
"""

import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewer.attention import Reading, Shape
from fewer.core.budget import budget
from fewer.core.spell import method_of

PEER = os.environ.get("FEWER_PEER_ENTMAX")
pytestmark = pytest.mark.skipif(not PEER, reason="FEWER_PEER_ENTMAX names no python")

ASK = """
import sys, torch, entmax
from safetensors.torch import load_file, save_file
there = {n: t.requires_grad_() for n, t in load_file(sys.argv[1]).items()}
q, k, v, a = (there[n] for n in ("q", "k", "v", "a"))
z = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(), -1e9)
alpha = 1 + a.sigmoid().view(1, -1, 1, 1)
said = {"sparsemax": entmax.sparsemax(z, -1), "entmax": entmax.entmax15(z, -1), "adaptive_entmax": entmax.entmax_bisect(z, alpha, -1, n_iter=80)}
out = {}
for name, p in said.items():
    out[name] = (p @ v).detach()
    leaves = (q, k, v, a) if name == "adaptive_entmax" else (q, k, v)
    for leaf, g in zip("qkva", torch.autograd.grad((p @ v).square().sum(), leaves, retain_graph=True)):
        out[f"{name}.{leaf}"] = g.contiguous()
save_file(out, sys.argv[2])
"""


def test_attention_and_gradients_are_those_of_entmax(tmp_path):
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 8, generator=make, dtype=torch.float64) for _ in range(3))
    a = torch.tensor([-1.5, 0.0, 1.0], dtype=torch.float64)
    save_file({"q": 2 * q, "k": k, "v": v, "a": a}, tmp_path / "asked")
    subprocess.run([PEER, "-c", ASK, tmp_path / "asked", tmp_path / "said"], check=True)
    said, there = load_file(tmp_path / "said"), load_file(tmp_path / "asked")
    for name in ("sparsemax", "entmax", "adaptive_entmax"):
        m = method_of(name, "attention")
        leaves = [there[n].clone().requires_grad_() for n in "qkva"]
        parts = {n: leaves[3] for n in m.begin(Shape(3, 3, 8, 8), make)}
        out = m.mix(Reading.of(*leaves[:3], parts), budget("100%"))
        out.square().sum().backward()
        assert torch.allclose(out, said[name], atol=1e-7), name
        for n, leaf in zip("qkva" if parts else "qkv", leaves, strict=False):
            assert torch.allclose(leaf.grad, said[f"{name}.{n}"], atol=1e-6), f"{name}: the gradient of {n}"
