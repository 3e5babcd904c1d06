"""Triton's kernels of trained attention where shapes are crooked: gradients against float64, both ways, piece by piece.

Without a GPU they run in Triton's interpreter, every address watched.
"""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from slopes import compare

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before any @triton.jit is met

from fewer import kernels  # noqa: E402
from fewer.kernels.attend_chosen.cases import cases  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
HALF = torch.bfloat16 if GPU else torch.float16  # no bf16 in the interpreter


@pytest.mark.parametrize(
    "number, way, dtype",
    [
        (1, True, torch.float32),
        (3, True, HALF),
        (0, False, HALF),
        (2, False, torch.float32),
        (4, False, HALF),
        (5, False, HALF),
    ],
)
def test_chosen_blocks_have_the_gradients_of_float64(number, way, dtype):
    args = list(cases(dtype, DEVICE))[number]
    compare("attend_chosen", args, dtype, partial(kernels.load("attend_chosen", "gpu"), by_queries=way))


def test_pieces_and_stretches_change_nothing(monkeypatch):
    """A few bytes at a time; and one block that all chose, in stretches of one tile."""
    from fewer.kernels.attend_chosen import gpu

    args = list(cases(torch.float32, DEVICE))[1]
    args[3][..., 0] = 0
    args[3][..., 1:][args[3][..., 1:] == 0] = -1
    short = replace(gpu.cuts_of(32, 4), back=gpu.Cut(16, 16, 4, 2, tiles=1))
    whole = compare("attend_chosen", args, torch.float32, partial(gpu.attend_chosen, by_queries=False))
    for most in (1 << 31, 4096):
        monkeypatch.setattr(gpu, "LARGEST", most)
        do = partial(gpu.attend_chosen, by_queries=False, cuts=short)
        parts = compare("attend_chosen", args, torch.float32, do)
        assert torch.allclose(parts[0], whole[0], atol=1e-6)


def test_an_indexer_with_little_room_raises_its_bar():
    """Keys come by sixteen and are cut back many times, programs take several tiles; whole numbers: many are equal."""
    from fewer.kernels.index_top_k import gpu
    from fewer.kernels.index_top_k.cases import cases as index_cases

    *args, top = list(index_cases(HALF, DEVICE))[1]
    for few, rising in ((top, False), (3, True)):
        if rising:  # each key is better than those before
            args[1] = torch.arange(1, args[1].shape[1] + 1, device=DEVICE)[None, :, None].expand_as(args[1]).to(HALF)
        find = partial(gpu.index_top_k, *args, few, gpu.Cut(16, 16, 4, 2))
        if GPU:
            found = find()
        else:
            from fewer.testing.interpret import watch

            with watch(*args):
                found = find()
        assert torch.equal(found, kernels.load("index_top_k", "ref")(*args, few))


@pytest.mark.parametrize("number, dtype", [(1, torch.float32), (2, torch.float32), (3, HALF)])
def test_entmax_attention_has_the_gradients_of_float64(number, dtype):
    """Tiles are small, so that some have no weight; alphas of each head have a gradient too."""
    from fewer.kernels.entmax_attention import gpu
    from fewer.kernels.entmax_attention.cases import cases as entmax_cases

    args = list(entmax_cases(dtype, DEVICE))[number]
    compare("entmax_attention", args, dtype, partial(gpu.entmax_attention, cut=gpu.Cut(16, 16, (4, 2))))
