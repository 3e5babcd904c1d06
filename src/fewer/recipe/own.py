"""What the patterns of each attention module have learnt of it: from a file, from text, or from the first that it reads."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from fewer.attention import Pattern
from fewer.measure.quality import at_rest, device_of
from fewer.models.cache_layer import Asked

FEW, ENOUGH = 16, 8192  # tokens that one learns from, at least and at most


@dataclass(eq=False)
class Own:
    """The pattern of each module with what it has learnt there: of a step's method, and a module's name."""

    made: dict[tuple[str, Pattern], Pattern] = field(default_factory=dict)

    def of(self, module: str, m: Pattern) -> Pattern:
        """The method as it is at this module."""
        if (found := self.made.get((module, m))) is None:
            found = self.made[module, m] = m.at(module)
        return found

    def hear(self, module: str, some: Iterable[Pattern], asked: Asked) -> None:
        """Those that have not learnt yet, learn from what is asked; tokens before or of which nothing is known, do not count."""
        learning = [m for m in some if learns(self.of(module, m))]
        if not learning or not asked.causal or asked.mask is not None or asked.q.shape[2] <= FEW:
            return
        q, k = (_real(x.detach(), asked.real) for x in (asked.q, asked.k))
        for m in learning if q.shape[2] > FEW else ():
            self.made[module, m] = self.made[module, m].fit(q, k)


def learns(m: Pattern) -> bool:
    """Whether it would learn from queries and keys, and has not."""
    return bool(m.fits) and not getattr(m, m.fits)


def _real(x: Tensor, real: Tensor | None) -> Tensor:
    """Without padding, row behind row; as many tokens as are enough."""
    rows = x[:, :, : max(FEW + 1, ENOUGH // len(x))]
    if real is None or bool(real.all()):
        return rows
    there = real[:, -x.shape[2] :][:, : rows.shape[2]].bool()
    return rows.transpose(1, 2)[there].transpose(0, 1)[None]


def shown(model: nn.Module, data: Tensor) -> None:
    """Run a model on some of the data, so that those of its patterns that learn see it."""
    windows = max(1, ENOUGH // data.shape[1])
    with at_rest(model):
        model(input_ids=data[:windows].to(device_of(model)), use_cache=False)
