"""What a method says of itself, read from its source: listing a hundred methods imports none of them."""

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fewer import core
from fewer.core import Paper, offered


@dataclass(frozen=True)
class Card:
    """The line of a method in a list."""

    name: str
    kind: str  # what it is to its axis: pruner, corrector, router ...
    rule: str
    paper: Paper | None

    def as_dict(self) -> dict[str, str | int | None]:
        paper = self.paper
        known = {"year": paper.year, "paper": paper.title, "url": paper.url, "ledger": paper.ledger} if paper else {}
        return {"name": self.name, "kind": self.kind, "rule": self.rule, **known}


def card(name: str) -> Card:
    """The card of `weights/wanda`."""
    axis = name.partition("/")[0]
    for node in _classes(_source(name)).values():
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "method":
                rule = (ast.get_docstring(node) or "").partition("\n")[0]
                return Card(name, _kind(node, axis), rule, _paper(mark, _constants(_source(name))))
    return Card(name, "", "", None)


def _source(name: str) -> Path:
    """The file of a method, ours or another package's; found without importing it."""
    axis, _, file = name.partition("/")
    if entry := offered().get(name):
        spec = importlib.util.find_spec(entry.module)
        return Path(spec.origin if spec and spec.origin else "")
    spec = importlib.util.find_spec(f"fewer.{axis}")
    assert spec and spec.submodule_search_locations, f"{axis} is no room"
    return Path(spec.submodule_search_locations[0]) / f"{file}.py"


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(path).body if isinstance(node, ast.ClassDef)}


def _constants(path: Path) -> dict[str, ast.expr]:
    """Names that stand for a value at the top of the file, such as a long title."""
    plain = (node for node in _tree(path).body if isinstance(node, ast.Assign) and len(node.targets) == 1)
    return {node.targets[0].id: node.value for node in plain if isinstance(node.targets[0], ast.Name)}


def _paper(mark: ast.Call, constants: dict[str, ast.expr]) -> Paper | None:
    def value(node: ast.expr) -> object:
        return ast.literal_eval(constants.get(node.id, node) if isinstance(node, ast.Name) else node)

    try:
        call = mark.args[0]
        if isinstance(call, ast.Name):  # of a paper that many methods share
            return getattr(core, call.id, None)
        assert isinstance(call, ast.Call)
        return Paper(*map(value, call.args), **{k.arg: value(k.value) for k in call.keywords if k.arg})  # type: ignore[arg-type]
    except (ValueError, IndexError, AssertionError, TypeError):
        return None  # a paper that is computed; `fewer show` imports the method and knows


def _kind(node: ast.ClassDef, axis: str) -> str:
    """The abstract class right under `Method` that the method is: `ByScore` is a `Pruner`."""
    spec = importlib.util.find_spec(f"fewer.{axis}")
    assert spec and spec.submodule_search_locations
    home = Path(spec.submodule_search_locations[0])
    protocol = {k: v for f in sorted(home.glob("_*.py")) for k, v in _classes(f).items()}
    while node.bases:
        name = ast.unparse(node.bases[0]).rpartition(".")[2]
        if name == "Method" or name not in protocol:
            break
        node = protocol[name]
    return node.name.lower()
