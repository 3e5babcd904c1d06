"""fewer methods: what there is."""

from typing import Annotated

import typer

from fewer.core import axes
from fewer.core import methods as names

from ._card import card
from ._print import Json, lines, table


def methods(
    axis: Annotated[str | None, typer.Argument(help="Only this axis: weights, attention, cache, experts, ...")] = None,
    json: Json = False,
) -> None:
    """List the methods: what each is, its rule in one sentence, the year of its paper.

    Examples: `fewer methods` · `fewer methods weights` · `fewer methods weights --json`
    """
    cards = [card(name) for a in ([axis] if axis else axes()) for name in names(a)]
    if json:
        return lines(c.as_dict() for c in cards)
    table(
        ["method", "is a", "rule", "year"],
        [[c.name, c.kind, c.rule, str(c.paper.year) if c.paper else ""] for c in cards],
        wrap=["rule"],
    )
