"""Make a model sparse for good: in memory, or from disk to disk with one block in memory at a time."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fewer.core import Change, budget
from fewer.layout import find_layout
from fewer.models import SparseLinear, blocks, materialise, open_lazily, release, stored_dtype
from fewer.models.foreign import decoded
from fewer.models.hub import describe

from .act import Applied, keep, walk_for
from .engine import Plan, Progress, divide, plan, run
from .formats import Format, find_format
from .save import probe_ids, save, swapped, tensors_of, write_probe, write_rest, zeros
from .steps import VERSION, recipe
from .store import Store, check_place


def sparsify(
    model: nn.Module | str | Path,
    steps: Any,
    data: Tensor | None = None,
    out: str | Path | None = None,
    force: bool = False,
    format: str = "packed",
    progress: Progress | None = None,
) -> Applied:
    """Do the steps for good, and save the result at `out` if that is given.

    A model in memory is changed in place. A directory is read block by block: one block and its statistics are in
    memory at a time, each finished block is on disk, and a killed run goes on where it was. The result appears whole.

    `steps` is whatever `recipe` reads; `data` is `[windows, length]` token ids, needed by methods that ask for
    statistics; `format` is what `save` takes.
    """
    todo, form = recipe(steps), find_format(format)
    if out is not None:
        check_place(out, force)
    if isinstance(model, nn.Module):
        applied = keep(model, plan(model, todo), data, progress)
        if out is not None:
            save(applied, out, force, format)
        return applied
    if out is None:
        raise ValueError("a model on disk needs a place for the result: out='DIRECTORY'")
    lazy = open_lazily(str(model))
    return _Job(lazy, Path(model), plan(lazy, todo), data, Path(out), force, form).do(progress)


class _Job:
    """One model from disk to disk. What a finished block became is two files: its tensors, and a note about them."""

    def __init__(
        self, model: nn.Module, source: Path, todo: Plan, data: Tensor | None, out: Path, force: bool, form: Format
    ):
        self.model, self.todo, self.data, self.form = model, todo, data, form
        self.names = [name for name, _ in blocks(model)]
        self.source, self.dtype = source, stored_dtype(model)
        self.store = Store(out, self._key(), force)
        self.applied = Applied(None, tuple(t.step for t in todo.tasks))

    def do(self, progress: Progress | None) -> Applied:
        walk = walk_for(self.model, self.todo, self.data, self._hold)
        self._budgets(walk, progress)
        run(walk, self.todo, self._done, progress, self._skip)
        self._probe()
        self._finish()
        return self.applied

    def _probe(self) -> None:
        """Ask the finished blocks, one by one, what the saved model must answer."""
        if (ids := probe_ids(self.model)) is None:
            return
        walk = walk_for(self.model, self.todo, ids, self._hold_sparse)
        for number in range(len(self.names)):
            with walk.on(number):
                walk.advance(number)
        write_probe(self.store, ids, walk.answer())

    def _budgets(self, walk: Any, progress: Progress | None) -> None:
        """Divide budgets over the model once; a resumed run reads what was divided."""
        if self.store.has("budgets.json"):
            rows = json.loads(self.store.path("budgets.json").read_text())
            self.todo.budgets = {(i, name): budget(text) for i, name, text in rows}
            return
        divide(walk, self.todo, progress)
        self.store.text("budgets.json", json.dumps([(i, n, str(b)) for (i, n), b in self.todo.budgets.items()]))

    @contextlib.contextmanager
    def _hold(self, block: str) -> Iterator[None]:
        if not block:
            yield
            return
        materialise(self.model, block)
        try:
            yield
        finally:
            release(self.model, block)

    @contextlib.contextmanager
    def _hold_sparse(self, block: str) -> Iterator[None]:
        with self._hold(block):
            self._skip(block)
            yield

    def _files(self, block: str) -> tuple[str, str]:
        number = self.names.index(block) + 1 if block else len(self.names) + 1
        return f"model-{number:05d}-of-{len(self.names) + 1:05d}.safetensors", f"block-{number:05d}.json"

    def _done(self, block: str, results: list[tuple[Change, Any]]) -> None:
        self.applied.done(block, results)
        found = [s for t in self.todo.tasks for s in t.sites]
        stored = {change.site: stored for change, stored in results}
        modules = self.form.modules(self.model, found, stored)
        inside = {n: m for n, m in modules.items() if n.startswith(f"{block}.")} if block else modules
        shard, note = self._files(block)
        with swapped(self.model, inside):
            told = describe(self.model)["sites"]
            if block:
                home = self.model.get_submodule(block)
                local = {n.removeprefix(f"{block}."): m for n, m in inside.items()}
                tensors = _under(block, tensors_of(home, local, self.dtype))
            else:
                tensors = self._outside(inside)
        tensors, more = self.form.encode(tensors, found)
        told |= more
        self.store.tensors(shard, tensors)
        rows = [asdict(change) for change, _ in results]
        self.store.text(note, json.dumps({"changes": rows, "described": told}))
        for row in rows:
            self.store.append("log.jsonl", row)
        self.applied.stored.clear()  # it is on disk now

    def _outside(self, modules: dict[str, SparseLinear]) -> dict[str, Tensor]:
        """What lies in no block: embeddings, norms, the head."""
        inside = tuple(f"{name}." for name in self.names)
        return {k: v for k, v in tensors_of(self.model, modules, self.dtype).items() if not k.startswith(inside)}

    def _skip(self, block: str) -> bool:
        """Put what an earlier run made of the block in place; False if there is no such thing."""
        shard, note = self._files(block)
        if not block or not self.store.has(note):
            return False
        tensors = decoded(load_file(self.store.path(shard)))
        for name, told in self._note(block)["described"].items():
            if not told:
                continue  # another tool's way, decoded above
            fields = {k: tensors.pop(k) for k in list(tensors) if k.startswith(f"{name}.")}
            _put(self.model.get_submodule(name), {k.removeprefix(f"{name}."): v for k, v in fields.items()}, told)
        plain = {k.removeprefix(f"{block}."): v for k, v in tensors.items()}
        self.model.get_submodule(block).load_state_dict(plain, strict=False)
        return True

    def _note(self, block: str) -> dict[str, Any]:
        return json.loads(self.store.path(self._files(block)[1]).read_text())

    def _finish(self) -> None:
        """The rest of the weights, the index, the configuration; then the whole takes its place."""
        if not self.store.has(self._files("")[1]):
            self.store.tensors(self._files("")[0], self._outside({}))
        self._index()
        notes = [self._note(block) for block in [*self.names, ""] if self.store.has(self._files(block)[1])]
        changes = [Change(**row) for note in notes for row in note["changes"]]
        told = {name: site for n in notes for name, site in n["described"].items()}
        sparse = self.form.describe(self.model, told, zeros(changes))
        write_rest(self.store, self.model, self.applied.steps, changes, sparse, self.source)
        for file in (*self.store.partial.glob("block-*.json"), self.store.path("budgets.json")):
            file.unlink()
        self.applied.changes, self.applied.out = changes, self.store.finish()

    def _index(self) -> None:
        weight_map: dict[str, str] = {}
        for file in sorted(self.store.partial.glob("model-*.safetensors")):
            with safe_open(file, "pt") as opened:
                weight_map |= dict.fromkeys(opened.keys(), file.name)
        total = sum(f.stat().st_size for f in self.store.partial.glob("model-*.safetensors"))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        self.store.text("model.safetensors.index.json", json.dumps(index, indent=1))

    def _key(self) -> str:
        """Which job this is: a run with another model, recipe or data does not go on with its leavings."""
        told = hashlib.sha256(f"{VERSION} {self.form.name}".encode())
        for file in (*sorted(self.source.glob("*.safetensors")), self.source / "config.json"):
            told.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
        told.update("\n".join(str(t.step) for t in self.todo.tasks).encode())
        if self.data is not None:
            told.update(self.data.cpu().numpy().tobytes())
        return told.hexdigest()


def _under(block: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{block}.{name}": value for name, value in tensors.items()}


def _put(module: nn.Module, fields: dict[str, Tensor], told: dict[str, Any]) -> None:
    """Unpack what was stored of a map into the dense module that is in place while the engine walks."""
    kind = find_layout(told["layout"])
    low = [fields.pop(name) for name in ("left", "right") if name in fields]
    bias = fields.pop("bias", None)
    weight = kind.restore(fields, told["numbers"]).dense()
    weight = weight.float() + low[0].float() @ low[1].float() if low else weight
    module.weight.data.copy_(weight.mT if type(module).__name__ == "Conv1D" else weight)
    if bias is not None:
        module.bias.data.copy_(bias)
