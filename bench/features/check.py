"""The cases of one operation, compiled on a GPU, against float64: `python -m bench.features.check OP`; a JSON line."""

import dataclasses
import importlib
import json
import sys

import torch

import fewer.kernels as kernels

CUDA = torch.cuda.is_available()


def check(op: str, dtype: torch.dtype) -> dict:
    """Within twice the reference's own rounding in that dtype, or equal if not real numbers."""
    bad, count = [], 0
    for args in importlib.import_module(f"fewer.kernels.{op}.cases").cases(dtype, "cuda" if CUDA else "cpu"):
        count += 1
        label = ", ".join(f"{type(a).__name__} {list(getattr(a, 'shape', []))}" for a in args)
        try:
            truth = kernels.load(op, "ref")(*map(in_double, args))
            plain, fast = (kernels.load(op, b)(*args) for b in ("ref", "gpu"))
            for parts in zip(*map(several, (truth, plain, fast)), strict=True):
                if not agree(*(p.cpu() for p in parts), dtype):
                    bad.append(f"{label}: not equal to the reference")
        except Exception as why:
            bad.append(f"{label}: {type(why).__name__}: {str(why)[:300]}")
    return {"op": op, "dtype": str(dtype), "cases": count, "bad": bad}


def agree(truth: torch.Tensor, ref: torch.Tensor, out: torch.Tensor, dtype: torch.dtype) -> bool:
    if not out.is_floating_point() or not truth.numel():
        return torch.equal(out, truth.to(out.dtype))
    allowed = 2 * (ref.double() - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
    return bool((out.double() - truth).abs().max() <= allowed)


def several(result: object) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def in_double(a: object) -> object:
    if isinstance(a, torch.Tensor):
        return a.cpu().double() if a.is_floating_point() else a.cpu()
    fields = {k: in_double(v) for k, v in vars(a).items()} if dataclasses.is_dataclass(a) else {}
    return dataclasses.replace(a, **fields) if fields else a


if __name__ == "__main__":
    with torch.no_grad():
        kinds = (torch.float32, torch.bfloat16) if CUDA else (torch.float32,)
        print(json.dumps([check(sys.argv[1], dtype) for dtype in kinds]))
