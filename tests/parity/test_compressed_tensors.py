"""compressed-tensors 0.14 reads what we write, bit for bit. It lives in an environment of its own: FEWER_PEER_CT is its python.

python -m venv ct && ct/bin/pip install torch compressed-tensors==0.14.0 "transformers<5"
FEWER_PEER_CT=ct/bin/python pytest tests/parity
"""

import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fewer.recipe import load, sparsify

PEER = os.environ.get("FEWER_PEER_CT")
READ = """
import sys, torch
from compressed_tensors.compressors import ModelCompressor
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
place, out = sys.argv[1:]
config = AutoConfig.from_pretrained(place)
compressor = ModelCompressor.from_pretrained(place)
assert compressor.sparsity_config.format == sys.argv[1].rpartition("/")[2], compressor.sparsity_config
del config.quantization_config
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
for p in model.parameters():
    p.data.fill_(7)  # what is not read stays visible
compressor.decompress(place, model)
save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, out)
"""
SIZE = {"hidden_size": 40, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}

pytestmark = pytest.mark.skipif(
    PEER is None, reason="FEWER_PEER_CT does not name a python with compressed-tensors 0.14"
)


@pytest.mark.parametrize(
    "form, step", [("sparse-bitmask", "weights/wanda 50%"), ("sparse-24-bitmask", "weights/wanda 2:4")]
)
@pytest.mark.parametrize("on_disk", [False, True], ids=["one file", "a file a block"])
def test_it_reads_what_we_write(form, step, on_disk, tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=False)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    whole = LlamaForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.bfloat16)
    sparsify(
        tmp_path / "source" if on_disk else whole, step, torch.randint(99, (4, 16)), out=tmp_path / form, format=form
    )
    done = subprocess.run([PEER, "-c", READ, tmp_path / form, tmp_path / "read.st"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs, ours = load_file(tmp_path / "read.st"), load(tmp_path / form)
    for name, w in theirs.items():
        mine = ours.get_submodule(name.removesuffix(".weight")).weight
        assert torch.equal(w.float(), mine.float()), name
    assert {"model.layers.1.mlp.down_proj.weight", "lm_head.weight", "model.norm.weight"} <= theirs.keys()
