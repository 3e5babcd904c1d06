"""Gates in running models: full budgets are the model, half of it is the masked model, and a text decides alone."""

import pytest
import torch
from tiny import batch, build
from torch.nn import functional as F

import fewer
from fewer import kernels
from fewer.models import sites

FAMILIES = ("llama", "qwen3", "gemma3", "mistral", "phi3", "gpt2", "gpt_neox", "falcon", "bert", "vit")
IDS = torch.randint(3, 99, (4, 12), generator=torch.Generator().manual_seed(1))


def says(model, steps, data=None, **inputs):
    with torch.no_grad(), fewer.apply(model, steps, data) as applied:
        return model(**inputs).logits, applied


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_budget_is_the_model_to_the_bit_and_undoing_is_exact(family):
    model, b = build(family), batch(family)
    with torch.no_grad():
        truth = model(**b).logits
        for step in ("activations/magnitude 100%", "activations/cats 100% @ mlp", "activations/delta 100%"):
            assert torch.equal(says(model, step, **b)[0], truth)
        says(model, "activations/magnitude 50%", **b)
        assert torch.equal(model(**b).logits, truth) and not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_the_inputs_is_the_masked_model(family):
    """Every map of the model hears its input with the half of smallest |x| * |W's columns| set to zero, as hooks set it."""
    model, b, hooks = build(family), batch(family), []

    def mask(site):
        def hook(module, args, kwargs, said):
            x = site.inputs(module, args, kwargs)
            w = site.read()
            least = (x.abs() * w.norm(dim=0)).topk(x.shape[-1] - x.shape[-1] // 2, -1, largest=False).indices
            bias = None if site.bias is None else site.bias[slice(None) if site.part is None else site.part]
            own = F.linear(x.scatter(-1, least, 0.0), w, bias)
            if site.part is None:
                return own
            said = said.clone()
            said[..., site.part] = own
            return said

        return hook

    found, applied = says(model, "activations/wina 50%", **b)
    try:
        for site in sites(model):
            hooks.append(site.module.register_forward_hook(mask(site), with_kwargs=True))
        with torch.no_grad():
            torch.testing.assert_close(found, model(**b).logits, rtol=2e-5, atol=2e-5)
    finally:
        for hook in hooks:
            hook.remove()
    assert [c.kept for c in applied.changes] == pytest.approx([0.5] * len(sites(model)))


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3", "gpt2", "vit"])
def test_hidden_neurons_are_chosen_by_what_the_activation_says(family):
    """The whole MLP by hand: act(gate(x)) ranks, down hears the best quarter."""
    model, b = build(family), batch(family)
    down = next(s for s in sites(model, "down") if s.layer == 0)
    heard = {}
    hook = down.module.register_forward_hook(lambda _, args, said: heard.update(h=args[0].clone(), y=said.clone()))
    with torch.no_grad():
        model(**b)
        dense = heard["h"]
        with fewer.apply(model, f"activations/cats 25% @ {down.name}") as applied:
            seen = {}
            tap = applied.gating.places[0].act
            if tap is not None:
                extra = tap.register_forward_hook(lambda _, args, said: seen.update(a=said.clone()))
            with torch.no_grad():
                model(**b)
            if tap is not None:
                extra.remove()
    hook.remove()
    opened = seen.get("a", dense)
    n = dense.shape[-1] // 4
    keep = torch.zeros_like(dense).scatter(-1, opened.abs().topk(n, -1).indices, 1.0)
    torch.testing.assert_close(heard["y"], F.linear(dense * keep, down.read(), down.bias), rtol=1e-5, atol=1e-5)
    assert applied.changes[0].kept == pytest.approx(n / dense.shape[-1])


STEPS = [
    "activations/magnitude 40%",
    "activations/wina 40% by greedy + threshold @ mlp",
    "activations/chess 40% + threshold @ mlp",
    "activations/r_sparse 40% @ mlp, beyond 2",
    "activations/core_neurons 40% @ mlp",
    "activations/core_by_similarity(topics=2) 40% @ mlp",
    "activations/delta 40% @ mlp, beyond 3",
    "activations/magnitude 40% @ decode",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_batch_with_padding_generates_what_each_text_generates_alone(step):
    model = build("llama")
    texts, longest = [IDS[0, :5], IDS[1, :9]], 9
    ids = torch.stack([F.pad(t, (longest - len(t), 0)) for t in texts])
    mask = torch.stack([F.pad(torch.ones_like(t), (longest - len(t), 0)) for t in texts])
    words = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with fewer.apply(model, step, IDS) as applied:
        together = model.generate(input_ids=ids, attention_mask=mask, **words)
        for row, text in enumerate(texts):
            alone = model.generate(input_ids=text[None], attention_mask=torch.ones_like(text[None]), **words)
            assert torch.equal(together[row, longest:], alone[0, len(text) :])
    assert applied.changes and all(0.2 < c.kept < 0.75 for c in applied.changes)


def test_words_on_phases_say_which_tokens_are_gated():
    model = build("llama")
    with torch.no_grad():
        truth = model(input_ids=IDS).logits
        assert torch.equal(says(model, "activations/magnitude 25% @ decode", input_ids=IDS)[0], truth)
        late, _ = says(model, "activations/magnitude 25% @ *, beyond 5", input_ids=IDS)
        torch.testing.assert_close(late[:, :5], truth[:, :5])
        assert not torch.allclose(late[:, 5:], truth[:, 5:], atol=1e-3)


def test_memories_follow_beams():
    model = build("llama")
    words = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with fewer.apply(model, "activations/delta 100%"):
        same = model.generate(IDS[:1], **words)
    assert torch.equal(same, model.generate(IDS[:1], **words))
    with fewer.apply(model, "activations/delta 30% @ mlp") as applied:
        engine, seen = applied.gating, []
        engine.reorder = lambda rows, before=engine.reorder: (seen.append(rows.tolist()), before(rows))
        model.generate(IDS[:1], **words)
    assert seen and all(len(rows) == 3 for rows in seen)


def test_gates_go_with_pruning_reading_less_and_forgetting():
    model = build("llama")
    steps = (
        "weights/wanda 2:4 @ mlp\nactivations/wina 50% + threshold @ mlp, decode\n"
        "cache/snap_kv 50%\nattention/quest 8 @ decode"
    )
    before = {n: p.clone() for n, p in model.named_parameters()}
    with fewer.apply(model, steps, IDS) as applied:
        model.generate(IDS[:2], max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert all((s.read() == 0).float().mean() >= 0.5 for s in sites(model, "mlp"))
    assert {c.step.partition("/")[0] for c in applied.changes} == {"weights", "activations", "cache"}
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_thresholds_meet_the_budget_on_average_and_are_written_and_read(tmp_path):
    from fewer.recipe.cutting import write_cuts

    model, data = build("llama"), torch.randint(3, 99, (16, 24), generator=torch.Generator().manual_seed(3))
    truth, applied = says(model, "activations/magnitude 30% + threshold", data, input_ids=data)
    blocks = [c.kept for c in applied.changes if ".0." in c.site]  # the first block hears what it was fitted to
    assert blocks[0] == pytest.approx(9 / 32, abs=0.005)
    file = write_cuts(applied.gating, tmp_path / "cuts.safetensors")
    again, _ = says(model, f"activations/magnitude 30% + threshold(file='{file}')", input_ids=data)
    assert torch.equal(truth, again)
    with pytest.raises(ValueError, match="holds no threshold for"):
        says(build("gpt2"), f"activations/magnitude 30% + threshold(file='{file}')", input_ids=data)


def test_thresholds_from_a_file_go_with_what_a_gate_must_know_of_its_map(tmp_path):
    from fewer.recipe.cutting import write_cuts

    model, step = build("llama"), "activations/chess 40% + threshold{} @ mlp"
    fitted, applied = says(model, step.format(""), IDS, input_ids=IDS)
    file = write_cuts(applied.gating, tmp_path / "cuts.safetensors")
    again, _ = says(model, step.format(f"(file='{file}')"), IDS, input_ids=IDS)
    assert torch.equal(fitted, again)
    with pytest.raises(ValueError, match="is fitted on text"):
        says(model, step.format(f"(file='{file}')"), input_ids=IDS)


def test_greedy_budgets_lose_less_in_each_block_than_equal_ones():
    model, lost = build("llama"), {}
    for by in ("", " by greedy"):
        with torch.no_grad(), fewer.apply(model, f"activations/magnitude 40%{by}", IDS) as applied:
            x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
            model(input_ids=IDS)
            budgets = {p.name: p.budget for p in applied.gating.places}
            lost[by] = says_of_first_block(model, IDS)
        read = sum(p.site.shape[0] * p.budget.of(p.site.shape[1]) for p in applied.gating.places)
        assert read <= sum(p.site.shape[0] * int(0.4 * p.site.shape[1]) for p in applied.gating.places) * 1.03
        assert (len({str(b) for b in budgets.values()}) > 1) == bool(by) and len(x)
    truth = says_of_first_block(model, IDS)
    assert (lost[" by greedy"] - truth).norm() < (lost[""] - truth).norm()


def says_of_first_block(model, ids):
    said = {}
    hook = model.model.layers[0].register_forward_hook(lambda _, args, out: said.update(x=out))
    with torch.no_grad():
        model(input_ids=ids)
    hook.remove()
    return said["x"]


@pytest.mark.parametrize(
    "step, family, data, said",
    [
        ("activations/cats 50% @ attention", "llama", None, "no.*hidden neurons.*there is none at 'attention', which names k, o, q, v|listens"),
        ("activations/chess 50%", "gpt2", IDS, "has no gate, and activations/chess asks"),
        ("activations/magnitude 50% + threshold", "llama", None, "is fitted on text: give data"),
        ("activations/magnitude 50% + threshold", "llama", IDS[:, :1], "less than one window"),
        ("activations/magnitude 50% of 2x2", "llama", None, "counted one by one"),
        ("activations/magnitude 3:7", "llama", None, "do not divide into groups of 7"),
        ("activations/core_by_similarity 50%", "llama", None, "is fitted on text"),
        ("activations/core_by_similarity 50%", "llama", IDS, "cannot make 8 topics"),
        ("activations/core_neurons 50% + threshold", "llama", IDS, "gives no score"),
        ("activations/magnitude 50% @ nowhere", "llama", None, "nowhere"),
        ("activations/magnitude 50%\nactivations/wina 50% @ mlp", "llama", None, "decides what is read there"),
        ("activations/threshold 50%", "llama", None, "goes with a gate"),
        ("activations/magnitude 50% @ *, beyond 2", "vit", None, "told by token ids"),
        ("activations/magnitude 50% @ experts", "mixtral", None, "more than one map at a time"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(step, family, data, said):
    with pytest.raises(ValueError, match=said):
        says(build(family), step, data, **batch(family))


def test_weights_that_are_no_numbers_are_refused():
    model = build("llama")
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers.0.mlp.down_proj: NaN or infinite"):
        says(model, "activations/wina 50%", input_ids=IDS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_maps_lie_by_columns_meanwhile_and_as_they_did_afterwards(family):
    model = build(family)
    before = {n: (p.clone(), p.stride()) for n, p in model.named_parameters()}
    with fewer.apply(model, "activations/magnitude 50%"):
        assert all(s.read().mT.is_contiguous() for s in sites(model) if s.part is None)
        assert all(torch.equal(p, before[n][0]) for n, p in model.named_parameters())
    assert all(torch.equal(p, before[n][0]) and p.stride() == before[n][1] for n, p in model.named_parameters())


def test_a_step_of_decoding_reads_columns_and_says_what_masks_say(monkeypatch):
    from fewer.recipe import gating

    calls = []
    monkeypatch.setattr(
        gating, "gated_linear", lambda *args, **words: calls.append(args) or kernels.gated_linear(*args, **words)
    )
    model, words = build("llama"), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with fewer.apply(model, "activations/wina 40% + threshold @ decode", IDS):
        fast = model.generate(IDS[:2], **words)
        assert len(calls) == 5 * 14 and all(x.shape[:2] == (2, 1) for x, *_ in calls)
        with kernels.using("ref"):
            assert torch.equal(fast, model.generate(IDS[:2], **words))
