"""Files of other tools become steps; what they say that is unknown is named; ModelOpt's is written and read back."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import build

import fewer
from fewer.core import budget
from fewer.core.spell import method_of
from fewer.recipe.interchange import interchange
from fewer.recipe.modelopt import describe, write
from fewer.recipe.steps import recipe

SKIP = {
    "config_groups": {
        "group_0": {
            "algorithm": "skip_softmax",
            "targets": ["LlamaAttention"],
            "ignore": [],
            "initial_disabled_steps": 0,
            "threshold_scale_factor": {
                "formula": "a * exp(b * target_sparsity)",
                "prefill": {"a": 7.93, "b": 8.61},
                "decode": {"a": 0.12, "b": 9.85},
            },
            "target_sparsity": {"prefill": 0.9, "decode": 0.5},
        },
        "group_1": {
            "algorithm": "sparse_softmax",
            "targets": ["LlamaAttention"],
            "ignore": [],
            "initial_disabled_steps": 0,
            "sparsity_n": 2,
            "sparsity_m": 4,
            "dense_sink_tokens": 4,
            "dense_recent_tokens": 64,
        },
    },
    "producer": {"name": "modelopt", "version": "0.47.0"},
}
STREAM, SLASH, BLOCKS = ["stream_llm", 5, 11, 0.9], ["vertical_and_slash", 8, 24, 0.8], ["block_sparse", 2, 800, 0.7]
MINIMAX = {"use_sparse_attention": True, "sparse_topk_blocks": 16, "sparse_block_size": 128, "sparse_init_block": 0}
MINIMAX |= {"sparse_num_index_heads": 4, "sparse_local_block": 1, "sparse_attention_freq": [0, 1]}
READ = [
    ({"dms_window_size": 256, "dms_cr": 8, "dms_tau": 0.1}, "DMS", ["cache/dms(recent=256) 12.5%"]),
    (
        [{"0": STREAM, "1": STREAM}, {"0": SLASH, "1": SLASH}],
        "MInference",
        ["attention/streaming(sinks=5) 16 @ *.0.*, prefill", "attention/vertical_slash 32 @ *.1.*, prefill"],
    ),
    ({"1": {"0": BLOCKS}, "0": {"0": BLOCKS}}, "MInference", ["attention/bi_level 128 @ prefill"]),
    (
        [{"0": STREAM, "2": SLASH}],  # the one left out is MInference's default
        "MInference",
        [
            "attention/by_head(parts='streaming(sinks=5) 16 | vertical_slash 7096 | vertical_slash 32', deal=(0, 1, 2)) "
            "100% @ prefill"
        ],
    ),
    (
        {"model_type": "qwen2", "dual_chunk_attention_config": {"sparse_attention_config": [{"0": SLASH}]}},
        "MInference",
        ["attention/vertical_slash 32 @ prefill"],
    ),
    (
        {"sparse_attention_config": SKIP},
        "ModelOpt",
        [
            "attention/skip_softmax(a=7.93, b=8.61, aim=0.1) 100% @ prefill",
            "attention/skip_softmax(a=0.12, b=9.85) 100% @ decode",
            "attention/dfss(sinks=4, recent=64) 100% @ prefill",
        ],
    ),
    (
        {"algorithm": "skip_softmax", "threshold_scale_factor": {"prefill": 1000.0}},
        "TensorRT-LLM",
        ["attention/skip_softmax(a=1000.0) 100% @ prefill"],
    ),
    (
        {
            "algorithm": "rocket",
            "window_size": 32,
            "kernel_size": 63,
            "prompt_budget": 1266,
            "topk": 64,
            "page_size": 4,
        },
        "TensorRT-LLM",
        ["cache/snap_kv(window=32, kernel=63) 1266", "attention/quest(block=4) 256 @ decode"],
    ),
    ({"sparse_attention_config": MINIMAX}, "MiniMax-M3", ["attention/quest(block=128) 2048 @ *.1.*, prefill, decode"]),
    (
        {"base_model": "x", "seerattn_sparsity_method": "nz_ratio", "seerattn_nz_ratio": 0.3},
        "SeerAttention",
        ["attention/seer 30%"],
    ),
    (
        {"seerattn_sparsity_method": "token_budget", "seerattn_token_budget": 4096, "seerattn_gate_block_size": 32},
        "SeerAttention",
        ["attention/seer(rows=32, block=32) 4096"],
    ),
]


@pytest.mark.parametrize("told, tool, steps", READ, ids=range(len(READ)))
def test_a_file_becomes_steps(tmp_path, told, tool, steps):
    path = tmp_path / "any_name_at_all.json"
    path.write_text(json.dumps(told))
    found = interchange(path)
    assert (found.tool, [str(s) for s in found.steps]) == (tool, steps)
    assert recipe(path) == recipe(str(path)) == recipe(steps) == recipe("\n".join(steps)), "text reads back"


def test_duo_is_a_folder(tmp_path, capsys):
    from fewer.cli import main

    (tmp_path / "full_attention_heads.tsv").write_text("0.9\t0.1\n0.2\t1.0\n")
    (tmp_path / "config.json").write_text('{"sink_size": 2, "recent_size": 5}')
    (only,) = interchange(tmp_path).steps
    assert str(only) == ("cache/streaming_llm(sinks=2) 50% by duo(gates=((0.9, 0.1), (0.2, 1.0)), sinks=2, recent=5)")
    assert recipe(str(only)) == (only,) == interchange(tmp_path / "full_attention_heads.tsv").steps
    with fewer.apply(build("llama"), tmp_path) as applied, torch.no_grad():
        applied.model.generate(torch.arange(3, 43)[None], max_new_tokens=1, attention_mask=torch.ones(1, 40))
        kept = [m.store.length.tolist() for m in applied.attending.made]
    assert kept == [[[33, 7]], [[7, 33]]]
    assert main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(only) in out and "DuoAttention" in out and "note: the file has no budget" in out


def test_modelopts_is_written_and_read_back(tmp_path):
    steps = interchange(SKIP).steps
    told = describe(steps, ("LlamaAttention",))
    assert told["config_groups"] == SKIP["config_groups"] and told["producer"]["name"] == "fewer"
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama"}')
    write(steps, path)
    assert json.loads(path.read_text())["model_type"] == "llama" and recipe(path) == steps
    with pytest.raises(ValueError, match="no words for 'attention/quest 10%'"):
        describe(recipe("attention/quest 10%"))
    with pytest.raises(ValueError, match="no words for"):
        describe(recipe("attention/skip_softmax 100% @ *.0.*"))


@pytest.mark.parametrize(
    "told, words",
    [
        ([], "it is empty"),
        ([{"0": ["spiral", 1, 2, 3]}], "layer 0, head 0: the pattern 'spiral' is unknown"),
        ([{"0": ["stream_llm", "a", 2]}], "is not a name and two sizes"),
        ({"hidden_size": 3}, "none of its keys is known"),
        (SKIP | {"group": 1}, "the keys group are unknown; known are config_groups"),
        ({"config_groups": {"g": {"algorithm": "skip_softmax", "speed": 9}}}, "g: the keys speed are unknown"),
        ({"config_groups": {"g": {"algorithm": "magic"}}}, "algorithm 'magic' is unknown"),
        ({"config_groups": {"g": {"algorithm": "skip_softmax"}}}, "threshold_scale_factor is missing"),
        ({"algorithm": "rocket", "page_sise": 4}, "the keys page_sise are unknown"),
        ({"algorithm": "rocket", "topk": 0}, "topk is 0"),
        ({"algorithm": "dsa", "index_topk": 2048}, "indexer that was learnt"),
        ({"index_topk": 512, "hidden_size": 4}, "the 512 keys are chosen by an indexer"),
        (MINIMAX | {"use_sparse_attention": False}, "attention is dense"),
        ({"seerattn_sparsity_method": "threshold", "seerattn_threshold": 5e-4}, "no budget; set it to 'nz_ratio'"),
        ({"seerattn_sparsity_method": "nz_ratio", "seerattn_nz_ratio": 3}, "seerattn_nz_ratio is 3"),
    ],
)
def test_what_is_not_understood_is_named(told, words):
    with pytest.raises(ValueError, match=words):
        interchange(told)


def test_files_that_are_not_there_or_no_json(tmp_path):
    with pytest.raises(ValueError, match="no full_attention_heads.tsv and no"):
        interchange(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file"):
        interchange(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        interchange(tmp_path / "b.json")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_heads_of_the_queries_choose_each_for_itself_with_its_own_budget():
    q, k = draw(1, 4, 32, 8), draw(1, 2, 32, 8, seed=1)
    m = method_of("by_head(parts='streaming 8 | quest 16', deal=(0, 1, 1, 0), rows=4, block=4)", "attention")
    keep = m.attend(q, k, budget("100%"))
    for h, (part, own) in enumerate((("streaming", "8"), ("quest", "16"), ("quest", "16"), ("streaming", "8"))):
        alone = replace(method_of(part, "attention"), rows=4, block=4)
        mine = alone.attend(q[:, h : h + 1], k[:, h // 2 : h // 2 + 1], budget(own))
        assert torch.equal(keep[:, h : h + 1], mine)
        least = alone.attend(q[:, h : h + 1], k[:, h // 2 : h // 2 + 1], budget("4")) & mine
        assert torch.equal(m.attend(q, k, budget("4"))[:, h : h + 1], least), "the step's budget is the most"
    last = m.attend(q[:, :, -1:], k, budget("100%"))
    assert last.shape == (1, 2, 1, 8), "heads of a group read together what one of them reads"
    for wrong, words in (("deal=(0, 1, 1)", "deal is of 3 heads"), ("parts='quest 2 3'", "write patterns between")):
        with pytest.raises(ValueError, match=words):
            method_of(f"by_head({wrong})", "attention").attend(q, k, budget("100%"))


def test_a_tile_is_skipped_as_online_softmax_would_skip_it():
    """The loop of the kernel, in float64: the running maximum goes from the first tile on; a tile needs one query to stay."""
    q, k = draw(1, 2, 11, 4) * 20, draw(1, 1, 19, 4, seed=1)
    m = method_of("skip_softmax(a=0.9, b=1.5, aim=0.25, rows=2, block=2)", "attention")
    keep, scale = m.attend(q, k, budget("100%")), 0.9 * torch.e ** (1.5 * 0.75)
    skipped = 0
    for h in range(2):
        s = q[0, h].double() @ k[0, 0].double().T / 4**0.5
        for row in range(6):
            rows = range(row * 2, min(11, row * 2 + 2))
            last = (rows[-1] + 8) // 2
            running = dict.fromkeys(rows, -torch.inf)
            for tile in range(last + 1):
                stays = tile == last
                for i in rows:
                    if mine := [s[i, j].item() for j in range(tile * 2, min(19, tile * 2 + 2)) if j <= i + 8]:
                        running[i] = max(running[i], *mine)
                        stays |= torch.e ** (max(mine) - running[i]) >= scale / 19
                assert bool(keep[0, h, row, tile]) == stays
                skipped += not stays
            assert not keep[0, h, row, last + 1 :].any()
    assert skipped > 5


def test_n_of_m_neighbours_by_hand():
    q, k = draw(1, 2, 9, 4), draw(1, 1, 14, 4, seed=1)
    keep = method_of("dfss(n=1, m=3, sinks=2, recent=2)", "attention").attend(q, k, budget("100%"))
    for h in range(2):
        s = q[0, h].double() @ k[0, 0].double().T
        for i in range(9):
            now = i + 5
            best = {max(range(g, min(g + 3, now + 1)), key=lambda j: s[i, j].item()) for g in range(0, now + 1, 3)}
            assert set(keep[0, h, i].nonzero().flatten().tolist()) == best | {0, 1, now - 1, now}


def test_calibrated_skipping_reaches_its_aim_at_twice_the_length():
    """What is learnt of 512 keys holds at 1024, within five points."""
    q, k = 3 * draw(1, 4, 1024, 16), draw(1, 4, 1024, 16, seed=1)
    m = method_of("skip_softmax(rows=8, block=8)", "attention").fit(q[:, :, :512], k[:, :, :512])
    assert m.a > 0 < m.b
    for aim in (0.3, 0.5, 0.7):
        keep = replace(m, aim=aim).attend(q, k, budget("100%"))
        read = keep.sum().item() / (4 * 128 * 129 / 2)
        assert abs(read - aim) <= 0.05, (aim, read)
