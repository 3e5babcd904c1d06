"""Looking at a block: all data runs through it once, and who asked finds his statistics, of inputs and of gradients."""

import contextlib
from collections.abc import Callable, Sequence

from fewer.calibrate import Stat, Stats, watching
from fewer.core import Site

from .blame import Blame, of_gradients
from .walk import Walk

Progress = Callable[[str, int, int], None]
Wanted = Sequence[tuple[Site, tuple[type[Stat], ...]]]


def look_back(
    walk: Walk, asked: Sequence[tuple[Site, tuple[type[Stat], ...]]], progress: Progress | None = None
) -> Blame | None:
    """The gradients of the dense model, if any of these statistics is of gradients."""
    asking = [(site, of_gradients(kinds)) for site, kinds in asked if of_gradients(kinds)]
    if asking and progress:
        progress("gradients", 0, len(walk.blocks))
    return Blame(walk, asking) if asking else None


def of_inputs(kinds: tuple[type[Stat], ...]) -> tuple[type[Stat], ...]:
    """The statistics that a run forward fills."""
    return tuple(k for k in kinds if k not in of_gradients(kinds))


def observe(walk: Walk, number: int, wanted: Sequence[tuple[Site, tuple[type, ...]]]) -> dict[str, Stats]:
    """Run a block on all data once and collect what is asked for at each site; nothing is run if nothing is asked."""
    with contextlib.ExitStack() as stack:
        every = dict.fromkeys(k for _, k in wanted)
        seen = [
            stack.enter_context(watching([s for s, k in wanted if k == kinds], kinds, walk.crew)) for kinds in every
        ]
        if any(every):
            walk.listen(number, seen[0] if len(seen) == 1 else None)
    return {name: stats for part in seen for name, stats in part.items()}


def seeing(walk: Walk, asked: Wanted) -> Callable[[int, Wanted], dict[str, Stats]]:
    """How the dense model's blocks are looked at, one after the other, for all that is asked: inputs and gradients."""
    blame = look_back(walk, asked)

    def see(number: int, wanted: Wanted) -> dict[str, Stats]:
        stats = observe(walk, number, [(s, of_inputs(kinds)) for s, kinds in wanted])
        back = [(s, kinds) for s, kinds in wanted if of_gradients(kinds)]
        for name, felt in blame.at(number, back).items() if blame and back else ():
            stats[name] |= felt
        return stats

    return see
