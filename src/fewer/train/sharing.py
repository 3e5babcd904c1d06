"""How several processes learn a dictionary together: where that differs from learning alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from jaxtyping import Float, Int64
from torch import Tensor

from fewer.calibrate import Crew
from fewer.core import Budget
from fewer.features import ByKeep, Own, coded, missed
from fewer.layout import Codes

from .pupil import Lesson, Pupil
from .source import Source


class Sharing(ABC):
    """What is done otherwise when work is shared; by default nothing is. All processes call the same, in the same order.

    Whatever is shared, what is learnt is what one process learns, but for rounding; and as a run's state is kept whole, it may
    go on with another number of processes, or alone.
    """

    crew: Crew = Crew()

    @abstractmethod
    def check(self, pupils: Sequence[Pupil], lesson: Lesson, batch: int, together: bool) -> None:
        """ValueError: what cannot be learnt so, before work starts."""

    def read(self, source: Source) -> Source:
        """What this process sees of each batch."""
        return source

    def mine(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this process holds of whole tensors."""
        return dict(tensors)

    def whole(self, tensors: Mapping[str, Tensor], everywhere: bool = True) -> dict[str, Tensor]:
        """Whole tensors of what each process holds, in all of them or in the first."""
        return dict(tensors)

    def coded(
        self,
        m: ByKeep,
        budget: Budget,
        x: Float[Tensor, "batch in"],
        w: Float[Tensor, "latents in"],
        b: Float[Tensor, " latents"],
        own: Own,
    ) -> Codes:
        """Who speaks of the latents that are here, chosen among all there are."""
        return coded(m, budget, x, w, b, own)[0]

    def missed(
        self,
        codes: Codes,
        parts: Iterable[tuple[float, Codes]],
        atoms: Float[Tensor, "latents out"],
        y: Float[Tensor, "rows out"],
        bias: Float[Tensor, " out"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows out"]]:
        """See `features.missed`; what latents elsewhere say counts too."""
        return missed(codes, parts, atoms, y, bias)

    def added(self, out: Float[Tensor, "rows out"]) -> Float[Tensor, "rows out"]:
        """With what latents elsewhere say of the same rows."""
        return out

    def heard(self, counts: Tensor, tokens: int) -> tuple[Tensor, int]:
        """In how many tokens of the whole batch each latent that is here spoke."""
        return counts, tokens

    def most(self, number: float) -> float:
        """The largest that any latents' holder says."""
        return number

    def number(self, few: int) -> int:
        """The sum over those who hold different latents."""
        return few

    def loudest(
        self, pre: Float[Tensor, "rows some"], k: int
    ) -> tuple[Float[Tensor, "rows k"], Int64[Tensor, "rows k"], Tensor | None]:
        """The k largest of each row, of all there are: those that are here, and which of them count if not all do."""
        return *pre.topk(k, dim=1), None

    def mean(self, part: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The mean over the whole batch."""
        return part

    def loss(self, part: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss of the whole batch, by which the gradient is this process's part of it."""
        return part

    def join(self, parameters: Mapping[str, Tensor]) -> None:
        """Put together what processes found, before a step is taken."""
        return

    def agreed(self, due: bool) -> bool:
        """Whether it is time to keep the state, which is everybody's work where all hold a part of it."""
        return due


class Alone(Sharing):
    """One process does everything."""

    def check(self, pupils: Sequence[Pupil], lesson: Lesson, batch: int, together: bool) -> None:
        return


ALONE = Alone()
