"""fewer claims: what papers claim, checked."""

from pathlib import Path
from typing import Annotated

import typer

from ._live import Live
from ._print import Json, lines, note, table


def claims(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Where the claims are: `claims/` in a checkout.")] = Path("claims"),
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("docs/claims.md"),
    model: Annotated[str, typer.Option(help="What to measure them on.")] = "bundled",
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes side by side; one a core by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Run the checks of what papers claim, and write docs/claims.md: paper, claim, here, verdict.

    A claim holds, is weaker here, or does not hold here; the exit code is 1 if one does not. What the frontier measured is not measured again.

    Example: `fewer claims`
    """
    from fewer.recipe.claims import FAILS, check, markdown, read
    from fewer.recipe.frontier import Bench, Text

    found = read(folder)
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.parent} is no directory to write {out.name} in")
    with Live(quiet=json) as live:
        findings = check(found, Bench.at(model, jobs=jobs, device=device, progress=live.progress, found=live.found))
    from ._about import about

    out.write_text(markdown(findings, about(model, str(Text()), ctx.obj or [])), encoding="utf-8")
    if json:
        lines(f.as_dict() for f in findings)
    else:
        table(
            ["method", "verdict", "here", "claim"],
            [[f.method, f.verdict, f.here, f.claim] for f in findings],
            wrap=["claim"],
        )
    note(f"written: {out}")
    raise typer.Exit(1 if any(f.verdict == FAILS for f in findings) else 0)
