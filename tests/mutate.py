"""Mutation testing: break one thing in the source at a time, and see whether a test minds.

    python tests/mutate.py                                   # all of core, select, layout and the weights methods
    python tests/mutate.py --only select,weights --jobs 2 --budget-minutes 10
    python tests/mutate.py --only weights/dsnot --list

With a budget, mutants are taken in a fixed random order, so that the score is a fair estimate. Every mutant runs in a
fork of a process that has torch, numba and pytest in memory but nothing of ours: the loader hands it the mutated file.
Mutants that change nothing anybody could observe stand in `mutants.toml`, each with the reason. Exit code 1 if others
survive, 2 if the tests fail on the source as it is.
"""

import argparse
import ast
import copy
import importlib.machinery
import json
import os
import pathlib
import random
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

HERE = pathlib.Path(__file__).parent
SOURCE = HERE.parent / "src" / "fewer"
# What is run for a mutant, in this order, by the longest beginning of its file; `{name}` is the file's stem.
TESTS = {
    "core": ["test_core.py"],
    "select": ["test_select.py -k {name}", "test_select*.py"],
    "select/_select": [
        "test_select.py -k 'not gpu and not thousands and not balanced and not top_p and not reference'"
    ],
    "select/allocate": ["test_select.py test_select_allocate.py -k allocate"],
    "select/balance": ["test_select.py -k balance"],
    "select/gradient": ["test_select.py test_select_soft.py -k 'gradient. or straight or jump or pseudo or gradient]'"],
    "select/joint": ["test_select.py -k 'joint or together'"],
    "select/rules": ["test_select.py -k 'rules or top_p or threshold or mutual'"],
    "select/sample": [
        "test_select.py test_select_soft.py -k 'sample or inclusion or gumbel or seed or drawn or certain or chances'"
    ],
    "select/schedule": ["test_select.py test_select_allocate.py -k 'schedule or curves'"],
    "select/soft": ["test_select_soft.py -k 'max or sparse or alpha or halves or large or exact or length'"],
    "select/spec": ["test_select.py -k spec"],
    "layout": ["test_layout*.py -k {name}", "test_layout*.py -k 'not {name} and not converts'"],
    "layout/_": ["test_layout*.py -k 'documented or bytes or bit'", "test_layout*.py"],
    "layout/_choose": ["test_layout*.py -k 'smallest or converts'"],
    "weights": ["test_weights.py -k {name}", "test_methods.py -k weights/{name}-", "test_weights*.py"],
    "weights/_": ["test_weights*.py", "test_methods.py -k weights"],  # files of the axis itself
}
WARM = (
    "torch",
    "numpy",
    "numba",
    "pytest",
    "_pytest.assertion.rewrite",
    "jaxtyping",
    "beartype",
    "hypothesis",
    "entmax",
)

QUIETLY = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]

COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip
NAMES = {"min": "max", "any": "all", "amin": "amax", "argmin": "argmax", "floor": "ceil"}
NAMES |= {b: a for a, b in NAMES.items()}
SILENT = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)  # what is said, not what is done
EXTRA = ("device", "strict")  # arguments that change nothing where lengths agree and there is one device


@dataclass(frozen=True)
class Mutant:
    """One change: in which file and function, which line of code becomes which."""

    file: str
    where: str
    before: str
    after: str
    line: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.file, self.where, self.before, self.after

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.where}\n  - {self.before}\n  + {self.after}"


def changes(node: ast.AST) -> Iterator[ast.AST | None]:
    """Every way to break this node; None takes a statement away."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield other(node, ops=[*ops[:i], COMPARE[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            yield other(node, op=ARITHMETIC[type(op)]())
        case ast.BoolOp(op=op):
            yield other(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield other(node, value=not value)
        case ast.Constant(value=int() | float() as value):
            yield other(node, value=value + 1)
            if isinstance(value, int) and value > 1:
                yield other(node, value=value - 1)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.UnaryOp):
            yield other(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Attribute(attr=name) if name in NAMES:
            yield other(node, attr=NAMES[name])
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield other(node, id=NAMES[name])
        case ast.Call(keywords=keywords):
            for i in (i for i, k in enumerate(keywords) if k.arg not in EXTRA):
                yield other(node, keywords=keywords[:i] + keywords[i + 1 :])
        case ast.Expr(value=ast.Call()) | ast.Continue() | ast.Break():
            yield None


def other(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    vars(new).update(fields)
    return new


def mutants_of(path: pathlib.Path) -> Iterator[tuple[Mutant, str]]:
    """(mutant, the whole file with it) for each change to code: not to annotations, messages or a method's paper."""
    tree, file = ast.parse(path.read_text()), str(path.relative_to(SOURCE))
    for node, parent, field, place, statement, where in walk(tree, None, "<module>"):
        for new in changes(node):
            old = getattr(parent, field) if place is None else getattr(parent, field)[place]
            before = ast.unparse(statement)
            put(parent, field, place, ast.copy_location(new or ast.Pass(), node))
            ast.fix_missing_locations(tree)
            whole, after = ast.unparse(tree), "pass" if new is None else ast.unparse(statement)
            put(parent, field, place, old)
            pair = zip(before.splitlines(), after.splitlines(), strict=False)
            was, now = next(((a, b) for a, b in pair if a != b), (before, after))
            if was.strip() != now.strip():
                yield Mutant(file, where, was.strip(), now.strip(), node.lineno), whole


def put(parent: ast.AST, field: str, place: int | None, node: ast.AST) -> None:
    setattr(parent, field, node) if place is None else getattr(parent, field).__setitem__(place, node)


def walk(parent: ast.AST, statement: ast.AST | None, where: str) -> Iterator[tuple]:
    """(node, parent, field, place, statement, function) of everything that is code."""
    skip = {"annotation", "returns", "decorator_list", "type_params", "bases", "ctx"}
    for field, value in ast.iter_fields(parent):
        if field in skip:
            continue
        for place, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or isinstance(node, SILENT) or getattr(node, "arg", None) in EXTRA:
                continue
            here = (
                f"{where}.{node.name}".removeprefix("<module>.")
                if hasattr(node, "body") and hasattr(node, "name")
                else where
            )
            own = node if isinstance(node, ast.stmt) else statement
            yield node, parent, field, place, own, here
            yield from walk(node, own, here)


def tests_of(file: str) -> list[list[str]]:
    """Arguments of pytest, run after run."""
    path = file.removesuffix(".py")
    runs = []
    for line in TESTS[max((start for start in TESTS if path.startswith(start)), key=len)]:
        words = shlex.split(line.format(name=path.rpartition("/")[2]))
        options = words[words.index("-k") :] if "-k" in words else []
        if found := sorted({str(p) for word in words[: len(words) - len(options)] for p in HERE.glob(word)}):
            runs.append([*found, *options])
    return runs


def child(path: pathlib.Path, text: str | None) -> int:
    """In a fork: the tests of a file, with its text replaced. 0 if all pass."""
    loader, target = importlib.machinery.SourceFileLoader, str(path)
    get_data, path_stats = loader.get_data, loader.path_stats

    def stats(self, name):
        if name == target:
            raise OSError  # no byte code of the real file is read, and none of the mutant's is kept
        return path_stats(self, name)

    if text is not None:
        loader.get_data = lambda self, name: text.encode() if name == target else get_data(self, name)
        loader.path_stats = stats
    import pytest
    from hypothesis import Phase, settings

    # the first example that fails is enough: nobody reads a smaller one
    settings.register_profile("mutants", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("mutants")
    for run in tests_of(str(path.relative_to(SOURCE))):
        if (code := pytest.main([*QUIETLY, *run])) not in (0, 5):  # 5: no test has that name
            return int(code)
    return 0


def start(path: pathlib.Path, text: str | None) -> int:
    """Fork a child and give its process number."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        os.setsid()
        code = child(path, text)
    finally:
        os._exit(code)


def result(pid: int, until: float) -> str | None:
    """None while it runs; else how it ended."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
    if time.monotonic() > until:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "killed"  # it does not end: noticed
    return None


def seconds_of_tests(path: pathlib.Path) -> float:
    """How long the tests take on the source as it is; stops everything if they fail."""
    begin, pid = time.monotonic(), start(path, None)
    while (end := result(pid, begin + 1200)) is None:
        time.sleep(0.05)
    if end != "survived":
        sys.exit(
            f"{path.relative_to(SOURCE)}: its tests fail without any mutant: {tests_of(str(path.relative_to(SOURCE)))}"
        )
    return time.monotonic() - begin


def run(todo: list[tuple[Mutant, str]], jobs: int, minutes: float) -> dict[Mutant, str]:
    """Try mutants in turn, `jobs` at a time, until all are done or time is up."""
    ends, running, usual, stop = {}, {}, {}, time.monotonic() + 60 * minutes
    todo = todo[::-1]
    while todo or running:
        while todo and len(running) < jobs and time.monotonic() < stop:
            mutant, text = todo.pop()
            path, key = SOURCE / mutant.file, str(tests_of(mutant.file))
            if key not in usual:
                usual[key] = seconds_of_tests(path)
            running[start(path, text)] = (mutant, time.monotonic() + 10 + 5 * jobs * usual[key])
        for pid, (mutant, until) in list(running.items()):
            if end := result(pid, until):
                del running[pid]
                ends[mutant] = end
                if end == "survived":
                    print(mutant, flush=True)
        if not running and time.monotonic() >= stop:
            break
        time.sleep(0.02)
    return ends


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ask.add_argument("--only", default="core,select,layout,weights", help="rooms or files: select,weights/dsnot")
    ask.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    ask.add_argument("--budget-minutes", type=float, default=1e6)
    ask.add_argument("--again", action="store_true", help="only those that survived the last time, as `--out` has it")
    ask.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    ask.add_argument("--out", type=pathlib.Path, default=HERE.parent / "build" / "mutants.json")
    asked = ask.parse_args()
    files = [p for p in sorted(SOURCE.rglob("*.py")) if p.name != "__init__.py"]
    wanted = tuple(asked.only.split(","))
    found = [m for p in files if str(p.relative_to(SOURCE)).startswith(wanted) for m in mutants_of(p)]
    if asked.list:
        print(*(m for m, _ in found), sep="\n")
        return 0
    known = tomllib.loads((HERE / "mutants.toml").read_text()).get("equivalent", [])
    equal = [(e["file"], e["where"], e["before"], e["after"]) for e in known]
    todo = [(m, text) for m, text in found if m.key not in equal]
    random.Random(0).shuffle(todo)
    unseen = len(found) - len(todo)
    if asked.again:
        last = {(m["file"], m["where"], m["before"], m["after"]) for m in survivors(asked.out)}
        todo = [(m, text) for m, text in todo if m.key in last]
    for name in WARM:
        importlib.import_module(name)
    sys.path[:0] = [str(SOURCE.parent), str(HERE)]
    ends = run(todo, asked.jobs, asked.budget_minutes)
    return report(ends, len(found), unseen, asked.out)


def survivors(out: pathlib.Path) -> list[dict]:
    return [m for m in json.loads(out.read_text()) if m["end"] == "survived"]


def report(ends: dict[Mutant, str], found: int, equal: int, out: pathlib.Path) -> int:
    rooms: dict[str, list[str]] = {}
    for mutant, end in ends.items():
        rooms.setdefault(mutant.file.partition("/")[0], []).append(end)
    for room, all_ in sorted([*rooms.items(), ("all", list(ends.values()))], key=lambda r: r[0] == "all"):
        killed = all_.count("killed")
        print(f"{room:10} {killed:5} of {len(all_):5} killed  {killed / max(1, len(all_)):6.1%}")
    print(f"{found} mutants, {equal} of them known to change nothing, {found - equal - len(ends)} not tried")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([{**asdict(m), "end": end} for m, end in ends.items()], indent=1) + "\n")
    return int("survived" in ends.values())


if __name__ == "__main__":
    sys.exit(main())
