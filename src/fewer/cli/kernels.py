"""fewer kernels: what would run here, and why."""

from ._print import Json, lines, table


def kernels(json: Json = False) -> None:
    """List the operations, their backends, and which of them run on this machine.

    Example: `fewer kernels`
    """
    from fewer.kernels import backends, missing, operations

    rows = [
        {"operation": op, "backend": backend, "runs": missing(backend) is None, "why": missing(backend) or "yes"}
        for op in operations()
        for backend in backends(op)
    ]
    if json:
        return lines(rows)
    table(
        ["operation", "backend", "runs here"], [[str(r["operation"]), str(r["backend"]), str(r["why"])] for r in rows]
    )
