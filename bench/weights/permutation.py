"""What 16x1 tiles and 2:4 cost in perplexity before and after an order of rows or columns: `python -m bench.weights.permutation`.

Every map is ranked by Wanda on the dense model's inputs, then masked; the order is each map's own. A row of the table
is the perplexity of the model with all maps that `--where` names masked, and the share of the score that stays of what
an unstructured mask of the same size would keep.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from fewer.calibrate import InputSquares, watching
from fewer.core import Budget, Site, budget
from fewer.models import open_model, sites
from fewer.recipe.frontier import Text
from fewer.select import channel_order, row_order, select, select_in_order

Mask = Callable[[Tensor, Budget], Tensor]


def by_rows(score: Tensor, b: Budget) -> Tensor:
    return select_in_order(score, b, rows=row_order(score, b))


def by_columns(score: Tensor, b: Budget) -> Tensor:
    return select_in_order(score, b, columns=channel_order(score, b))


ROWS: tuple[tuple[str, str, Mask], ...] = (
    ("as they are", "50%", select),
    ("as they are", "50% of 16x1", select),
    ("rows in order", "50% of 16x1", by_rows),
    ("as they are", "2:4", select),
    ("columns in order", "2:4", by_columns),
)


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--model", default="bundled")
    read.add_argument("--where", default="*")
    read.add_argument("--calibration", type=int, default=24)
    read.add_argument("--test", type=int, default=24)
    read.add_argument("--length", type=int, default=512)
    given = read.parse_args()
    model, tokenizer = open_model(given.model)
    calibration, test = Text(calibration=given.calibration, test=given.test, length=given.length).windows(tokenizer)
    found = sites(model, given.where)
    with torch.no_grad(), watching(found, (InputSquares,)) as seen:
        for window in calibration:
            model(window[None])
    score = {s.name: s.read().float().abs() * seen[s.name][InputSquares].rms for s in found}
    print(f"{'order':18} {'budget':14} {'score held':>10} {'perplexity':>10}", flush=True)
    print(f"{'dense':18} {'':14} {1:10.4f} {perplexity(model, test):10.3f}", flush=True)
    for order, text, mask in ROWS:
        print(f"{order:18} {text:14} {masked(model, found, score, budget(text), mask, test)}", flush=True)


def masked(
    model: torch.nn.Module, found: list[Site], score: dict[str, Tensor], b: Budget, mask: Mask, test: Tensor
) -> str:
    """One row's figures; the model is put back."""
    before = {s.name: s.read().clone() for s in found}
    held = free = 0.0
    with torch.no_grad():
        for s in found:
            rank = score[s.name]
            keep = mask(rank, b)
            held += float((rank * keep).sum())
            free += float((rank * select(rank, budget("50%"))).sum())
            s.write(before[s.name] * keep)
        found_now = perplexity(model, test)
        for s in found:
            s.write(before[s.name])
    return f"{held / free:10.4f} {found_now:10.3f}"


@torch.no_grad()
def perplexity(model: torch.nn.Module, test: Tensor) -> float:
    losses = [float(model(window[None], labels=window[None]).loss) for window in test]
    return float(torch.tensor(losses).mean().exp())


if __name__ == "__main__":
    main()
