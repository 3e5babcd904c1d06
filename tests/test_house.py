"""The house rules that a machine can keep; the floors are the table in tools/floors.py."""

import ast
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fewer.core import axes, find, methods
from tools.floors import AXES, FLOOR, FLOORS, NARROW, SOURCE, room

ROOT = SOURCE.parents[1]
FILES = sorted(p for p in SOURCE.rglob("*.py"))
OURS = FILES + sorted(p for folder in ("tests", "tools", "bench", "claims") for p in (ROOT / folder).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in OURS}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

HEAVY = ("torch", "transformers", "numba", "triton", "scipy", "altair", "ray")
VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "config", "misc", "base_utils"}
UNSAID = re.compile("sparsity|ratio(?!n)|compression")  # True means kept; a budget says how much may stay
BY_NAME = {  # where a module is found by its name, so that nothing has to be listed by hand
    "__init__.py",
    "core/method.py",
    "kernels/_describe.py",
    "kernels/_dispatch.py",
    "layout/_base.py",
    "recipe/engine.py",
    "recipe/planning.py",
    "recipe/slimming.py",
    "testing/__init__.py",
}


def short(path: pathlib.Path) -> str:
    base = SOURCE if path.is_relative_to(SOURCE) else ROOT
    return path.relative_to(base).as_posix()


def imported(path: pathlib.Path) -> Iterator[tuple[int, int, str]]:
    """(line, level, dotted name) of everything the file imports, inside functions and for type checkers too."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, node.level, node.module or ""
        elif isinstance(node, ast.ImportFrom) and node.module == "fewer":
            yield from ((node.lineno, 0, f"fewer.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, 0, node.module or ""


def public(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public functions, and the public methods (and constructors) of public classes."""
    for node in tree.body:
        if isinstance(node, FUNCTIONS) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for part in node.body:
                if isinstance(part, FUNCTIONS) and (part.name == "__init__" or not part.name.startswith("_")):
                    yield f"{node.name}.{part.name}", part


def screen(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, its docstring apart: to explain more must never look like more code."""
    said = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
    return node.end_lineno - node.lineno + 1 - said


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def none(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


def test_every_room_has_a_floor_and_every_axis_the_same_one():
    rooms = {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    none([f"src/fewer/{name}/ is on no floor of tools/floors.py" for name in sorted(rooms - FLOOR.keys())])
    assert axes() == AXES and len({FLOOR[axis] for axis in AXES}) == 1
    assert sum(map(len, FLOORS)) == len(FLOOR), "a room lives on two floors"


def test_imports_go_down():
    faults = []
    for path in FILES:
        here = room(path)
        for line, level, name in imported(path):
            parts = name.split(".")
            if level or parts[0] != "fewer" or parts[1:] in ([], ["__version__"]) or parts[1] == here:
                continue
            there = parts[1] if parts[1] in FLOOR else "__init__"  # a name of the face itself
            if FLOOR[there] >= FLOOR[here] or there not in NARROW.get(here, {there}):
                where = f"{short(path)}:{line}"
                faults.append(f"{where}: {here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})")
    none(faults)


def test_relative_imports_stay_in_their_room():
    none(
        [
            f"{short(path)}:{line}: write the absolute name"
            for path in FILES
            for line, level, _ in imported(path)
            if level > 1 or (level == 1 and path.parent == SOURCE)
        ]
    )


def test_files_and_functions_fit_the_eye():
    faults = []
    for path in OURS:
        most = 500 if path.is_relative_to(ROOT / "tests") else 300
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > most:
            faults.append(f"{short(path)}: {n} lines, at most {most}")
        for node in ast.walk(TREES[path]):
            if isinstance(node, FUNCTIONS) and (n := screen(node)) > 50:
                faults.append(f"{short(path)}:{node.lineno}: {node.name} has {n} lines, at most 50")
    none(faults)


def test_every_file_begins_by_saying_what_it_is():
    none([f"{short(path)}: no docstring" for path in OURS if not ast.get_docstring(TREES[path])])


def test_no_module_has_a_vague_name():
    none([short(p) for p in OURS if VAGUE & {part.removesuffix(".py").strip("_") for part in p.parts[-3:]}])


@pytest.mark.parametrize("low", ["core", "select", "layout"])
def test_what_the_lowest_rooms_offer_is_explained(low):
    offered = {a.asname for node in TREES[SOURCE / low / "__init__.py"].body for a in getattr(node, "names", ())}
    faults = []
    for path in sorted((SOURCE / low).glob("*.py")):
        for node in TREES[path].body:
            named = isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")
            if named and (node.name in offered or path.stem[0] != "_") and not ast.get_docstring(node):
                faults.append(f"{short(path)}:{node.lineno}: {node.name} has no docstring")
    none(faults)


def test_modules_are_found_by_name_only_where_it_is_said():
    found = {
        short(path)
        for path in FILES
        for node in ast.walk(TREES[path])
        if called(node) in ("importlib.import_module", "import_module", "__import__")
    }
    none([f"{path}: finds modules by name; if it must, say so in BY_NAME" for path in sorted(found - BY_NAME)])
    none([f"{path}: finds no module by name any more; strike it from BY_NAME" for path in sorted(BY_NAME - found)])


def test_nothing_is_unpickled():
    faults = []
    for path in OURS:
        for node in ast.walk(TREES[path]):
            safe = isinstance(node, ast.Call) and any(
                k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords
            )
            if called(node) in ("pickle.load", "pickle.loads") or (called(node) == "torch.load" and not safe):
                faults.append(f"{short(path)}:{node.lineno}: loading this file would run whatever is in it")
    none(faults)


def test_public_signatures_speak_our_words_and_name_every_argument():
    faults = []
    for path in FILES:
        for name, node in public(TREES[path]):
            where, a = f"{short(path)}:{node.lineno}: {name}", node.args
            if a.kwarg:
                faults.append(f"{where} takes **{a.kwarg.arg}: name its arguments")
            for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs):
                if UNSAID.search(arg.arg):
                    faults.append(f"{where} says {arg.arg!r}: a budget says what is kept")
    none(faults)


@pytest.mark.parametrize("axis", AXES)
def test_a_method_file_holds_one_method_and_is_called_like_it(axis):
    for path in sorted((SOURCE / axis).glob("*.py")):
        classes = [
            node.name
            for node in TREES[path].body
            if isinstance(node, ast.ClassDef) and any(called(d) == "method" for d in node.decorator_list)
        ]
        if path.stem.startswith("_"):
            assert not classes, f"{short(path)}: a method's file has its name, without an underscore"
        else:
            expected = path.stem.replace("_", "").lower()
            assert [c.lower() for c in classes] == [expected], f"{short(path)}: one method, named like the file"
    assert f"{axis}/random" in methods(axis), f"{axis}: no control for the others to beat"
    for name in methods(axis):
        cls = find(name)
        assert cls.name == name and cls.__module__ == f"fewer.{name.replace('/', '.')}"


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_has_one_verb(axis):
    protocol = importlib.import_module(f"fewer.{axis}._protocol")
    ours = [c for c in vars(protocol).values() if inspect.isclass(c) and c.__module__ == protocol.__name__]
    assert any(inspect.isabstract(c) for c in ours), "an axis is an abstract method"


def loaded_by(code: str) -> str:
    """What of the heavy libraries is loaded after running `code` in a fresh interpreter."""
    report = f"\nimport sys\nprint('loaded:', *[m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, cwd=SOURCE.parent)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def test_importing_fewer_loads_nothing_heavy():
    assert loaded_by("import fewer\nassert 'sparsify' in dir(fewer)") == "loaded:"


def test_listing_methods_loads_nothing_heavy():
    code = "import sys\nfrom fewer.cli import main\ntry:\n    main(['methods'])\nexcept SystemExit as e:\n    assert not e.code"
    assert loaded_by(code) == "loaded:"
