"""Tokens a second of `generate` on a random model of Llama-3.2-1B's shape after a long prompt: `python -m bench.attention.generate`.

Dense as transformers has it (eager, and its static cache with a compiled, graphed forward) beside ours, recorded: all that is cached,
2048 of it, and a cache that keeps 2048. `generate` is timed whole; `steps` is the model alone, its greedy token fed back on the GPU.
The bound is the bytes of the weights and of the keys and values that must be read, by this GPU's copy bandwidth. `--tiny` runs
it on a CPU to see that it runs, without recording. Results go to the folder that OUT names, else beside this file.
"""

import argparse
import inspect
import pathlib
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import fewer
from bench.kernels import _device as device
from bench.kernels._measure import spread
from bench.kernels._run import Run

TINY = not device.CUDA
DEVICE, DTYPE = ("cpu", torch.float32) if TINY else ("cuda", torch.bfloat16)
SHAPE = (
    dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=200)
    if TINY
    else dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64, vocab_size=128256
    )
)  # fmt: skip
LENGTH, TOKENS, ROUNDS = (192, 8, 2) if TINY else (32768, 128, 3)
BUDGET = 64 if TINY else 2048
NAME = next(n for n in ("cache", "past_key_values") if n in inspect.signature(LlamaForCausalLM.forward).parameters)
OURS = {
    "ours, all": f"attention/quest(rows=16, block=16) {10 * LENGTH} @ decode",
    "quest 2048, pages of 16": f"attention/quest(rows=16, block=16) {BUDGET} @ decode",
    "quest 2048, pages of 64": f"attention/quest(rows=64, block=64) {BUDGET} @ decode",
    "snap_kv keeps 2048": f"cache/snap_kv {BUDGET}",
}


def make() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, max_position_embeddings=4 * LENGTH, tie_word_embeddings=True)
    with torch.device(DEVICE):
        return LlamaForCausalLM(config).to(DTYPE).eval()


class Case:
    """A cache that holds a prompt, and how a model goes on from there."""

    def __init__(self, model: LlamaForCausalLM, prompt: torch.Tensor, static: bool = False):
        self.model, self.prompt = model, prompt
        size = prompt.shape[1] + (TOKENS + 4) * (2 * ROUNDS + 3)
        self.cache: Any = StaticCache(model.config, max_cache_len=size) if static else DynamicCache(config=model.config)
        with torch.no_grad():
            self.forward(prompt[:, :-1], logits_to_keep=1)
        self.ids = prompt

    def forward(self, ids: torch.Tensor, **more: Any) -> Any:
        return self.model(ids, use_cache=True, **{NAME: self.cache}, **more)

    def generate(self) -> None:
        mask = torch.ones_like(self.ids)
        self.ids = self.model.generate(
            self.ids, attention_mask=mask, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, **{NAME: self.cache}
        )  # fmt: skip

    @torch.no_grad()
    def steps(self) -> None:
        token, new = self.ids[:, -1:], []
        for _ in range(TOKENS):
            token = self.forward(token).logits[:, -1:].argmax(-1)
            new.append(token)
        self.ids = torch.cat([self.ids, *new], 1)


def seconds(do: Callable[[], None]) -> float:
    if device.CUDA:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    do()
    if device.CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / TOKENS


def times(case: Case, name: str, what: dict, bound: float, run: Run, steps: bool = True) -> None:
    for kind, do in {"generate": case.generate, **({"steps": case.steps} if steps else {})}.items():
        first = seconds(do)
        t = spread([seconds(do) for _ in range(ROUNDS)])
        row = what | {"name": name, "kind": kind, "first": first} | t | {"tokens_a_second": len(case.prompt) / t["seconds"], "of_bound": bound / t["seconds"]}  # fmt: skip
        run.found.setdefault("results", []).append(row)
        print(f"{what} {name}, {kind}: {t['seconds'] * 1e3:.3f} ms a step ({t['q25'] * 1e3:.3f}-{t['q75'] * 1e3:.3f}), "
              f"{row['tokens_a_second']:.0f} tokens/s, {row['of_bound']:.0%} of the bound {bound * 1e3:.2f} ms", flush=True)  # fmt: skip
    run.write()


def dense(run: Run, batch: int, static: bool) -> None:
    model, prompt = make(), prompts(batch)
    case = Case(model, prompt, static)
    name = "transformers, static and compiled" if static else "transformers, eager"
    times(case, name, dict(batch=batch, length=LENGTH), bound(model, run, batch, LENGTH), run, steps=not static)


def ours(run: Run, batch: int, name: str, record: bool, compiled: bool = False) -> None:
    model, prompt = make(), prompts(batch)
    read = LENGTH if name == "ours, all" else BUDGET
    with fewer.apply(model, OURS[name], every=10**6, record=record, compiled=compiled) as applied:
        case = Case(model, prompt)
        times(
            case,
            name + (", compiled" if compiled else "" if record else ", not recorded"),
            dict(batch=batch, length=LENGTH),
            bound(model, run, batch, read),
            run,
        )
        if device.CUDA and record:
            profile(case)
    print("stored", sum(c.bytes_after for c in applied.changes) / sum(c.bytes_before for c in applied.changes))


def profile(case: Case) -> None:
    """What a few steps are made of."""
    with torch.no_grad():
        for _ in range(3):  # room is made, a step is recorded
            case.forward(case.ids[:, -1:])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p, torch.no_grad():
        for _ in range(4):
            case.forward(case.ids[:, -1:])
        torch.cuda.synchronize()
    rows = sorted(p.key_averages(), key=lambda e: -e.self_device_time_total)
    print("of four steps:", sum(e.self_device_time_total for e in rows), "us,", sum(e.count for e in rows), "kernels")
    for e in rows[:16]:
        print(f"  {e.self_device_time_total:8.0f} us {e.count:5d} {e.key[:90]}")


def prompts(batch: int) -> torch.Tensor:
    make = torch.Generator().manual_seed(1)
    return torch.randint(3, SHAPE["vocab_size"], (batch, LENGTH), generator=make).to(DEVICE)


def bound(model: LlamaForCausalLM, run: Run, batch: int, read: int) -> float:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())  # the embedding is read once, as the head
    each = 2 * SHAPE["num_hidden_layers"] * SHAPE["num_key_value_heads"] * SHAPE["head_dim"] * DTYPE.itemsize
    return (weights + batch * read * each) / run.bandwidth


def agree(run: Run) -> dict:
    """Logits of a step after the prompt, ours over everything against transformers'."""
    model, prompt = make(), prompts(1)
    with torch.no_grad():
        truth = Case(model, prompt).forward(prompt[:, -1:]).logits.float()
        with fewer.apply(model, OURS["ours, all"], record=device.CUDA):
            case = Case(model, prompt)
            found = [case.forward(prompt[:, -1:]).logits.float().clone()]
            for _ in range(3):
                case.cache.crop(-1)
                found.append(case.forward(prompt[:, -1:]).logits.float().clone())
    return {"relative": [float((f - truth).norm() / truth.norm()) for f in found]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", default=".*")
    parser.add_argument("--limit", type=float, default=420)
    parser.add_argument("--batches", default="1,4")
    given = parser.parse_args()
    run = Run(given.limit, given.parts, pathlib.Path(__file__).parent / "results", "generate-h100.json")
    run.part("agree", agree, run)
    for batch in map(int, given.batches.split(",")):
        for name in OURS:
            run.part(f"{name} {batch}", ours, run, batch, name, device.CUDA)
        if batch == 1:
            run.part(f"eager {batch}", dense, run, batch, False)
            run.part(f"not recorded {batch}", ours, run, batch, "quest 2048, pages of 64", False)
    for batch in map(int, given.batches.split(",")):
        for name in OURS if device.CUDA else ():
            run.part(f"compiled {name} {batch}", ours, run, batch, name, True, True)
        run.part(f"static {batch}", dense, run, batch, True)


if __name__ == "__main__":
    main()
