"""How long the house is: `python -m tools.lines` counts lines of code by floor and room; `--json` for programs.

Blank lines, comments and docstrings are counted apart: to explain more must never look like more code.
"""

import ast
import collections
import io
import json
import pathlib
import sys
import tokenize

from .floors import FLOORS, SOURCE, room

Count = collections.Counter[str]
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def count(path: pathlib.Path) -> Count:
    """Files, all lines, and lines that hold code."""
    text = path.read_text(encoding="utf-8")
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            said = node.body[0]
            code.difference_update(range(said.lineno, (said.end_lineno or said.lineno) + 1))
    return collections.Counter(files=1, lines=len(text.splitlines()), code=len(code))


def by_room() -> dict[str, Count]:
    """The counts of every room under src/fewer."""
    rooms: dict[str, Count] = collections.defaultdict(collections.Counter)
    for path in sorted(SOURCE.rglob("*.py")):
        rooms[room(path)] += count(path)
    return dict(rooms)


def main() -> None:
    """Print one row a room, one sum a floor, then the tests."""
    rooms = by_room()
    tests = sum((count(p) for p in (SOURCE.parents[1] / "tests").rglob("*.py")), collections.Counter())
    if "--json" in sys.argv:
        print(json.dumps({**rooms, "tests": tests}))
        return
    print(f"{'floor':6}{'room':14}{'files':>7}{'lines':>8}{'code':>8}")
    for number, floor in enumerate(FLOORS):
        here = {name: rooms[name] for name in floor if name in rooms}
        for name, n in here.items():
            print(f"{number:<6}{name:14}{n['files']:7}{n['lines']:8}{n['code']:8}")
        if len(here) > 1:
            n = sum(here.values(), collections.Counter())
            print(f"{number:<6}{'':14}{n['files']:7}{n['lines']:8}{n['code']:8}")
    n = sum(rooms.values(), collections.Counter())
    print(f"{'all':6}{'':14}{n['files']:7}{n['lines']:8}{n['code']:8}")
    print(f"{'tests':6}{'':14}{tests['files']:7}{tests['lines']:8}{tests['code']:8}")


if __name__ == "__main__":
    main()
