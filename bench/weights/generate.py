"""Tokens a second of `generate` on a random Llama of a billion parameters, on a CPU: `python -m bench.weights.generate`.

16 layers of 2048 x 8192 (973 million weights in the blocks), greedy, one sequence. Weights and patterns are random: the time does not depend
on them. Each way of storing is a model of its own, so they run one after the other; a row is the median of repeated runs,
with the quartiles. Rows are merged into the results file as they come: name some to run only those.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench.kernels._measure import machine, read_bandwidth, spread
from fewer.core import budget
from fewer.layout import Csr, Dense, Grid, Layout, Nm, Tiles, smallest
from fewer.models import SparseLinear, swap
from fewer.select import select

SIZES = dict(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8
)
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
PROMPT, NEW = 16, 16
RESULTS = pathlib.Path(__file__).parent / "results" / "generate-cpu.json"


def model(sizes: dict[str, int], dtype: torch.dtype) -> nn.Module:
    config = LlamaConfig(vocab_size=8192, max_position_embeddings=2048, eos_token_id=None, **sizes)
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False)


def packed(store: Callable[[torch.Tensor], Layout]) -> Callable[[dict[str, int]], nn.Module]:
    """All maps inside the blocks stored by `store`, computed in float32."""

    def make(sizes: dict[str, int]) -> nn.Module:
        m = model(sizes, torch.float32)
        for name, linear in [(n, x) for n, x in m.named_modules() if isinstance(x, nn.Linear) and ".layers." in n]:
            swap(m, {name: SparseLinear.from_linear(linear, store(linear.weight.bfloat16()))})
        return m

    return make


def kept(w: torch.Tensor, text: str) -> torch.Tensor:
    return select(torch.rand(w.shape), budget(text))


def codes(w: torch.Tensor, text: str = "100%") -> Layout:
    """Eight bits, one scale a row."""
    keep = kept(w, text)
    grid = Grid.around(w.float() * keep, keep, 8)
    return smallest(grid.values(grid.round(w.float() * keep)), keep, budget(text), grid)


def torch_int8(sizes: dict[str, int]) -> nn.Module:
    m = model(sizes, torch.float32)
    torch.ao.quantization.quantize_dynamic(m.model.layers, {nn.Linear}, torch.qint8, inplace=True)
    return m


WAYS: dict[str, Callable[[dict[str, int]], nn.Module]] = {
    "torch float32": lambda sizes: model(sizes, torch.float32),
    "torch bfloat16": lambda sizes: model(sizes, torch.bfloat16),
    "torch qint8": torch_int8,
    "dense bfloat16": packed(lambda w: Dense.pack(w, torch.ones_like(w, dtype=torch.bool))),
    "dense int8": packed(codes),
    "2:4 bfloat16": packed(lambda w: Nm.pack(w, kept(w, "2:4"), 4)),
    "16x1 50% bfloat16": packed(lambda w: Tiles.pack(w, kept(w, "50% of 16x1"), 16)),
    "16x1 30% bfloat16": packed(lambda w: Tiles.pack(w, kept(w, "30% of 16x1"), 16)),
    "16x1 50% int8": packed(lambda w: codes(w, "50% of 16x1")),
    "16x1 30% int8": packed(lambda w: codes(w, "30% of 16x1")),
    "unstructured 10% bfloat16": packed(lambda w: Csr.pack(w, kept(w, "10%"))),
}


def stored(m: nn.Module) -> int:
    """Bytes of the maps inside the blocks."""
    total = 0
    for name, module in m.named_modules():
        if ".layers." not in name:
            continue
        if isinstance(module, SparseLinear | nn.Linear):
            total += sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
        elif hasattr(module, "_packed_params") and hasattr(module, "weight"):
            total += module.weight().numel()
    return total


@torch.inference_mode()
def tokens_a_second(m: nn.Module, repeats: int) -> dict[str, float]:
    """New tokens alone: a run of `NEW` more tokens less a run of one, with the same prompt."""
    ids = torch.randint(8192, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    def run(new: int) -> float:
        start = time.perf_counter()
        out = m.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        assert out.shape[1] == PROMPT + new
        return time.perf_counter() - start

    run(2)
    rates = [NEW / (run(1 + NEW) - run(1)) for _ in range(repeats)]
    found = spread(rates)
    return {"tokens_a_second": found["seconds"], "q25": found["q25"], "q75": found["q75"]}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("ways", nargs="*", help="only these")
    parse.add_argument("--repeats", type=int, default=5)
    parse.add_argument("--tiny", action="store_true", help="a tiny model: does it run?")
    args = parse.parse_args()
    if unknown := set(args.ways) - set(WAYS):
        raise SystemExit(f"no way {sorted(unknown)}; there are: {', '.join(WAYS)}")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() and not args.tiny else {"rows": {}}
    found["machine"] = machine() | {"read_bytes_per_second": read_bandwidth()}
    for way in args.ways or WAYS:
        m = WAYS[way](TINY if args.tiny else SIZES)
        size, rate = stored(m), tokens_a_second(m, args.repeats)
        row = {"bytes": size, "bound": found["machine"]["read_bytes_per_second"] / size, **rate}
        found["rows"][way] = row
        print(f"{way:26} {size / 1e9:6.2f} GB  {rate['tokens_a_second']:6.2f} tokens/s "
              f"[{rate['q25']:.2f}, {rate['q75']:.2f}]  its bytes alone {row['bound']:.1f}", flush=True)  # fmt: skip
        if not args.tiny:
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        del m


if __name__ == "__main__":
    main()
