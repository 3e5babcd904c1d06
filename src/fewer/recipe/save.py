"""A sparse model as a directory that transformers can load: packed weights, the recipe, and a probe that proves it."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewer.core import Change
from fewer.models import SparseLinear, open_model, restore, settle, shrink, sites, stored_dtype, swap, widths_of
from fewer.models import settings as widths_said
from fewer.models.hub import VERSION as HUB
from fewer.models.hub import describe

from . import slimming
from .act import Applied
from .formats import find_format
from .steps import VERSION, Recipe, check_version, recipe, to_yaml
from .store import Store
from .walk import Walk

PROBE_TOKENS, PROBE_KEPT = 64, 8
BESIDE = ("tokenizer*", "vocab*", "merges.txt", "special_tokens*", "added_tokens*", "chat_template*", "generation_config.json", "preprocessor_config.json")  # fmt: skip


def save(applied: Applied, out: str | Path, force: bool = False, format: str = "packed") -> Path:
    """Write the model so that `fewer.load(out)`, or transformers after `import fewer`, gives it back.

    `format`: `packed` is what survived and nothing else; `dense` is plain tensors with zeros, which every tool loads and
    which save no byte; `sparse-bitmask` and `sparse-24-bitmask` are those of compressed-tensors up to 0.14. `ValueError`
    if `out` exists and `force` is not given, `LookupError` for an unknown format.
    """
    form = find_format(format)
    if applied.model is None:
        raise ValueError(f"this result is on disk already, at {applied.out}")
    if not form.holds_bias and (given := next((n for n, s in applied.stored.items() if _new_bias(s)), None)):
        raise ValueError(f"{given} was given a bias, which {form.name!r} has no place for: save as 'packed'")
    model = applied.model
    store = Store(out, key="whole", force=force)
    touched = [s for step in applied.steps for s in sites(model, step.where)]
    modules, kept = form.modules(model, touched, applied.stored), slimming.kept(applied.stored)
    with shrunk(model, kept), swapped(model, modules):
        tensors, told = form.encode(tensors_of(model, modules, stored_dtype(model)), touched)
        told |= describe(model)["sites"]
    store.tensors("model.safetensors", tensors)
    sparse = form.describe(model, told, zeros(applied.changes))
    widths = widths_of(model) | {name: int(k.sum()) for name, k in kept.items()}
    write_rest(store, model, applied.steps, applied.changes, sparse, widths, source_of(model))
    if (ids := probe_ids(model)) is not None:
        write_probe(store, ids, Walk(model, ids).answer())
    applied.out = store.finish()
    return applied.out


def load(path: str | Path, verify: bool = True, device: str = "cpu") -> nn.Module:
    """Open what `save` or `sparsify` wrote, and check that it answers a stored question as it did then.

    `ValueError`: no such model, a newer format, or a probe that comes out differently.
    """
    where = Path(path)
    if (note := where / "fewer.json").is_file():
        check_version(json.loads(note.read_text()).get("version"), str(note))
    model, _ = open_model(str(where), device=device)
    if verify and (file := where / "probe.safetensors").is_file():
        probe = load_file(file, device=device)
        _compare(probe["answer"], Walk(model, probe["ids"]).answer()[:, -PROBE_KEPT:], where)
    return model


def _compare(then: Tensor, now: Tensor, where: Path) -> None:
    off = (now.float() - then.float()).norm() / then.float().norm()
    allowed = max(1e-3, 4 * torch.finfo(then.dtype).eps)  # it may have been asked in bfloat16, and be opened in float32
    if not off <= allowed:
        raise ValueError(
            f"{where} does not answer as it did when it was saved (off by {off:.1e} of the answer's length, "
            f"{allowed:.0e} is allowed): its files were changed or damaged; load(..., verify=False) opens it all the same"
        )


def recipe_of(path: str | Path) -> Recipe:
    """The steps that made a saved model."""
    import yaml

    note = json.loads((Path(path) / "fewer.json").read_text())
    return recipe(yaml.safe_load(note["recipe"])["steps"])


def probe_ids(model: nn.Module) -> Tensor | None:
    """A fixed question: some token ids, the same ones for the same vocabulary; None for what reads no tokens."""
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if size is None:
        return None
    return torch.randint(size, (1, min(PROBE_TOKENS, _context(model))), generator=torch.Generator().manual_seed(0))


def _context(model: nn.Module) -> int:
    return getattr(model.config, "max_position_embeddings", None) or PROBE_TOKENS


def write_probe(store: Store, ids: Tensor, answer: Tensor) -> None:
    store.tensors("probe.safetensors", {"ids": ids, "answer": answer[:, -PROBE_KEPT:]})


def _new_bias(stored: Any) -> bool:
    return getattr(stored, "bias", None) is not None


def write_rest(
    store: Store,
    model: nn.Module,
    steps: Recipe,
    changes: list[Change],
    sparse: dict[str, Any],
    widths: dict[str, int],
    source: Path | None,
) -> None:
    """Everything but weights: configuration, the recipe and what it did, the tokenizer. `widths` are those of slimmed groups."""
    plain, widths = widths_said(model, widths)
    settings = model.config.to_dict() | plain | {"dtype": str(stored_dtype(model)).removeprefix("torch.")}
    settings |= {"architectures": settings.get("architectures") or [type(model).__name__]}
    settings.pop("quantization_config", None)
    if widths or sparse:
        settings["quantization_config"] = (sparse or {"quant_method": "fewer", "version": HUB, "sites": {}}) | (
            {"widths": widths} if widths else {}
        )
    store.text("config.json", json.dumps(settings, indent=2, default=str))
    note = {"version": VERSION, "recipe": to_yaml(steps), "changes": [asdict(c) for c in changes]}
    store.text("fewer.json", json.dumps(note, indent=1))
    for file in sorted({f for pattern in BESIDE for f in source.glob(pattern)}) if source else ():
        shutil.copyfile(file, store.path(file.name))


def zeros(changes: Sequence[Change]) -> float:
    """The share of the touched weights that is zero now."""
    sizes = [c.bytes_before for c in changes]
    kept = sum(c.kept * size for c, size in zip(changes, sizes, strict=True))
    return 1 - kept / max(sum(sizes), 1)


def source_of(model: nn.Module) -> Path | None:
    """The directory that a model was opened from, if it is one here."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    return Path(name) if name and Path(name).is_dir() else None


def tensors_of(module: nn.Module, modules: Mapping[str, SparseLinear], dtype: torch.dtype) -> dict[str, Tensor]:
    """A module's state, tied tensors once, plain floats in `dtype`; what packed modules hold stays as it is."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) in seen:
            continue
        seen.add(id(value))
        inside = any(name.startswith(f"{m}.") for m in modules)
        out[name] = value if inside or not value.is_floating_point() else value.to(dtype)
    return out


@contextlib.contextmanager
def shrunk(model: nn.Module, kept: Mapping[str, Tensor]) -> Iterator[None]:
    """Without the units that left, for a while."""
    back = shrink(model, kept)
    try:
        yield
    finally:
        back()


def slimmed(applied: Applied) -> None:
    """Take the units that left out of the model for good; its configuration says so as far as it can."""
    if (kept := slimming.kept(applied.stored)) and applied.model is not None:
        shrink(applied.model, kept)
        settle(applied.model, {name: int(keep.sum()) for name, keep in kept.items()})
        applied.stored = {name: stored for name, stored in applied.stored.items() if name not in kept}


@contextlib.contextmanager
def swapped(model: nn.Module, modules: Mapping[str, SparseLinear]) -> Iterator[None]:
    """The packed modules in place, for a while."""
    before = swap(model, modules)
    try:
        yield
    finally:
        restore(model, before)
