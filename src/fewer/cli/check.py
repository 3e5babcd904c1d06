"""fewer check: the checks that every method gets for free, on one method."""

from typing import Annotated, Any

import typer

from fewer.core import find

from ._print import Json, lines


def check(
    name: Annotated[str, typer.Argument(help="axis/method, ours or one that another package brings")],
    json: Json = False,
) -> None:
    """Run the free checks on a method, a line each: budget met, full budget is the identity, beats random, ...

    Exit code 1 if one fails. Example: `fewer check weights/wanda`
    """
    method = find(name)
    results = [_result(check, method) for check in _checks(name)]
    if json:
        lines(results)
    for result in results if not json else ():
        print(f"{'ok  ' if result['passed'] else 'FAIL'}  {result['check']:24}  {result['about']}".rstrip())
    failed = [result for result in results if not result["passed"]]
    if not json:
        print(f"{name}: {len(results) - len(failed)} checks passed" + (f", {len(failed)} failed" if failed else ""))
    raise typer.Exit(1 if failed else 0)


def _checks(name: str) -> tuple[Any, ...]:
    from fewer.testing import checks_of

    return checks_of(name)


def _result(check: Any, method: Any) -> dict[str, Any]:
    """What one check says; a method that breaks in any way has failed it."""
    import torch

    torch.manual_seed(0)
    about = (check.__doc__ or "").strip().partition("\n")[0]
    row = {"method": method.name, "check": check.__name__.removeprefix("check_").replace("_", " ")}
    try:
        check(method())
    except Exception as error:
        return {**row, "passed": False, "about": f"{type(error).__name__}: {error}".replace("\n", " ")}
    return {**row, "passed": True, "about": about}
