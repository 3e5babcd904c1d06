"""Hidden neurons of running models: heard where they are, counted as a forward pass written out counts them."""

import json

import pytest
import torch
from tiny import build

from fewer.cli import main
from fewer.measure import nll
from fewer.recipe.neurons import bytes_a_token, cut_off, hidden_sites, laziness, neurons, tail_for_rise


def tokens(seed=0, windows=3, length=12):
    return torch.randint(3, 99, (windows, length), generator=torch.Generator().manual_seed(seed))


def heard(model, ids, path):
    """What the module at `path` was given."""
    found = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    model(input_ids=ids)
    hook.remove()
    return found[0].reshape(*ids.shape, -1)


def test_after_a_relu_what_is_on_is_what_is_not_zero():
    model, ids = build("opt"), tokens()
    layers = neurons(model, tokens(1), ids, error=1e-6, stored=torch.float32)
    for layer in layers:
        h = heard(model, ids, layer.name)
        assert layer.activity.density.value == pytest.approx((h != 0).double().mean().item(), abs=1e-3)
        assert layer.activity.tokens == 36 and layer.tail.value < 1e-4
    density = sum(x.activity.density.value for x in layers)
    read, dense = bytes_a_token(layers)  # ungated: fc1 is read whole
    assert dense == 2 * 2 * 32 * 48 * 4 and read.value == pytest.approx(32 * 48 * 4 * (2 + density))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_who_is_on_is_who_adds_enough_to_the_output(family):
    model, ids = build(family), tokens()
    for layer in neurons(model, tokens(1), ids, error=0.3):
        h = heard(model, ids, layer.name)
        module = model.get_submodule(layer.name)
        w = module.weight.T if family == "gpt2" else module.weight
        on = h.abs() * w.norm(dim=0) >= layer.cut
        assert layer.activity.density.value == pytest.approx(on.double().mean().item(), abs=1e-4)
        lost = (h * ~on) @ w.T
        error = lost.norm(dim=-1) / (h @ w.T).norm(dim=-1)
        assert layer.tail.value == pytest.approx(error.mean().item(), rel=1e-3)
        row, gated = layer.as_dict(), family != "gpt2"
        d = layer.activity.density.value
        assert row["dense"] == (3 if gated else 2) * 32 * 48 * 2
        assert row["read"] == pytest.approx(32 * 48 * 2 * (1 + (2 if gated else 1) * d))


def test_depth_has_a_mean_and_a_slope():
    layers = neurons(build("llama", layers=3), tokens(1), tokens())
    each = [x.activity.density.value for x in layers]
    assert laziness(layers).mean.value == pytest.approx(sum(each) / 3)
    assert laziness(layers).slope.value == pytest.approx(each[2] - each[0])


def test_what_is_cut_off_is_undone_and_a_rise_is_met():
    model, ids = build("llama"), tokens()
    before = model(input_ids=ids).logits
    error = tail_for_rise(model, tokens(1), ids, rise=0.02)
    layers = neurons(model, tokens(1), ids, error)
    with cut_off(model, hidden_sites(model), [x.cut for x in layers]):
        assert not torch.equal(model(input_ids=ids).logits, before)
        assert nll(model, ids).mean().exp() <= 1.02 * 1.0001 * torch.tensor(float(before_loss(before, ids))).exp()
    assert torch.equal(model(input_ids=ids).logits, before)


def before_loss(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_a_model_without_such_neurons_is_refused():
    with pytest.raises(ValueError, match="has no MLP"):
        hidden_sites(build("qwen3_moe"))


def test_the_command_prints_writes_and_refuses(tmp_path, capsys):
    page = tmp_path / "n.html"
    assert main(["neurons", "bundled", "--calibration", "1", "--test", "2", "--length", "32", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert said.count("mlp.down_proj") == 10 and "a token needs" in said
    assert "vegaEmbed" in page.read_text() and "Lazy neurons" in page.read_text()
    for wrong, words in (
        (["--html", "x.png"], "must end in .html"),
        (["--error", "2"], "above 0 and below 1"),
        (["--stored", "4"], "not a dtype"),
    ):
        assert main(["neurons", "bundled", "--calibration", "1", "--test", "1", "--length", "16", *wrong]) == 2
        assert words in capsys.readouterr().err


def test_the_command_speaks_json(capsys):
    assert main(["neurons", "bundled", "--calibration", "1", "--test", "2", "--length", "16", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 11 and rows[-1]["read"] == pytest.approx(sum(r["read"] for r in rows[:-1]))


def test_an_mlp_in_two_modules_reads_both_of_its_maps():
    layers = neurons(build("bert"), tokens(), tokens(seed=1))
    assert [sum(r.bytes for r in layer.reading) for layer in layers] == [2 * 2 * 32 * 48] * 2
