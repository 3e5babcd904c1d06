"""Make a model sparse for good: in memory, or from disk to disk with one block in memory at a time."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fewer.calibrate import ALONE, Crew
from fewer.core import Change, budget
from fewer.layout import find_layout, put_around
from fewer.models import SparseLinear, blocks, locate, materialise, open_lazily, release, stored_dtype, widths_of
from fewer.models.foreign import decoded
from fewer.models.hub import describe
from fewer.models.loss import Loss
from fewer.models.slim import resize

from . import slimming
from .act import Applied, keep, walk_for
from .engine import Progress, divide, run
from .formats import Format, find_format
from .planning import Plan, plan
from .save import probe_ids, save, shrunk, slimmed, swapped, tensors_of, write_probe, write_rest, zeros
from .steps import VERSION, Recipe, recipe
from .store import Store, check_place
from .walk import Device, Walk


def sparsify(
    model: nn.Module | str | Path,
    steps: Any,
    data: Tensor | None = None,
    out: str | Path | None = None,
    force: bool = False,
    format: str = "packed",
    progress: Progress | None = None,
    device: Device = None,
    loss: Loss | None = None,
) -> Applied:
    """Do the steps for good, and save the result at `out` if that is given.

    A model in memory is changed in place. A directory is read block by block: one block and its statistics are in
    memory at a time, each finished block is on disk, and a killed run goes on where it was. The result appears whole.

    `steps` is whatever `recipe` reads; `data` is `[windows, length]` token ids, needed by methods that ask for
    statistics; `format` is what `save` takes. Blocks are brought to `device` one at
    a time, and back. `loss(answer, data)`, a mean over windows, is what gradients are taken of; a language model has its
    own. In a process group (torchrun) the windows and the maps of a block are shared out, and the first process writes.
    """
    todo, form, crew = recipe(steps), find_format(format), Crew.here()
    if out is not None:
        crew.first(lambda: check_place(out, force))
    if isinstance(model, nn.Module):
        applied = keep(model, _plan(model, todo, form), data, progress, device, loss)
        slimmed(applied)
        if out is not None:
            applied.out = crew.first(lambda: save(applied, out, force, format))
        return applied
    if out is None:
        raise ValueError("a model on disk needs a place for the result: out='DIRECTORY'")
    lazy = open_lazily(str(model))
    job = _Job(lazy, Path(locate(model)), _plan(lazy, todo, form), data, Path(out), force, form, crew)
    return job.do(progress, device, loss)


def _plan(model: nn.Module, todo: Recipe, form: Format) -> Plan:
    """What will be done, and can be written: not every format has a place for all that a step may leave."""
    found = plan(model, todo)
    for task in found.tasks:
        if task.groups and not form.holds_widths:
            raise ValueError(
                f"'{task.step}' makes layers narrower, which {form.name!r} cannot say: write 'packed' or 'dense'"
            )
        giving = next((c for c in task.step.correctors if c.gives_bias), None)  # type: ignore[attr-defined]
        site = next((s for s in task.sites if s.bias is None), None)
        if giving and site and not form.holds_bias:
            raise ValueError(
                f"{site.name} has no bias, and {form.name!r} has no place for the one that {giving.name} would give it: "
                "save as 'packed', or leave it out"
            )
    return found


class _Job:
    """One model from disk to disk. What a finished block became is two files: its tensors, and a note about them."""

    def __init__(
        self,
        model: nn.Module,
        source: Path,
        todo: Plan,
        data: Tensor | None,
        out: Path,
        force: bool,
        form: Format,
        crew: Crew,
    ):
        self.model, self.todo, self.data, self.form, self.crew = model, todo, data, form, crew
        self.names = [name for name, _ in blocks(model)]
        self.source, self.dtype = source, stored_dtype(model)
        self.store = crew.first(lambda: Store(out, self._key(), force))  # on one disk that all processes see
        self.narrow: list[Callable[[], None]] = []  # what gives the block at hand its own sizes back
        self.applied = Applied(None, tuple(t.step for t in todo.tasks))

    def do(self, progress: Progress | None, device: Device, loss: Loss | None) -> Applied:
        with walk_for(self.model, self.todo, self.data, self._hold, device, loss) as walk:
            self._budgets(walk, progress)
            run(walk, self.todo, self._done, progress, lambda block: self._skip(block, self.crew))
        self.applied.changes, self.applied.out = self.crew.first(self._finish)
        return self.applied

    def _probe(self) -> None:
        """Ask the finished blocks, one by one, what the saved model must answer."""
        if (ids := probe_ids(self.model)) is None:
            return
        walk = Walk(self.model, ids, hold=self._hold_sparse)
        for number in range(len(self.names)):
            with walk.on(number):
                walk.advance(number)
        write_probe(self.store, ids, walk.answer())

    def _budgets(self, walk: Any, progress: Progress | None) -> None:
        """Divide budgets over the model once; a resumed run reads what was divided."""
        if self.crew.first(lambda: self.store.has("budgets.json")):
            rows = json.loads(self.store.path("budgets.json").read_text())
            self.todo.budgets = {(i, name): budget(text) for i, name, text in rows}
            return
        divide(walk, self.todo, progress)
        rows = [(i, name, str(b)) for (i, name), b in self.todo.budgets.items()]
        self.crew.first(lambda: self.store.text("budgets.json", json.dumps(rows)))

    @contextlib.contextmanager
    def _hold(self, block: str) -> Iterator[None]:
        if not block:
            yield
            return
        materialise(self.model, block)
        try:
            yield
        finally:
            while self.narrow:
                self.narrow.pop()()
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
        self.crew.first(lambda: self._write(block, results))

    def _write(self, block: str, results: list[tuple[Change, Any]]) -> None:
        self.applied.done(block, results)
        found = [s for t in self.todo.tasks for s in t.sites]
        stored = {change.site: stored for change, stored in results}
        modules = self.form.modules(self.model, found, stored)
        inside = {n: m for n, m in modules.items() if n.startswith(f"{block}.")} if block else modules
        shard, note = self._files(block)
        kept = slimming.kept(stored)
        with shrunk(self.model, kept), swapped(self.model, inside):
            told = describe(self.model)["sites"]
            if block:
                home = self.model.get_submodule(block)
                local = {n.removeprefix(f"{block}."): m for n, m in inside.items()}
                tensors = _under(block, tensors_of(home, local, self.dtype))
            else:
                tensors = self._outside(inside)
        tensors, more = self.form.encode(tensors, found)
        described = {"sites": told | more, "widths": {n: int(k.sum()) for n, k in kept.items()}}
        self.store.tensors(shard, tensors)
        rows = [asdict(change) for change, _ in results]
        self.store.text(note, json.dumps({"changes": rows, "described": described}))
        for row in rows:
            self.store.append("log.jsonl", row)
        self.applied.stored.clear()  # it is on disk now

    def _outside(self, modules: dict[str, SparseLinear]) -> dict[str, Tensor]:
        """What lies in no block: embeddings, norms, the head."""
        inside = tuple(f"{name}." for name in self.names)
        return {k: v for k, v in tensors_of(self.model, modules, self.dtype).items() if not k.startswith(inside)}

    def _skip(self, block: str, crew: Crew = ALONE) -> bool:
        """Put what an earlier run made of the block in place; False if there is no such thing."""
        shard, note = self._files(block)
        if not block or not crew.first(lambda: self.store.has(note)):
            return False
        tensors, described = decoded(load_file(self.store.path(shard))), self._note(block)["described"]
        self.narrow.append(resize(self.model, described["widths"]))
        for name, told in described["sites"].items():
            if not told:
                continue  # another tool's way, decoded above
            fields = {k: tensors.pop(k) for k in list(tensors) if k.startswith(f"{name}.")}
            _put(self.model.get_submodule(name), {k.removeprefix(f"{name}."): v for k, v in fields.items()}, told)
        plain = {k.removeprefix(f"{block}."): v for k, v in tensors.items()}
        self.model.get_submodule(block).load_state_dict(plain, strict=False)
        return True

    def _note(self, block: str) -> dict[str, Any]:
        return json.loads(self.store.path(self._files(block)[1]).read_text())

    def _finish(self) -> tuple[list[Change], Path]:
        """The probe, the rest of the weights, the index, the configuration; then the whole takes its place."""
        self._probe()
        if not self.store.has(self._files("")[1]):
            self.store.tensors(self._files("")[0], self._outside({}))
        self._index()
        notes = [self._note(block) for block in [*self.names, ""] if self.store.has(self._files(block)[1])]
        changes = [Change(**row) for note in notes for row in note["changes"]]
        told, widths = ({k: v for n in notes for k, v in n["described"][key].items()} for key in ("sites", "widths"))
        sparse, widths = self.form.describe(self.model, told, zeros(changes)), widths_of(self.model) | widths
        write_rest(self.store, self.model, self.applied.steps, changes, sparse, widths, self.source)
        for file in (*self.store.partial.glob("block-*.json"), self.store.path("budgets.json")):
            file.unlink()
        return changes, self.store.finish()

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
        for learnt in (f for t in self.todo.tasks for f in getattr(t.step.method, "files", ())):
            told.update(learnt.read_bytes())
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
    around = [fields.pop(name).float() for name in ("outer", "inner") if name in fields]
    weight = kind.restore(fields, told["numbers"]).dense()
    weight = put_around(weight.float(), *around) if around else weight
    weight = weight.float() + low[0].float() @ low[1].float() if low else weight
    module.weight.data.copy_(weight.mT if type(module).__name__ == "Conv1D" else weight)
    if bias is not None and module.bias is None:  # it was given one
        module.bias = nn.Parameter(bias.clone(), requires_grad=False)
    elif bias is not None:
        module.bias.data.copy_(bias)
