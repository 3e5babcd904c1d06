"""Where the gates of a recipe listen in a model: checked before anything runs."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from fewer.activations import BEFORE, HIDDEN, Allocator, Cut, Gate, Predictor, Share
from fewer.calibrate import Stats
from fewer.core import Budget, Group, Site
from fewer.models import sites
from fewer.models.activation import ACTS
from fewer.models.groups import mlps

from .phases import PHASES, lengths_of, rest_of, words_of
from .steps import Recipe, Step, kind


@dataclass(eq=False)
class Place:
    """One place where a gate listens: at the input of `site`, or, of place HIDDEN, at the neurons of the MLP that `site` reads."""

    step: Step
    site: Site
    budget: Budget
    group: Group | None = None  # the MLP of a hidden place
    act: nn.Module | None = None  # its activation, where another map is multiplied by it
    phases: tuple[str, ...] = PHASES
    beyond: int = 0  # so many tokens of a text are dense
    stats: Stats = field(default_factory=Stats)
    cut: float | None = None
    learnt: Gate | None = None  # the step's method with what it learnt here

    @property
    def gate(self) -> Gate:
        method = self.learnt or self.step.method
        assert isinstance(method, Gate)
        return method

    @property
    def before(self) -> bool:
        """Whether neurons are named before any of them is computed."""
        return self.gate.place == BEFORE

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def told(self) -> Site:
        """Whose statistics the gate reads: at hidden neurons those of `up`, or of `down` where nothing is gated."""
        up = next((s for s in self.group.writers if s.role == "up"), None) if self.group else None
        return up if up is not None and self.act is not None else self.site

    @property
    def saved(self) -> int:
        """The numbers of all columns (and of the rows that go with them) that a gate can leave out."""
        if self.before and self.group:
            return self.weights
        rows, cols = self.site.shape
        up = self.told.shape if self.group else (0, 0)
        return rows * cols + (up[0] * up[1] if self.act is not None else 0)

    @property
    def weights(self) -> int:
        """The numbers that a token reads there if nothing is left out."""
        return sum(s.shape[0] * s.shape[1] for s in self.group.sites) if self.group else self.saved

    @property
    def share(self) -> Share:
        return Share(self.name, self.site.layer, self.saved, self.site.shape[1])


def places_of(model: nn.Module, steps: Recipe) -> list[Place]:
    """Every place that the steps name; ValueError for what cannot be, with what was found."""
    out: list[Place] = []
    for s in steps:
        where, phases, beyond = _words(s)
        _check(s)
        found = (
            _hidden(model, s, where)
            if s.method.place in (HIDDEN, BEFORE)
            else [(x, None, None) for x in sites(model, where)]
        )  # type: ignore[attr-defined]
        for site, group, act in found:
            _fits(s, site)
            own = s.method.at(site.name) if isinstance(s.method, Predictor) else None
            out.append(Place(s, site, s.budget, group, None if own else act, phases, beyond, learnt=own))
    seen: dict[str, Place] = {}
    for p in out:
        if (other := seen.setdefault(p.name, p)) is not p:
            raise ValueError(
                f"{p.name}: {other.gate.name} decides what is read there, and {p.gate.name} too: write one of them"
            )
    return out


def _words(s: Step) -> tuple[str, tuple[str, ...], int]:
    """A step's place: which maps, in which phases, beyond how many tokens."""
    words = words_of(s.where)
    return rest_of(words), tuple(w for w in words if w in PHASES) or PHASES, max(lengths_of(words), default=0)


def _check(s: Step) -> None:
    if not isinstance(s.method, Gate):
        raise ValueError(
            f"{s.method.name} is of kind {kind(type(s.method)).lower()}: write a gate, such as activations/magnitude"
        )
    if s.budget.scope != "row" or s.budget.unit != (1, 1):
        raise ValueError(f"'{s}': a token's inputs are counted one by one: write a share, a number, or N:M such as 2:4")
    if s.allocator is not None and not isinstance(s.allocator, Allocator):
        raise ValueError(f"{s.allocator.name} divides no gate's budget; write '{s.method.name} {s.budget} by greedy'")
    if len(s.correctors) > 1:
        raise ValueError(f"'{s}': one method stands after '+', not {len(s.correctors)}; leave one")
    for c in s.correctors:
        if not isinstance(c, Cut):
            raise ValueError(f"{c.name} does not go with a gate; write '{s.method.name} {s.budget} + threshold'")
        if not hasattr(s.method, "score"):
            raise ValueError(f"{s.method.name} gives no score that a threshold could cut; leave out '+ {c.name}'")
        if not s.budget.plain:
            raise ValueError(f"'{s}': a threshold keeps a share or a number on average, not '{s.budget}'")


def _fits(s: Step, site: Site) -> None:
    if site.index is not None or site.param != "weight" or site.role == "embed":
        raise ValueError(
            f"{site.name}: its module multiplies by more than one map at a time, and a gate stands before one; leave it "
            f"out, as in '@ *,!{site.name.partition('[')[0]}'"
        )
    try:
        s.budget.check(*site.shape)
    except ValueError as wrong:
        raise ValueError(f"{site.name}: {wrong}") from None


def _hidden(model: nn.Module, s: Step, where: str) -> list[tuple[Site, Group | None, nn.Module | None]]:
    """The MLPs of which `where` names a map."""
    found = mlps(model, where)
    if not found:
        roles = sorted({x.role for x in sites(model, where)})
        raise ValueError(
            f"'{s}': {s.method.name} listens to the hidden neurons of an MLP, and there is none at '{where}', which "
            f"names {', '.join(roles)} (of experts in one tensor no single neuron is heard); write '@ mlp' where the model has MLPs"
        )
    if s.method.gated and (plain := next((g for g in found if len(g.writers) == 1), None)):  # type: ignore[attr-defined]
        raise ValueError(
            f"{plain.name} has no gate, and {s.method.name} asks what one is multiplied by; write 'activations/cats {s.budget}'"
        )
    return [(g.reader, g, _act(model, g)) for g in found]


def _act(model: nn.Module, group: Group) -> nn.Module | None:
    """The activation that opens a gated MLP's gate; None where `down` reads it as it is."""
    if not any(s.role == "gate" for s in group.writers):
        return None
    home = model.get_submodule(group.name)
    found = next((m for n in ACTS if isinstance(m := getattr(home, n, None), nn.Module)), None)
    if found is None:
        raise ValueError(
            f"{group.name} ({type(home).__name__}): no module of its is its activation, by the names {', '.join(ACTS)}; "
            "a gate of its inputs, such as activations/magnitude, needs none"
        )
    return found


def scores(p: Place, x: Tensor) -> Tensor:
    """What a place's gate makes of x."""
    return p.gate.score(x, p.stats)  # type: ignore[attr-defined]
