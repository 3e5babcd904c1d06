"""What `fewer train` is asked for wherever a model's text is learnt from: read once, for masks, attention and gates."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewer.core import Budget, Method

from ._bar import Bar, both, loss
from ._print import lines, note
from ._text import LEARNT, tokenizer_for

if TYPE_CHECKING:
    from fewer.train import Training


@dataclass(frozen=True)
class Job:
    """The method and its budget, the model, where, on what text, in how many steps; `rate` is that of the first."""

    pupil: Method
    kept: Budget
    model: str
    out: Path
    source: str
    windows: int
    length: int
    steps: int
    rate: float
    batch: int
    accumulate: int
    seed: int
    where: str
    device: str
    force: bool
    json: bool
    board: Callable[[Any], None] | None

    @property
    def how(self) -> "Training":
        from fewer.train import Cosine, Training

        return Training(self.steps, Cosine(self.rate, self.rate / 10), self.accumulate, seed=self.seed)

    def told(self, bar: Bar) -> Callable[[Any], None]:
        """Who hears of each step."""
        return both(self.board, (lambda row: lines([row])) if self.json else loss(bar("learning")))

    def opened(self) -> tuple[Any, Any]:
        """The model, and windows of text to learn from."""
        from fewer.data import corpus
        from fewer.data import windows as cut
        from fewer.models import open_model

        tokenizer = tokenizer_for(self.model, LEARNT)
        tokens = cut(corpus(self.source, "calibration"), tokenizer, self.length, self.windows, self.seed)
        return open_model(self.model, self.device)[0], tokens

    def written(self, learnt: Method, model: bool = False) -> None:
        """Say what to write in a step now; on `out` itself, if that is a model."""
        from fewer.core.spell import spell

        of, place = f" on {self.out}" if model else "", "" if self.where == "*" else f" @ {self.where}"
        note(f'written: {self.out}; use it{of} as "{spell(learnt)} {self.kept}{place}"')
