"""Steps of others beside ours on a GPU, in one process and from one batch: `python -m bench.features.gpu_beside [PART ...]`.

Others are imported from the environment, or from `.peers/` in the repository's root, where their packages may be put. Writes
$OUT/beside-gpu.json (bench/features/results/ without $OUT) after each part; what is there of other parts stays.

- eai-sparsify 1.3.3: the body of its trainer, bfloat16 autocast and its Triton kernel, as it is shipped;
- SAELens 6.54.12: `SAETrainer.step`, as it is shipped (float32), with its autocast, and compiled too;
- flex-sae: its Triton kernels for HierarchicalTopK.
"""

import importlib
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import torch

from bench.kernels import _device as device
from fewer.core import budget
from fewer.features.top_k import TopK
from fewer.train import Lesson, Pupil, Rows, learn, recorded

from ._device import DEVICE, ms, normal
from ._steps import Ours, Plain, data
from .gpu import SHAPES, nested

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "peers"), str(HERE.parents[1] / ".peers")]


def given(dim: int, latents: int, k: int, batch: int) -> object:
    return importlib.import_module("_learn").Given(dim, latents, k, batch, 100, 1e-3, 0, DEVICE)


def step_of(name: str, shape: tuple[int, int, int, int], **kwargs: bool) -> Callable[[torch.Tensor], object]:
    """Of a peer, called with a batch."""
    step, _ = importlib.import_module(f"with_{name}").make(given(*shape), **kwargs)
    step(0, data(shape[3], shape[0], DEVICE))
    return lambda batch: step(1, batch)


def steps(*shape: int) -> dict:
    """Milliseconds a step, launched one by one; ours in a graph too."""
    dim, _, k, batch = shape
    rows, found = data(batch, dim, DEVICE, 1), {}
    makers: dict[str, Callable[[], Callable[[torch.Tensor], object]]] = {
        "ours": lambda: Ours(*shape, DEVICE),
        "plain torch, autocast": lambda: Plain(Ours(*shape, DEVICE), k),
        "sparsify": lambda: step_of("sparsify", shape),
        "saelens": lambda: step_of("saelens", shape),
        "saelens, autocast": lambda: step_of("saelens", shape, autocast=True),
        "saelens, autocast and compiled": lambda: step_of("saelens", shape, autocast=True, compiled=True),
    }
    for name, make in makers.items():
        try:
            step = make()
            torch.cuda.reset_peak_memory_stats()
            found[name] = ms(lambda step=step: step(rows), graph=False, n=11)
            found[name]["peak bytes"] = torch.cuda.max_memory_allocated()
            if name == "ours":
                found["ours, in a graph"] = ms(lambda step=step: step(rows), n=11)
            del step
        except Exception as why:
            found[name] = {"failed": f"{type(why).__name__}: {str(why)[:400]}"}
        torch.cuda.empty_cache()
    return found | learning(*shape)


def learning(*shape: int) -> dict:
    """Milliseconds a step of `fewer.train.learn`, rows from the GPU's memory: as it is, and with all steps launched."""
    dim, latents, k, batch = shape
    rows, found = data(8 * batch, dim, DEVICE, 2), {}
    pupil, first = Pupil(TopK(), budget(str(k)), latents), recorded.FIRST
    for name, recorded.FIRST in (("learn", first), ("learn, steps launched", 10**9)):
        times = [time.perf_counter()]
        lesson = Lesson(150, rate=1e-4, dead_after=10**9)
        learn([pupil], Rows(rows, batch), lesson, told=lambda _, times=times: times.append(time.perf_counter()))
        each = [(b - a) * 1e3 for a, b in itertools.pairwise(times[50:])]
        low, middle, high = statistics.quantiles(each, n=4)
        found[name] = {"ms": round(middle, 4), "q25": round(low, 4), "q75": round(high, 4)}
    recorded.FIRST = first
    return found


def hierarchical(dim: int, latents: int, k: int, batch: int) -> dict:
    """Loss of all prefixes with its gradients: ours, and flex-sae's."""
    found = nested(dim, latents, k, batch)
    loss = importlib.import_module("flex_sae").triton_hierarchical_sae_loss
    index = torch.randint(latents, (batch, k), generator=torch.Generator(DEVICE).manual_seed(3), device=DEVICE)
    for dtype in (torch.bfloat16, torch.float32):
        value = normal(batch, k, seed=4, dtype=torch.float32).requires_grad_()
        atoms = (normal(latents, dim, seed=6, dtype=torch.float32) / dim**0.5).to(dtype).requires_grad_()
        y, bias = normal(batch, dim, seed=5, dtype=dtype), torch.zeros(dim, device=DEVICE).requires_grad_()

        def both(value=value, atoms=atoms, y=y, bias=bias) -> None:
            value.grad = atoms.grad = bias.grad = None
            loss(index, atoms, value, bias, y)[0].backward()

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found[f"flex-sae {dtype}"] = ms(both, graph=False, n=9)
        found[f"flex-sae {dtype}, peak bytes beyond"] = torch.cuda.max_memory_allocated() - before
        if found[f"flex-sae {dtype}"]["ms"] == found[f"flex-sae {dtype}"]["ms"]:
            first = atoms.grad.clone()
            both()
            found[f"flex-sae {dtype}, the same twice"] = bool(torch.equal(first, atoms.grad))
    return found


def main() -> None:
    folder = pathlib.Path(os.environ.get("OUT") or HERE / "results")
    file = folder / "beside-gpu.json"
    found: dict = json.loads(file.read_text()) if file.exists() else {}
    found["machine"] = device.machine(device.copy_bandwidth())
    parts: dict[str, Callable[[], dict]] = {
        "gpt2": lambda: steps(*SHAPES["gpt2"]),
        "gemma": lambda: steps(*SHAPES["gemma"]),
        **{f"hierarchical, {k}": lambda k=k: hierarchical(2304, 65536, k, 4096) for k in (32, 64, 128)},
    }
    for name, do in parts.items():
        if not any(name.startswith(asked) for asked in sys.argv[1:] or [""]):
            continue
        try:
            found[name] = do()
        except Exception as why:
            found[name] = {"failed": f"{type(why).__name__}: {str(why)[:600]}"}
        torch.cuda.empty_cache()
        print(name, json.dumps(found[name]), flush=True)
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
