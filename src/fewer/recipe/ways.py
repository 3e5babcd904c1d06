"""What the steps of a recipe mean for each attention module of a model: checked before anything runs."""

from dataclasses import dataclass

from torch import Tensor, nn

from fewer.attention import Pattern
from fewer.cache import Rope
from fewer.cache._act import Forgetting
from fewer.cache._store import PAGE
from fewer.models.attention import attentions, kinds, rotary
from fewer.models.where import is_named, taken

from .steps import Recipe, Step, kind

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Ways:
    """What one attention module does: a pattern for each phase, and what it forgets."""

    name: str
    number: int  # of the module among those of the model
    prefill: Step | None = None
    decode: Step | None = None
    forget: Forgetting | None = None
    rope: Rope | None = None

    @property
    def patterns(self) -> list[Pattern]:
        """Those of its phases, each once."""
        return list(dict.fromkeys(s.method for s in (self.prefill, self.decode) if s))

    @property
    def page(self) -> int:
        """Slots of a page: a block of the pattern that decodes, where that is a good size."""
        size = self.decode.method.block if self.decode else PAGE
        return size if 8 <= size <= 128 else PAGE


def ways_of(model: nn.Module, steps: Recipe) -> dict[nn.Module, Ways]:
    """What each attention module of a model does by these steps; all that can be refused is refused here."""
    found = attentions(model)
    types, mine = kinds(model), {name: {} for name, _ in found}
    for s in steps:
        where, phases = _places(s)
        chosen = _chosen(where, [name for name, _ in found])
        for i, name in enumerate(chosen):
            if s.axis == "cache":
                module = dict(found)[name]
                more = s.allocator, s.correctors, _project(module), getattr(module, "layer_idx", None)
                mine[name]["forget"] = Forgetting(s.method, s.budget, i, len(chosen), *more)
                mine[name]["forget"].check()
            else:
                _check_pattern(s)
                mine[name] |= dict.fromkeys(phases, s)
    ways = {}
    for i, (name, module) in enumerate(found):
        layer = getattr(module, "layer_idx", None)
        turns = rotary(model, types[layer] if layer is not None and layer < len(types) else "")
        ways[module] = Ways(name, i, rope=None if turns is None else Rope(turns), **mine[name])
    return ways


def _project(module: nn.Module) -> Tensor | None:
    """What a module makes of each head's output, `[heads, dim, hidden]`, where it is a plain map of that name."""
    out, dim = getattr(module, "o_proj", None), getattr(module, "head_dim", None)
    if not isinstance(out, nn.Linear) or not isinstance(dim, int) or out.in_features % dim:
        return None
    return out.weight.detach().T.unflatten(0, (-1, dim))


def _places(s: Step) -> tuple[str, list[str]]:
    """Which modules, and in which phases."""
    words = [w.strip() for w in s.where.split(",")]
    phases = [w for w in words if w in PHASES] or list(getattr(s.method, "phases", PHASES))
    return ",".join(w for w in words if w not in PHASES) or "*", phases


def _chosen(where: str, names: list[str]) -> list[str]:
    def hits(pattern: str) -> set[str]:
        if some := {n for n in names if is_named(n, pattern)}:
            return some
        raise ValueError(f"no attention module matches {pattern!r}; there are: {', '.join(names[:3])}, ...")

    mine = taken(where, hits)
    if not mine:
        raise ValueError(f"{where!r} leaves no attention module; there are: {', '.join(names[:3])}, ...")
    return [n for n in names if n in mine]


def _check_pattern(s: Step) -> None:
    if not isinstance(s.method, Pattern):
        raise ValueError(
            f"{s.method.name} is of kind {kind(type(s.method)).lower()}: write a pattern, such as attention/quest"
        )
    if not s.budget.plain:
        raise ValueError(f"a query reads a share or a number of keys, not '{s.budget}'; write '10%' or '2048'")
    if s.allocator or s.correctors:
        raise ValueError(
            f"{s.method.name}: nothing divides or corrects what is read yet; write '{s.method.name} {s.budget}'"
        )
    size = s.method.block
    if not (size % PAGE == 0 or PAGE % size == 0):
        raise ValueError(
            f"{s.method.name}: blocks of {size} keys do not divide into pages; write block=16, 32, 64 or 128, or 1 to 8"
        )
