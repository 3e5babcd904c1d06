"""fewer kernels: what would run here, and why."""

from dataclasses import asdict

from ._print import Json, lines, note, table


def kernels(json: Json = False) -> None:
    """Show each operation, its backends, which of them run on this machine, and which would be chosen for some shapes.

    The choice rests on measured costs: below break-even it is `dense` (unpack, and leave the product to torch). "never packed"
    is what the same product costs with plain weights: where that is less, packing saves bytes and costs time.

    Example: `fewer kernels`
    """
    from fewer.kernels import describe, machine

    here, operations = machine(), describe()
    if json:
        return lines([asdict(here), *(asdict(op) for op in operations)])
    table(
        ["operation", "backend", "runs here"],
        [[op.op, backend, why or "yes"] for op in operations for backend, why in op.backends.items()],
    )
    chosen = [[text, c.backend, c.reason] for op in operations for text, c in op.examples]
    if chosen:
        table(["sparse_linear of", "runs on", "why"], chosen)
    costs = f"costs measured on {here.costs}" if here.costs else "no costs were measured for a machine like this"
    note(f"{here.gpu or here.cpu}, {here.threads} threads; {costs}")
