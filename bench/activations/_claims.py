"""What papers say of gates, judged by the rows of quality.py: pairs of settings on the same windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewer.measure import paired
from fewer.recipe.claims import verdict

RANDOM = {
    "all": "random all own",
    "mlp": "random mlp own",
    "down": "random mlp own",
}  # the last two are the same neurons


@dataclass(frozen=True)
class Pair:
    """`ours` should have the lower loss, by a perplexity of at most `factor` times the other's."""

    paper: str
    says: str
    ours: str
    than: str
    densities: tuple[str, ...] = ("70%", "50%", "40%", "25%")
    factor: float = 1.0


CLAIMS = [
    Pair("WINA", "below TEAL at equal sparsity", "wina all own", "magnitude all own"),
    Pair("WINA", "the same with one threshold a map", "wina all cut", "magnitude all cut"),
    Pair("R-Sparse", "a low-rank part is worth its columns", "r_sparse all own", "wina all own", ("40%", "25%")),
    Pair("R-Sparse", "the same with a tenth of the budget", "r_sparse(low_rank=0.1) all own", "wina all own", ("40%", "25%")),
    Pair("CHESS", "below CATS at equal sparsity, thresholds for all tokens", "chess mlp cut", "cats mlp cut"),
    Pair("CHESS", "the same with each token's own", "chess mlp own", "cats mlp own"),
    Pair("Sparsing Law", "equal tail error beats each token's own top-k", "wina down tail", "wina down own"),
    Pair("Sparsing Law", "equal tail error beats equal density", "wina down tail", "wina down cut"),
    Pair("TEAL", "a threshold is as good as each token's own top-k", "magnitude all cut", "magnitude all own"),
    Pair("CoreInfer", "a text's core neurons beat random ones", "core_neurons mlp own", "random mlp own", factor=0.9),
    Pair("CoreInfer", "fixed core neurons beat each token's own", "core_neurons mlp own", "cats mlp own"),
    Pair("delta", "changes beat values", "delta all own", "magnitude all own"),
    *(Pair("control", f"{name} far below random", name, RANDOM[name.split()[-2]], factor=0.8)
      for name in ("magnitude all own", "wina all own", "r_sparse all own", "cats mlp own", "chess mlp own", "wina down own")),
]  # fmt: skip


def judged(rows: Sequence[dict[str, Any]], claims: Sequence[Pair]) -> list[str]:
    """A table line for each claim and density that was measured: how much perplexity changes, paired, and the verdict."""
    loss = {(r["setting"], r["density"]): torch.tensor(r["losses"], dtype=torch.float64) for r in rows}
    lines = ["| paper | says | density | perplexity, against | here |", "|---|---|---|---|---|"]
    for c in claims:
        for d in (d for d in c.densities if {(c.ours, d), (c.than, d)} <= loss.keys()):
            apart = paired(loss[c.ours, d], loss[c.than, d])
            value, low, high = (100 * (torch.tensor(x).exp().item() - 1) for x in (apart.value, apart.low, apart.high))
            lines.append(
                f"| {c.paper} | {c.says} | {d} | {value:+.1f} % [{low:+.1f}, {high:+.1f}] | {verdict(apart, c.factor)} |"
            )
    return lines
