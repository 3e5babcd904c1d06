"""The house rules that a machine can keep."""

import ast
import pathlib

import pytest

import fewer
from fewer.core import axes

ROOT = pathlib.Path(fewer.__file__).parent
#        who               may import
FLOORS = [
    {"core"},
    {"layout"},
    {"kernels"},
    {"select", "calibrate", "data"},
    set(axes()),
    {"testing"},
    {"models", "measure"},
    {"recipe", "train"},
    {"report"},
    {"cli"},
]
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(ROOT.rglob("*.py"))
ids = [str(p.relative_to(ROOT)) for p in FILES]


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_go_down(path):
    here = room(path)
    if here == "__init__":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else ([node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else [])
        )
        assert getattr(node, "level", 0) < 2, "a relative import may not leave the room"
        for name in names:
            parts = name.split(".")
            if parts[0] == "fewer" and len(parts) > 1 and parts[1] != here:
                assert FLOOR[parts[1]] < FLOOR[here], f"{here} is on floor {FLOOR[here]} and imports {name}"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{node.name} is longer than a screen"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_says_what_it_is(path):
    if path.read_text().strip() and path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text())), "begin with one line that says what this file is"


def test_importing_fewer_is_light():
    import subprocess
    import sys

    out = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, fewer; print([m for m in sys.modules if m in ('torch', 'triton', 'numba', 'transformers')])",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
    )
    assert out.stdout.strip() == "[]", out
