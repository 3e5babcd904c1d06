"""fewer show: one method, whole."""

import dataclasses
import inspect
from typing import Annotated, Any

import typer

from fewer.core import Method, find

from ._card import card
from ._print import Json, lines


def show(
    name: Annotated[str, typer.Argument(help="axis/method, as `fewer methods` lists it")],
    json: Json = False,
) -> None:
    """Show a method: its rule and formula, a worked example, hyper-parameters with defaults, what it needs, its paper.

    Example: `fewer show weights/wanda`
    """
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


def _facts(method: type[Method]) -> dict[str, Any]:
    fields = dataclasses.fields(method)  # type: ignore[arg-type]  # `@method` makes every method a dataclass
    return {
        "fields": {f.name: None if f.default is dataclasses.MISSING else repr(f.default) for f in fields},
        "needs": [stat.__name__ for stat in method.needs],
    }
