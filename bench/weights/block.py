"""One block of Llama-3-8B's shape by SparseGPT on this GPU: seconds, peak memory, and the bound: `python -m bench.weights.block`.

Weights and tokens are random (the time does not depend on them). Counted are: the block's two runs over the calibration tokens
(once to be heard, once pruned, to feed the next), the Gram matrices, and the pruning itself. The bound is the arithmetic at the
rate of a large product of the same kind on the same GPU. 32 blocks are a whole model.
"""

import argparse
import json
import os
import pathlib
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fewer

BLOCKS = 32


def model(dtype: torch.dtype, device: str, small: bool) -> torch.nn.Module:
    sizes = dict(hidden_size=64, intermediate_size=224, num_attention_heads=4, num_key_value_heads=1) if small else dict(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8
    )  # fmt: skip
    config = LlamaConfig(num_hidden_layers=1, vocab_size=512, max_position_embeddings=8192, **sizes)
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False)


def rate(dtype: torch.dtype, device: str, n: int) -> float:
    """Operations a second of a large product."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(4):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def operations(config: LlamaConfig, tokens: int, length: int) -> dict[str, float]:
    """Of the block's runs, and of the Gram matrices of its four inputs."""
    d, f, kv = (
        config.hidden_size,
        config.intermediate_size,
        config.hidden_size // config.num_attention_heads * config.num_key_value_heads,
    )
    maps = 2 * d * d + 2 * d * kv + 3 * d * f
    return {"runs": 2 * tokens * (2 * maps + 2 * length * d), "gram": 2.0 * tokens * (3 * d * d + f * f)}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--windows", type=int, default=128)
    parse.add_argument("--length", type=int, default=2048)
    parse.add_argument("--small", action="store_true", help="a tiny block: does it run?")
    args = parse.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for budget in ("50%", "2:4"):
            m = model(dtype, device, args.small)
            ids = torch.randint(512, (args.windows, args.length), generator=torch.Generator().manual_seed(0))
            wait(device)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            applied = fewer.sparsify(m, f"weights/sparse_gpt {budget}", ids.to(device))
            wait(device)
            seconds = time.perf_counter() - start
            work = operations(m.config, ids.numel(), args.length)
            n = 256 if args.small else 8192
            bound = work["runs"] / rate(dtype, device, n) + work["gram"] / rate(torch.float32, device, n)
            row = {"dtype": str(dtype)[6:], "budget": budget, "seconds": seconds, "bound": bound, "operations": work,
                   "whole_model_minutes": seconds * BLOCKS / 60, "maps": {c.site: round(c.seconds, 3) for c in applied.changes},
                   "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else 0}  # fmt: skip
            found.append(row)
            print(json.dumps(row), flush=True)
            del m, applied
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    folder = pathlib.Path(os.environ.get("OUT") or pathlib.Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "gpu": gpu,
        "torch": torch.__version__,
        "windows": args.windows,
        "length": args.length,
        "date": time.strftime("%Y-%m-%d"),
    }
    if not args.small:
        (folder / "block.json").write_text(json.dumps({"machine": about, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
