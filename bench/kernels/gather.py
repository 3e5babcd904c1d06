"""The ways to cut `gather.cu` and the algorithms of cuSPARSELt, all of them, on this GPU: `python -m bench.kernels.gather`.

The tables in `sparse_linear/_cuda.py` are what was fastest here; results/gather-h100.txt is what it printed.
"""

import time
from functools import partial

import torch
from torch.nn import functional as F

from fewer.kernels.sparse_linear import _cuda, _cusparselt
from fewer.layout import Gaps, Layout, Nm

from . import _device as device
from .gpu import normal, rotated

SHAPES = ((14336, 4096), (4096, 14336))
CUTS = [_cuda.Cut(t, b, a) for t, b in ((256, 4), (256, 6), (512, 1), (512, 2), (512, 3), (512, 4), (1024, 1), (1024, 2))
        for a in (1, 2, 4) if a * b * t <= 4096]  # fmt: skip


def stored(rows: int, cols: int) -> dict[str, Layout]:
    make, w = torch.Generator("cuda").manual_seed(1), normal(rows, cols)

    def kept(share: float) -> torch.Tensor:
        return torch.rand(rows, cols, generator=make, device="cuda") < share

    def pattern(n: int, m: int) -> torch.Tensor:
        return (torch.rand(rows, cols // m, m, generator=make, device="cuda").argsort(-1).argsort(-1) < n).reshape(
            rows, cols
        )

    out: dict[str, Layout] = {f"gaps {share:.0%}": Gaps.pack(w, kept(share)) for share in (0.5, 0.3, 0.1)}
    return out | {f"{n}:{m}": Nm.pack(w, pattern(n, m), m=m) for n, m in ((2, 4), (1, 8))}


def best(calls: dict[str, list], dense: float, chosen: str = "", replays: int = 8) -> str:
    """The four fastest and, with a star, what is chosen: µs, and the part of the dense time."""
    found = device.interleaved(calls, replays, {})
    order = sorted(found, key=lambda name: found[name]["seconds"])
    shown = [n for i, n in enumerate(order) if i < 4 or n == chosen]
    took = {n: found[n]["seconds"] for n in shown}
    return ", ".join(f"{n}{'*' * (n == chosen)}: {t * 1e6:.1f} ({t / dense:.3f}x)" for n, t in took.items())


def few_tokens(rows: int, cols: int, bandwidth: float) -> None:
    for tokens in (1, 2, 4, 8):
        x = normal(tokens, cols)
        dense = device.interleaved({"": [partial(F.linear, x, w) for w in rotated(normal(rows, cols))]}, 16)[""][
            "seconds"
        ]
        print(f"{rows}x{cols}, {tokens} tokens: dense {dense * 1e6:.1f} µs")
        for name, layout in stored(rows, cols).items():
            same = rotated(layout)
            calls = {named(c): [partial(_cuda.multiply, x, w, None, c) for w in same] for c in CUTS}
            alone = layout.bytes / bandwidth * 1e6
            print(f"  {name}, bytes alone {alone:.1f}: {best(calls, dense, named(_cuda.cut_for(layout, tokens)))}")


def named(c: _cuda.Cut) -> str:
    return f"{c.threads}x{c.blocks}, {c.ahead} ahead"


def many_tokens(rows: int, cols: int) -> None:
    w = stored(rows, cols)["2:4"].dense()
    packed = torch._cslt_compress(w)
    for tokens in (64, 256, 512, 4096):
        x = normal(tokens, cols)
        size, out = (rows, cols, tokens, x.dtype, 0), x.new_empty(tokens, rows)
        dense = device.interleaved({"": [partial(F.linear, x, w)] * 2}, 8)[""]["seconds"]
        plans = {str(n): _cusparselt._Product(*size).plan(n) for n in _cusparselt._Product(*size).algorithms}
        calls = {f"algorithm {n}": [partial(plan.run, packed, x, out)] * 2 for n, plan in plans.items()}
        plans["0"].run(packed, x, out)  # the first call of all loads the library's code
        begin = time.perf_counter()
        for _ in range(50):
            plans["0"].run(packed, x, out)
        host = (time.perf_counter() - begin) / 50 * 1e6
        found = f"dense {dense * 1e6:.1f} µs; {best(calls, dense)}; host {host:.0f} µs a call"
        print(f"2:4 {rows}x{cols}, {tokens} tokens: {found}")


def main() -> None:
    bandwidth = device.copy_bandwidth()
    print(torch.cuda.get_device_name(), torch.__version__, f"copy {bandwidth / 1e12:.2f} TB/s")
    for shape in SHAPES:
        few_tokens(*shape, bandwidth)
        many_tokens(*shape)


if __name__ == "__main__":
    main()
