"""Steps that look at the loss: by its gradients, or by trying a map out; divided budgets, from disk, on a device."""

import importlib

import pytest
import torch
from test_blame import crossed, data, truth
from tiny import build

from fewer.calibrate import GradMean, InputSquares
from fewer.core import Paper, budget, find, method
from fewer.models import lazy, sites
from fewer.recipe import apply, sparsify
from fewer.recipe.steps import Step
from fewer.select import select
from fewer.weights import ByScore, ByWeight

TEST = Paper("1810.02340", "SNIP", 2018)


@method(TEST)
class Slope(ByScore):
    """What the loss loses to first order: |w * dL/dw|, times a statistic of inputs that is there beside it."""

    needs = (GradMean, InputSquares)

    def score(self, w, stats):
        assert stats[InputSquares].tokens == 30
        return (w * stats[GradMean].value).abs()


@method(TEST)
class Steep(ByWeight):
    """More for maps of large gradients."""

    needs = (GradMean,)

    def signal(self, w, stats):
        return stats[GradMean].value.norm()

    def weigh(self, budget, shares):
        return [float(s.signal) for s in shares]


@method(TEST)
class Tried(ByWeight):
    """More for maps whose loss rises most if they are halved."""

    def sense(self, w, stats, loss):
        return torch.tensor([loss(w / 2), loss(w)])

    def weigh(self, budget, shares):
        heard.update({s.name: s.signal for s in shares})
        return [1.0 + i for i, _ in enumerate(shares)]


for kind in (Slope, Steep, Tried):
    kind.name = f"weights/{kind.__name__.lower()}"
heard: dict = {}


def kept(model, where="*"):
    return {s.name: s.read() != 0 for s in sites(model, where)}


def test_every_block_is_judged_by_the_dense_models_gradients():
    """Also a second step on a map that the first has pruned."""
    model, x = build("llama"), data()
    places = sites(model)
    grads = {name: g.mean(0) for name, g in truth(model, x, places).items()}
    dense = {s.name: s.read().clone() for s in places}
    with apply(model, [Step(Slope(), budget("50%")), Step(Slope(), budget("25%"), "mlp")], x):
        for name, keep in kept(model).items():
            score = (dense[name] * grads[name]).abs()
            wanted = select(score, budget("25%" if "mlp" in name else "50%"))
            assert (keep == wanted).float().mean() > 0.999, name
    assert not any(p.requires_grad for p in model.parameters())


def test_gradients_may_divide_a_budget():
    model, x = build("llama"), data()
    places = sites(model)
    size = {name: g.mean(0).norm() for name, g in truth(model, x, places).items()}
    applied = sparsify(model, [Step(Slope(), budget("10% per tensor"), allocator=Steep())], x)
    share = {c.site: c.kept for c in applied.changes}
    first, last = min(size, key=size.__getitem__), max(size, key=size.__getitem__)
    assert share[first] < 0.1 < share[last]
    total = sum(s.read().numel() for s in places)
    assert sum(share[s.name] * s.read().numel() for s in places) == pytest.approx(total // 10, abs=1)


def test_one_ranking_over_the_model_by_gradients():
    model, x = build("llama"), data()
    places = sites(model)
    grads = {name: g.mean(0) for name, g in truth(model, x, places).items()}
    scores = torch.cat([(s.read() * grads[s.name]).abs().flatten() for s in places])
    sparsify(model, [Step(Slope(), budget("30% per model"))], x)
    keep = torch.cat([k.flatten() for k in kept(model).values()])
    assert (keep == select(scores, budget("30%"))).float().mean() > 0.999


def test_from_disk_one_block_at_a_time_is_the_same(tmp_path, monkeypatch):
    model, x = build("llama", layers=4), data()
    model.save_pretrained(tmp_path / "source")
    job, real, held = importlib.import_module("fewer.recipe.sparsify"), lazy.materialise, []

    def counted(lazily, block):
        real(lazily, block)
        held.append({n.split(".")[2] for n, p in lazily.named_parameters() if ".layers." in n and not p.is_meta})

    monkeypatch.setattr(job, "materialise", counted)
    step = Step(Slope(), budget("50%"), allocator=Steep())
    on_disk = sparsify(tmp_path / "source", [step], x, out=tmp_path / "out", format="dense")
    in_memory = sparsify(model, [step], x)
    assert [(c.site, c.kept) for c in on_disk.changes] == [(c.site, c.kept) for c in in_memory.changes]
    assert len(held) > 12 and all(len(blocks) == 1 for blocks in held), "never two blocks off the disk"


@pytest.mark.parametrize("where", ["mlp", "up,head"])
def test_who_senses_is_told_the_loss_of_the_whole_model(where):
    model, x = build("llama"), data()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    heard.clear()
    step = Step(find("weights/magnitude")(), budget("90% per tensor"), where, Tried())
    with apply(model, [step], x):
        pass
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for site in sites(model, where):
        w = site.read().clone()
        dense = crossed(model(x).logits, x)
        site.write(w / 2)
        halved = crossed(model(x).logits, x)
        site.write(w)
        expected = torch.stack([halved, dense]).float()
        torch.testing.assert_close(heard[site.name], expected, rtol=1e-5, atol=1e-5)


def test_data_and_a_loss_are_asked_for_before_any_work():
    model = build("llama")
    for step in (Step(Slope(), budget("50%")), Step(Slope(), budget("50%"), allocator=Tried())):
        with pytest.raises(ValueError, match="give calibration data"):
            sparsify(model, [step])
    with pytest.raises(ValueError, match="windows of one token have no next one: give longer ones"):
        sparsify(model, [Step(Slope(), budget("50%"))], data(length=1))


def test_a_device_that_is_not_here_is_named():
    with pytest.raises(ValueError, match="no device 'cuda:99' here; write 'cpu'"):
        sparsify(build("llama"), "weights/wanda 50%", data(), device="cuda:99")
    with pytest.raises(ValueError, match="no device 'gpu' here"):
        sparsify(build("llama"), "weights/wanda 50%", data(), device="gpu")


PLACES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(
    "name, steps",
    [
        ("llama", "weights/sparse_gpt 50% + eora(rank=2)"),
        ("llama_tied", "weights/magnitude 40% per tensor by erk @ *,embed"),
        ("gpt2", "weights/wanda 40% by owl + dsnot"),
        ("gpt_neox", "weights/wanda 30% per layer"),
        ("mixtral", "weights/sparse_gpt 2:4"),
    ],
)
def test_on_a_device_the_result_is_the_same_and_at_home(name, steps, device):
    model, other, x = build(name), build(name), data(name)
    here, there = sparsify(model, steps, x), sparsify(other, steps, x, device=device)
    assert all(v.device.type == "cpu" for v in other.state_dict().values())
    assert all(t.device.type == "cpu" for s in there.stored.values() for t in s.layout.tensors().values())
    a, b = kept(model), kept(other)
    assert [c.kept for c in here.changes] == [c.kept for c in there.changes]
    for key in a if "eora" not in steps else ():
        assert (a[key] == b[key]).float().mean() >= (0.9 if device != "cpu" else 1), key
    torch.testing.assert_close(model(x).logits, other(x).logits, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("device", PLACES)
def test_gradients_on_a_device_and_from_disk_to_disk(device, tmp_path):
    model, x = build("llama"), data()
    model.save_pretrained(tmp_path / "source")
    steps = [Step(Slope(), budget("50%"), allocator=Steep())]
    there = sparsify(tmp_path / "source", steps, x, out=tmp_path / "out", device=device)
    here = sparsify(model, steps, x)
    assert [c.site for c in here.changes] == [c.site for c in there.changes]
    assert sum(abs(a.kept - b.kept) for a, b in zip(here.changes, there.changes, strict=True)) < 0.2
