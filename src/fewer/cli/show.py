"""fewer show: one method, whole; or a file of another tool, as steps of ours."""

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from fewer.core import Method, find

from ._card import card
from ._print import Json, lines


def show(
    name: Annotated[str, typer.Argument(help="axis/method, as `fewer methods` lists it; or a file or folder.")],
    json: Json = False,
) -> None:
    """Show a method: its rule and formula, a worked example, hyper-parameters with defaults, what it needs, its paper.

    Of a recipe, or of a file in which another tool says how attention is sparse (MInference, DuoAttention, ModelOpt,
    TensorRT-LLM, ...): its steps.

    Examples: `fewer show weights/wanda` · `fewer show config.json`
    """
    if Path(name).suffix or Path(name).is_dir():
        return _file(Path(name), json)
    method = find(name)
    if json:
        return lines([{**card(name).as_dict(), **_facts(method), "doc": inspect.getdoc(method)}])
    paper, facts = method.paper, _facts(method)
    print(f"{name} · {card(name).kind} · {paper.year}\n")
    print(inspect.getdoc(method))
    print("\nhyper-parameters  " + (", ".join(f"{k} = {v}" for k, v in facts["fields"].items()) or "none"))
    print("needs             " + (", ".join(facts["needs"]) or "nothing of the data"))
    print(f"paper             {paper.title} ({paper.year}){', ' + paper.equation if paper.equation else ''}")
    print(f"                  {paper.url}")
    print(f"file              {inspect.getsourcefile(method)}")


def _file(path: Path, json: bool) -> None:
    from fewer.recipe.interchange import interchange
    from fewer.recipe.steps import recipe

    if path.suffix in (".yaml", ".yml", ".txt"):
        tool, steps, notes = "fewer", recipe(path), ()
    else:
        found = interchange(path)
        tool, steps, notes = found.tool, found.steps, found.notes
    if json:
        return lines([{"tool": tool, "steps": [str(s) for s in steps], "notes": list(notes)}])
    print(f"{path} · {tool}\n")
    print(*steps, sep="\n")
    print("".join(f"\nnote: {text}" for text in notes), end="\n" if notes else "")


def _facts(method: type[Method]) -> dict[str, Any]:
    fields = dataclasses.fields(method)  # type: ignore[arg-type]  # `@method` makes every method a dataclass
    return {
        "fields": {f.name: None if f.default is dataclasses.MISSING else repr(f.default) for f in fields},
        "needs": [stat.__name__ for stat in method.needs],
    }
