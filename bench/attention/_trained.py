"""Whom the kernels of trained attention are compared with: torch, FlexAttention, fla, adasplash; and the truth on small shapes."""

import glob
import importlib
import multiprocessing
import pathlib
import sys
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from bench.kernels import _device as device
from fewer.kernels import load

TINY = not device.CUDA
DEVICE, DTYPE = ("cpu", torch.float16) if TINY else ("cuda", torch.bfloat16)
ROOT = pathlib.Path(__file__).parents[2]
Attend = Callable[..., torch.Tensor]


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE, dtype=DTYPE)


def positions(length: int, units: int) -> tuple[torch.Tensor, torch.Tensor]:
    place = torch.arange(length, dtype=torch.int32, device=DEVICE)
    return place.expand(1, units, -1).contiguous(), place[None].contiguous()


def gradients(f: Attend, qkv: tuple[torch.Tensor, ...], given: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Forward and backward."""
    leaves = [t.detach().requires_grad_() for t in qkv]
    with torch.enable_grad():
        return torch.autograd.grad(f(*leaves), leaves, given)


def _dense(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH if TINY else backend):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def dense() -> dict[str, Attend]:
    known = {"flash, all": SDPBackend.FLASH_ATTENTION, "cudnn, all": SDPBackend.CUDNN_ATTENTION}
    return {name: partial(_dense, b) for name, b in known.items()}


def flex(index: torch.Tensor, block: int) -> dict[str, Attend]:
    """The same mask, as FlexAttention sees it: each token looks up whether its block was chosen."""
    units, length = index.shape[1:3]
    table = torch.zeros(units, length, length // block + 1, dtype=torch.bool, device=DEVICE)
    table.scatter_(2, torch.where(index[0] < 0, length // block, index[0]).long(), True)

    def may(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return table[h * units // may.heads, i, j // block] & (i >= j)  # type: ignore[attr-defined]

    rows = torch.arange(length // 128, device=DEVICE, dtype=torch.int32)
    lists = (rows + 1)[None, None], rows.expand(1, 1, len(rows), -1).contiguous()  # who reads 16 of 64 meets all tiles

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group = q.shape[1] // units

        def may(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
            return table[h // group, i, j // block] & (i >= j)

        mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=128, mask_mod=may, seq_lengths=(length, length))
        return _compiled()(q, k, v, block_mask=mask, enable_gqa=True)

    return {} if TINY else {"flex, same mask": attend}


@cache
def _compiled() -> Attend:
    return torch.compile(flex_attention, dynamic=False)


@cache
def _unpacked() -> str:
    """Wheels beside the repository, where they can be imported."""
    place = tempfile.mkdtemp()
    for wheel in glob.glob(str(ROOT / ".whl" / "*.whl")):
        if any(name in wheel for name in ("fla_core", "adasplash", "einops")):
            zipfile.ZipFile(wheel).extractall(place)
    sys.path.append(place)
    return place


def _peer(name: str) -> object | None:
    _unpacked()
    try:
        return importlib.import_module(name)
    except Exception as why:
        print(f"{name} is not here: {type(why).__name__}: {str(why)[:200]}", flush=True)
        return None


def fla(index: torch.Tensor, block: int, group: int) -> dict[str, Attend]:
    """Its kernels for the selected branch; it wants groups of 16 at least."""
    if TINY or group < 16 or (found := _peer("fla.ops.nsa.parallel")) is None:
        return {}
    turned = torch.where(index < 0, index.shape[2], index).transpose(1, 2).contiguous()  # it skips what lies ahead
    run = found.ParallelNSAFunction.apply  # type: ignore[attr-defined]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return run(q, k, v, turned, turned.shape[-1], block, q.shape[-1] ** -0.5, None).transpose(1, 2)

    return {"fla": attend}


def adasplash() -> dict[str, Attend]:
    if TINY or (found := _peer("adasplash")) is None:
        return {}
    return {"adasplash": lambda q, k, v: found.adasplash_v2(q, k, v)}  # type: ignore[attr-defined]


def entmax_rows(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    """The largest relative error of some rows, against 1.5-entmax in float64."""
    worst, length = 0.0, q.shape[2]
    for head in (0, q.shape[1] - 1):
        for row in torch.linspace(0, length - 1, 7).int().tolist():
            z = (k[0, head, : row + 1].double() @ q[0, head, row].double()) * q.shape[-1] ** -0.5 / 2
            low, high = z.max() - 1, z.max()
            for _ in range(60):
                tau = (low + high) / 2
                heavy = ((z - tau).clamp(min=0) ** 2).sum() >= 1
                low, high = (tau, high) if heavy else (low, tau)
            truth = (z - low).clamp(min=0) ** 2 @ v[0, head, : row + 1].double()
            worst = max(worst, float((out[0, head, row].double() - truth).norm() / truth.norm()))
    return worst


def chosen_well(found: torch.Tensor, q: torch.Tensor, k: torch.Tensor, weight: torch.Tensor, top: int) -> dict:
    """Some rows in float64: how many of the best were found, and how far the worst found lies below the last of the best."""
    share, gap, length = 1.0, 0.0, q.shape[2]
    for row in torch.linspace(0, length - 1, 9).int().tolist():
        score = ((k[0, : row + 1].double() @ q[0, :, row].double().T).clamp(min=0) * weight[0, :, row].double()).sum(1)
        best = score.topk(min(top, row + 1))
        mine = found[0, row][: len(best.indices)].long()
        share = min(share, float(torch.isin(mine, best.indices).float().mean()))
        gap = max(gap, float((best.values[-1] - score[mine].min()) / score.abs().max()))
        assert (mine.diff() > 0).all() and (found[0, row][len(mine) :] == -1).all()
    return {"found of the best": share, "below the last by": gap}


def sample_of_torch(
    q: torch.Tensor, k: torch.Tensor, weight: torch.Tensor, top: int
) -> tuple[Callable[[], None], float]:
    """Products, top-k, chunk by chunk over what is past: some chunks, and how many times longer all would take."""
    length, high = q.shape[2], 256
    chunks = list(range(0, length, high))
    some = chunks[len(chunks) // 32 :: max(1, len(chunks) // 16)]

    def do() -> None:
        for i in some:
            end = min(i + high, length)
            score = torch.zeros(end - i, end, device=DEVICE)
            for h in range(0, q.shape[1], 8):
                part = (q[0, h : h + 8, i:end] @ k[0, :end].mT).relu_()
                score += (part * weight[0, h : h + 8, i:end, None]).sum(0)
            score.masked_fill_(
                torch.arange(end, device=DEVICE) > torch.arange(i, end, device=DEVICE)[:, None], -torch.inf
            )
            score.topk(min(top, end), sorted=False)

    return do, len(chunks) / len(some)


def check(op: str) -> dict[str, str]:
    """Every case of the operation, both ways where there are two: results and gradients against the reference in float64.

    In processes of their own: they compile side by side, and one that dies takes no other along.
    """
    count = len(list(importlib.import_module(f"fewer.kernels.{op}.cases").cases(torch.float32, "cpu")))
    ways = ("by_queries", "by_blocks") if op == "attend_chosen" else ("",)
    jobs = [(op, n, dtype, way) for dtype in (DTYPE, torch.float32) for n in range(count) for way in ways]
    if TINY:
        return dict(map(_checked, jobs[:: len(ways) + 1]))
    with ProcessPoolExecutor(12, mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(pool.map(_checked, jobs))


def _checked(job: tuple[str, int, torch.dtype, str]) -> tuple[str, str]:
    op, number, dtype, way = job
    name = f"{op} {number} {str(dtype)[6:]} {way}"
    try:
        args = list(importlib.import_module(f"fewer.kernels.{op}.cases").cases(dtype, DEVICE))[number]
        how = {"by_queries": way == "by_queries"} if way else {}
        said = _compared(op, args, how, 2e-5 if dtype == torch.float32 else 2e-2)
    except Exception as why:
        said = f"FAIL {type(why).__name__}: {str(why)[:300]}"
    print(f"{said[:4]} {name} {said[4:]}", flush=True)
    return name, said


def _compared(op: str, args: tuple, how: dict, limit: float) -> str:
    found, truth = (
        _results(partial(load(op, b), **h), args, w) for b, h, w in (("gpu", how, False), ("ref", {}, True))
    )
    away = []
    for mine, wanted in zip(found, truth, strict=True):
        if not mine.is_floating_point():
            return "PASS" if torch.equal(mine, wanted) else "FAIL other keys"
        mine, known = mine.double(), wanted.isfinite()
        if not torch.equal(mine.isfinite(), known):
            return "FAIL infinities elsewhere"
        mine, wanted = (torch.where(known, t, 0) for t in (mine, wanted))
        away.append(float((mine - wanted).norm() / (wanted.norm() + 1e-9)))
    return f"{'PASS' if max(away) <= limit else 'FAIL'} " + " ".join(f"{x:.1e}" for x in away)


def _results(do: Attend, args: tuple, wide: bool) -> list[torch.Tensor]:
    def floats(a: object) -> bool:
        return isinstance(a, torch.Tensor) and a.is_floating_point()

    given = [(a.double() if wide else a).detach().requires_grad_() if floats(a) else a for a in args]
    with torch.enable_grad():
        out = do(*given)
        out = out if isinstance(out, tuple) else (out,)
        if not out[0].is_floating_point():
            return list(out)
        total = sum(torch.where(o.isfinite(), o, 0).double().pow(2).sum() for o in out)
    return [*(o.detach() for o in out), *torch.autograd.grad(total, [a for a in given if floats(a)])]


def table(found: dict) -> None:
    """Milliseconds, a line for each shape."""
    rows: dict[str, dict[str, float]] = {}
    for r in found.get("results", ()):
        what = " ".join(
            f"{k} {r[k]}" if k != "op" else str(r[k]) for k in ("op", "length", "group", "peaked", "top") if k in r
        )
        rows.setdefault(what, {})[r["name"]] = r["seconds"] * 1e3
    for what, each in rows.items():
        print(f"{what:45} " + "  ".join(f"{name} {ms:.3g}" for name, ms in each.items()))
