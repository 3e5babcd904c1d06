"""Steps as data: `weights/wanda 50% by owl + dsnot + eora(rank=16) @ *.mlp.*`, read, printed and checked."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewer.core import Budget, Method, Target, axes, budget, target
from fewer.core.spell import method_of, spell

ENDINGS = (".yaml", ".yml", ".txt", ".json", ".tsv")  # of text that names a file
VERSION = 1  # of the YAML form; a newer one is refused

AFTER = ("Corrector", "Form", "Refresher", "Cut")  # what stands after '+'
HEADS = {  # what allocators and correctors of an axis go with
    "weights": ("a pruner", "weights/wanda 50%"),
    "cache": ("an evictor", "cache/snap_kv 25%"),
    "attention": ("a pattern", "attention/quest 10%"),
    "activations": ("a gate", "activations/magnitude 50%"),
}

_INSIDE = r"[^()]*"
for _ in range(2):  # brackets within brackets: tuples of tuples
    _INSIDE = rf"[^()]*(?:\({_INSIDE}\)[^()]*)*"
_CALL = rf"[\w/]+(?:\({_INSIDE}\))?"
_STEP = re.compile(
    rf"(?P<method>{_CALL})\s+(?P<budget>[^@+]+?)(?:\s+by\s+(?P<by>{_CALL}))?"
    rf"(?P<then>(?:\s*\+\s*{_CALL})*)(?:\s*@\s*(?P<where>\S.*))?"
)
_HEAD = re.compile(rf"\s*(?P<head>{_CALL})(?P<rest>.*)", re.S)
_CORRECTOR = re.compile(rf"\s*\+\s*({_CALL})")


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to do to a model: a method, how much may stay, where; who divides the budget; what corrects after.

    >>> print(step("weights/wanda 50% + eora(rank=8) @ *.mlp.*"))
    weights/wanda 50% + eora(rank=8) @ *.mlp.*
    """

    method: Method
    budget: Budget | Target
    where: str = "*"
    allocator: Method | None = None
    correctors: tuple[Method, ...] = ()

    @property
    def axis(self) -> str:
        return self.method.name.partition("/")[0]

    @property
    def what(self) -> str:
        """The step without its budget and place: what a figure calls it."""
        by = f" by {spell(self.allocator, self.axis)}" if self.allocator else ""
        return spell(self.method) + by + "".join(f" + {spell(c, self.axis)}" for c in self.correctors)

    def __str__(self) -> str:
        by = f" by {spell(self.allocator, self.axis)}" if self.allocator else ""
        then = "".join(f" + {spell(c, self.axis)}" for c in self.correctors)
        place = "" if self.where == "*" else f" @ {self.where}"
        return f"{spell(self.method)} {self.budget}{by}{then}{place}"


Recipe = tuple[Step, ...]


def kind(cls: type[Method]) -> str:
    """What a method does on its axis: the abstract class below `Method` that it is, e.g. `Pruner`."""
    return next(c.__name__ for c in reversed(cls.__mro__) if issubclass(c, Method) and c is not Method)


def step(text: str) -> Step:
    """Read one step. `ValueError` or `LookupError` say what is wrong and what would be right."""
    if not (form := _STEP.fullmatch(text.strip())):
        raise ValueError(
            f"not a step: {text!r}; write 'weights/wanda 50%', 'weights/wanda 2:4 @ *.mlp.*' "
            "or 'weights/wanda 50% by owl + eora(rank=16)'"
        )
    then = _CORRECTOR.findall(form["then"])
    return _build(form["method"], form["budget"], form["where"] or "*", form["by"], then)


def at_budgets(method: str, budgets: Iterable[str], where: str = "*") -> list[Step]:
    """The steps of a method at the budgets that it can be given; `ValueError` if there is none."""
    form = _HEAD.fullmatch(method)
    if form is None:
        raise ValueError(f"not a method: {method!r}; write 'weights/wanda' or 'weights/wanda by owl + eora(rank=16)'")
    steps, wrong, place = [], None, "" if where == "*" else f" @ {where}"
    for amount in budgets:
        try:
            steps.append(step(f"{form['head']} {amount}{form['rest']}{place}"))
        except ValueError as error:
            wrong = error
    if not steps and wrong:
        raise wrong
    return steps


def _build(head: str, amount: str, where: str, by: str | None, then: Iterable[str]) -> Step:
    main = method_of(head)
    axis = main.name.partition("/")[0]
    allocator = method_of(by, axis) if by else None
    correctors = tuple(method_of(part, axis) for part in then)
    if kind(type(main)) in ("Allocator", *AFTER):
        sign, (role, with_it) = "by" if kind(type(main)) == "Allocator" else "+", HEADS.get(axis, HEADS["weights"])
        raise ValueError(
            f"{main.name} is a kind of {kind(type(main)).lower()}: it goes with {role}, write '{with_it} {sign} {head}'"
        )
    for m, wanted, sign in [(allocator, ("Allocator",), "by"), *((c, AFTER, "+") for c in correctors)]:
        if m is not None and kind(type(m)) not in wanted:
            said = f"{wanted[0].lower()}; {m.name} is of kind {kind(type(m)).lower()}"
            raise ValueError(f"after '{sign}' write a {said}")
    read: Any = target(amount) or budget(amount)
    if isinstance(read, Target):
        if axis not in ("attention", "cache"):
            raise ValueError(f"{main.name} takes a budget, not '{read}': write '50%', '64' or '2:4'")
        return Step(main, read, where.strip(), allocator, correctors)
    if allocator and (read.group or read.scope == "layer"):
        raise ValueError(f"{allocator.name} divides one budget over all maps, not {amount.strip()!r}; write '50%'")
    if kind(type(main)) == "Slimmer" and (read.group or read.unit != (1, 1) or read.scope in ("column", "layer")):
        raise ValueError(
            f"{main.name} keeps whole channels and heads, which '{read}' does not count; write '50%', '64' or "
            "'50% per model'"
        )
    return Step(main, read, where.strip(), allocator, correctors)


def recipe(source: "str | Path | Step | Iterable[str | Step | Mapping[str, Any]]") -> Recipe:
    """Read steps: text (one a line, `#` comments), a `.yaml` or text file, or a list of any of these.

    A `.json` or `.tsv` file, or a folder, is another tool's (`interchange`).

    >>> print(*recipe("weights/wanda 2:4 @ *.mlp.*  # the wide maps"))
    weights/wanda 2:4 @ *.mlp.*
    """
    if isinstance(source, Step):
        return (source,)
    if isinstance(source, Path) or (isinstance(source, str) and source.endswith(ENDINGS)):
        path = Path(source)
        if path.is_dir() or path.suffix in (".json", ".tsv"):
            from .interchange import interchange

            return interchange(path).steps
        if not path.is_file():
            raise FileNotFoundError(f"no recipe at {path}; write the steps in a file, one a line, or in YAML")
        return _from_yaml(path.read_text(), path) if path.suffix in (".yaml", ".yml") else recipe(path.read_text())
    if isinstance(source, str):
        lines = (line.partition("#")[0].strip() for line in source.splitlines())
        steps = tuple(step(line) for line in lines if line)
    else:
        steps = tuple(_one(item) for item in source)
    if not steps:
        raise ValueError("a recipe has at least one step, such as 'weights/wanda 50%'")
    return steps


def _one(item: str | Step | Mapping[str, Any]) -> Step:
    if isinstance(item, Step):
        return item
    if isinstance(item, str):
        return step(item)
    if unknown := set(item) - {"method", "budget", "where", "by", "then"}:
        raise ValueError(f"a step has no {sorted(unknown)}; its keys are method, budget, where, by, then")
    if missing := {"method", "budget"} - set(item):
        raise ValueError(f"the step {dict(item)} lacks {sorted(missing)}")
    then = [item["then"]] if isinstance(item.get("then"), str) else item.get("then") or ()
    return _build(str(item["method"]), str(item["budget"]), str(item.get("where", "*")), item.get("by"), then)


def to_yaml(steps: Recipe) -> str:
    """The recipe as YAML, with its version."""
    import yaml

    def row(s: Step) -> dict[str, Any]:
        optional: dict[str, Any] = {}
        if s.allocator:
            optional["by"] = spell(s.allocator, s.axis)
        if s.correctors:
            optional["then"] = [spell(c, s.axis) for c in s.correctors]
        if s.where != "*":
            optional["where"] = s.where
        return {"method": spell(s.method), "budget": str(s.budget), **optional}

    return yaml.safe_dump({"version": VERSION, "steps": [row(s) for s in steps]}, sort_keys=False)


def _from_yaml(text: str, path: Path) -> Recipe:
    import yaml

    data = yaml.safe_load(text)
    if not isinstance(data, dict) or "steps" not in data:
        raise ValueError(f"{path}: a YAML recipe has the keys 'version' and 'steps'")
    check_version(data.get("version", VERSION), str(path))
    if not isinstance(data["steps"], list):
        raise ValueError(f"{path}: 'steps' is a list of steps, not {data['steps']!r}")
    return recipe(data["steps"])


def check_version(version: object, place: str) -> None:
    """Refuse what a newer `fewer` wrote."""
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"{place}: recipe version {version} is newer than this fewer, which reads up to {VERSION}; upgrade fewer"
        )


def known_axes(steps: Recipe) -> list[str]:
    """The axes a recipe acts on, in the house's order."""
    return [axis for axis in axes() if any(s.axis == axis for s in steps)]
