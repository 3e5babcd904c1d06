"""Other tools' checkpoints are read and written bit for bit; ours are opened by transformers after `import fewer`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import batch, build
from torch.nn.utils import prune
from transformers import LlamaConfig, LlamaForCausalLM

from fewer.models import SparseLinear, open_model
from fewer.models.feed import call
from fewer.models.foreign import WRITTEN
from fewer.recipe import load, save, sparsify

FIXTURES = Path(__file__).parent / "fixtures" / "compressed_tensors"
THEIRS = {"sparse-bitmask": "bitmask", "old-sparse-bitmask": "bitmask", "sparse-24-bitmask": "nm"}
BUDGET = {"packed": "50%", "dense": "50%", "sparse-bitmask": "50%", "sparse-24-bitmask": "2:4"}
WORDS = next(iter(batch("llama", rows=2, length=8).values()))


def answers(model):
    with torch.no_grad():
        return call(model, WORDS).logits


def stored(path):
    return {k: t for file in sorted(Path(path).glob("model*.safetensors")) for k, t in load_file(file).items()}


@pytest.fixture
def source(tmp_path):
    build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("name", THEIRS)
def test_what_compressed_tensors_wrote_opens_bit_for_bit(name):
    model, _ = open_model(FIXTURES / name, dtype="bfloat16")
    for key, w in load_file(FIXTURES / "dense" / f"{name}.safetensors").items():
        assert torch.equal(model.get_submodule(key.removesuffix(".weight")).weight, w), key
    packed = [m.kind.name for m in model.modules() if isinstance(m, SparseLinear)]
    assert packed.count(THEIRS[name]) == len(packed) == (8 if name.startswith("old") else 7)
    assert not hasattr(model.config, "quantization_config") and not hasattr(model.config, "compression_config")


def test_a_model_of_theirs_is_pruned_further_and_saved_as_ours(tmp_path):
    sparsify(FIXTURES / "sparse-bitmask", "weights/magnitude 25%", out=tmp_path / "out")
    w = load_file(FIXTURES / "dense" / "sparse-bitmask.safetensors")["model.layers.0.mlp.up_proj.weight"]
    mine = load(tmp_path / "out").get_submodule("model.layers.0.mlp.up_proj").weight
    assert ((mine != 0) <= (w != 0)).all() and (mine != 0).sum() < (w != 0).sum()
    assert torch.equal(mine[mine != 0], w[mine != 0])


@pytest.mark.parametrize("name", WRITTEN)
def test_what_they_wrote_we_would_have_written(name):
    """Their file is the truth for ours: same names, same dtypes, same bits."""
    theirs, dense = stored(FIXTURES / name), load_file(FIXTURES / "dense" / f"{name}.safetensors")
    for key in [k for k in dense if k.endswith("proj.weight")]:
        for ending, t in WRITTEN[name].write(dense[key]).items():
            their = theirs[key.removesuffix(".weight") + ending]
            assert t.dtype == their.dtype and t.shape == their.shape, (key, ending)
            if name == "sparse-bitmask" or dense[key].ne(0).unflatten(1, (-1, 4)).sum(-1).eq(2).all():
                assert torch.equal(t, their), (key, ending)


@pytest.mark.parametrize("form", BUDGET)
@pytest.mark.parametrize("on_disk", [False, True])
def test_every_format_gives_back_the_same_model(form, on_disk, source, tmp_path):
    model = source if on_disk else open_model(source)[0]
    step = f"weights/magnitude {BUDGET[form]}"
    applied = sparsify(model, step, out=tmp_path / "out", format=form)
    whole = open_model(source)[0]
    sparsify(whole, step)
    again = load(tmp_path / "out")  # which asks the probe
    torch.testing.assert_close(answers(again), answers(whole), rtol=1e-4, atol=1e-4)
    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert torch.equal(again.get_submodule(name).weight.float(), module.weight), name
    assert (tmp_path / "out" / "fewer.json").is_file() and applied.changes


@pytest.mark.parametrize("form", WRITTEN)
def test_bits_on_disk_are_those_that_their_format_says(form, source, tmp_path):
    sparsify(source, f"weights/magnitude {BUDGET[form]}", out=tmp_path / "out", format=form)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and config["sparsity_config"]["format"] == form
    assert config["sparsity_config"]["ignore"] == ["lm_head"] and set(config) <= {
        "quant_method",
        "version",
        "sparsity_config",
    }
    tensors, name = stored(tmp_path / "out"), "model.layers.1.mlp.down_proj"
    rows, cols = tensors[f"{name}.shape"].flatten().tolist()
    bits = np.unpackbits(tensors[f"{name}.bitmask"].numpy(), axis=-1, count=cols, bitorder="little").astype(bool)
    dense = torch.zeros(rows, cols, dtype=torch.bfloat16)
    dense[torch.from_numpy(bits)] = tensors[f"{name}.compressed"].flatten()
    assert torch.equal(dense.float(), load(tmp_path / "out").get_submodule(name).weight.float())
    assert bits.mean() == 0.5 and f"{name}.weight" not in tensors


def test_what_is_not_two_of_four_stays_plain_there(source, tmp_path):
    steps = ["weights/magnitude 2:4 @ mlp", "weights/magnitude 75% @ attention"]
    sparsify(source, steps, out=tmp_path / "out", format="sparse-24-bitmask")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["sparsity_config"]
    tensors = stored(tmp_path / "out")
    assert "model.layers.0.self_attn.q_proj.weight" in tensors and "model.layers.0.mlp.up_proj.bitmask" in tensors
    assert (
        "model.layers.0.self_attn.q_proj" in config["ignore"] and "model.layers.0.mlp.up_proj" not in config["ignore"]
    )
    load(tmp_path / "out")


@pytest.mark.parametrize("form", WRITTEN)
def test_a_stopped_run_goes_on_in_their_format(form, source, tmp_path):
    class Stop(Exception):
        pass

    def stop(what, done, total):
        if what.startswith("block") and done == 1:
            raise Stop

    step = f"weights/wanda {BUDGET[form]}"
    with pytest.raises(Stop):
        sparsify(source, step, WORDS, out=tmp_path / "out", format=form, progress=stop)
    sparsify(source, step, WORDS, out=tmp_path / "out", format=form)
    sparsify(source, step, WORDS, out=tmp_path / "whole", format=form)
    one, two = stored(tmp_path / "out"), stored(tmp_path / "whole")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    "whole, mask",
    [
        ("weight_orig", "weight_mask"),
        ("parametrizations.weight.original", "parametrizations.weight.0.mask"),
        ("weight", "_weight_mask"),
        ("weight", "weight_mask"),
    ],
)
def test_masks_beside_weights_are_read(whole, mask, source, tmp_path):
    tensors, name = stored(source), "model.layers.0.mlp.up_proj"
    w = tensors.pop(f"{name}.weight")
    keep = torch.rand(w.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    tensors |= {f"{name}.{whole}": w, f"{name}.{mask}": keep.float()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    module = open_model(source)[0].get_submodule(name)
    assert isinstance(module, SparseLinear) and torch.equal(module.weight, w * keep)


def test_what_torch_itself_pruned_is_read(source):
    model = open_model(source)[0].to(torch.bfloat16)
    torch.manual_seed(0)
    for block in model.model.layers:
        prune.l1_unstructured(block.mlp.up_proj, "weight", 0.5)
    expected = answers(model)
    save_file(model.state_dict(), source / "model.safetensors", metadata={"format": "pt"})
    again, _ = open_model(source, dtype="bfloat16")
    assert isinstance(again.model.layers[0].mlp.up_proj, SparseLinear)
    torch.testing.assert_close(answers(again), expected, rtol=2e-2, atol=2e-2)


def damaged(change, tmp_path, name="sparse-bitmask"):
    (tmp_path / "bad").mkdir()
    tensors, config = stored(FIXTURES / name), json.loads((FIXTURES / name / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "bad" / "config.json").write_text(json.dumps(config))
    return tmp_path / "bad"


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t, c: t.update({f"{UP}.compressed": t[f"{UP}.compressed"][1:]}), "values for .* bits that are set"),
        (lambda t, c: c["quantization_config"].update(config_groups={}), "quantised too"),
        (lambda t, c: t.pop(f"{UP}.row_offsets"), "up_proj.weight is stored as .* but not every group"),
        (lambda t, c: t.update({"model.nowhere.weight": t["lm_head.weight"].clone()}), "does not know: model.nowhere"),
        (lambda t, c: t.update({"model.norm.weight": torch.ones(3)}), r"model.norm.weight is \(3,\) in the checkpoint"),
    ],
)
def test_a_checkpoint_of_theirs_that_is_damaged_is_refused(change, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        open_model(damaged(change, tmp_path))


def test_an_unknown_format_names_the_known_ones(source, tmp_path):
    with pytest.raises(
        LookupError, match="no format 'sparse-bitmsk'.*packed, fast, dense, sparse-bitmask.*sparse-bitmask?"
    ):
        sparsify(source, "weights/magnitude 50%", out=tmp_path / "out", format="sparse-bitmsk")
    assert not list(tmp_path.glob("out*"))


def test_a_head_that_was_pruned_on_disk_comes_back(source, tmp_path):
    sparsify(source, "weights/magnitude 50% @ head", out=tmp_path / "out")
    head = load(tmp_path / "out").lm_head
    assert isinstance(head, SparseLinear) and (head.weight != 0).float().mean() <= 0.5


def test_half_of_the_weights_in_bfloat16_takes_less_than_58_hundredths(tmp_path):
    """9 bits of 16, and what rows and headers take: counted on maps that dominate their file."""
    size = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**size, vocab_size=32)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "dense")
    sparsify(tmp_path / "dense", "weights/magnitude 50%", out=tmp_path / "half")
    size = lambda p: sum(f.stat().st_size for f in (tmp_path / p).glob("model*.safetensors"))  # noqa: E731
    assert size("half") <= 0.58 * size("dense")
    assert all(w.dtype is torch.bfloat16 for n, w in stored(tmp_path / "half").items() if n.endswith(".value"))


ORDERS = [
    "import fewer\nassert 'torch' not in sys.modules\nfrom transformers import AutoModelForCausalLM as Auto",
    "from transformers import AutoModelForCausalLM as Auto\nimport fewer",
    "import transformers.modeling_utils, fewer\nfrom transformers import AutoModelForCausalLM as Auto",
]


@pytest.mark.parametrize("order", ORDERS)
def test_transformers_opens_ours_after_import_fewer_in_any_order(order, source, tmp_path):
    sparsify(source, "weights/magnitude 50%", out=tmp_path / "out")
    script = (
        f"import sys\n{order}\nbefore = len(sys.meta_path)\nmodel = Auto.from_pretrained({str(tmp_path / 'out')!r})\n"
        "print(type(model.model.layers[0].mlp.up_proj).__name__, [f for f in sys.meta_path if '_Teacher' in repr(f)])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.stdout == "SparseLinear []\n", done.stderr


def test_one_result_is_saved_in_each_format(source, tmp_path):
    applied = sparsify(open_model(source)[0], "weights/magnitude 2:4")
    first, *others = [answers(load(save(applied, tmp_path / form, format=form))) for form in BUDGET]
    assert all(torch.allclose(first, other, atol=1e-4) for other in others)


def test_what_computed_in_bfloat16_passes_its_probe_in_float32(tmp_path):
    model = build("llama").to(torch.bfloat16)
    sparsify(model, "weights/magnitude 50%", out=tmp_path / "out")
    assert load(tmp_path / "out").lm_head.weight.dtype is torch.float32
