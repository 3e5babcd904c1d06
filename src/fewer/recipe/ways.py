"""What the steps of a recipe mean for each attention module of a model: checked before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from fewer.attention import Mixer, Pattern, Refresher, Shape
from fewer.cache import Corrector, Evictor, Form, Rope
from fewer.cache._act import Forgetting
from fewer.cache._store import PAGE
from fewer.models.attention import attentions, attentions_at, kinds, rotary

from .mixing import parts_of, shape_of
from .phases import PHASES, lengths_of, rest_of, words_of
from .steps import Recipe, Step, kind

TRAIN = "train"  # prefill of a model in training; its own phase where a step says so


@dataclass(frozen=True)
class Ways:
    """What one attention module does: a pattern for each phase, or a mixer for all, and what it forgets."""

    name: str
    number: int  # of the module among those of the model
    prefill: Step | None = None
    decode: Step | None = None
    train: Step | None = None
    forget: Forgetting | None = None
    form: Form | None = None
    refresher: Refresher | None = None
    rope: Rope | None = None
    mixer: Step | None = None
    parts: nn.ParameterDict = field(default_factory=nn.ParameterDict)  # of the mixer
    beyond: int = 0  # up to so many tokens all is read while decoding

    @property
    def patterns(self) -> list[Pattern]:
        """Those of its phases, each once."""
        return list(dict.fromkeys(s.method for s in (self.prefill, self.decode, self.train) if s))

    @property
    def page(self) -> int:
        """Slots of a page: a block of the pattern that decodes, where that is a good size, and enough for the form."""
        size = self.decode.method.block if self.decode else PAGE
        return max(size if 8 <= size <= 128 else PAGE, self.form.least if self.form else 1)


def ways_of(model: nn.Module, steps: Recipe) -> dict[nn.Module, Ways]:
    """What each attention module of a model does by these steps; all that can be refused is refused here."""
    found = attentions(model)
    types, mine = kinds(model), {name: {} for name, _ in found}
    for s in steps:
        where, phases = _places(s)
        chosen = [name for name, _ in attentions_at(model, where)]
        for i, name in enumerate(chosen):
            if s.axis == "cache":
                module = dict(found)[name]
                correctors, mine[name]["form"] = _parted(s)
                more = s.allocator, correctors, _project(module), getattr(module, "layer_idx", None)
                mine[name]["forget"] = Forgetting(s.method, s.budget, i, len(chosen), *more)
                mine[name]["forget"].check()
            elif isinstance(s.method, Mixer):
                mine[name]["mixer"] = s
            else:
                s, mine[name]["refresher"] = _refreshed(s)
                _check_pattern(s)
                mine[name] |= dict.fromkeys(phases, s)
            if length := _length(s):
                mine[name]["beyond"] = length
    ways = {}
    for i, (name, module) in enumerate(found):
        layer = getattr(module, "layer_idx", None)
        if "mixer" in mine[name]:
            mine[name]["parts"] = _mixes(mine[name], module, name, shape_of(module, model.config, i))
        turns = rotary(model, types[layer] if layer is not None and layer < len(types) else "")
        ways[module] = Ways(name, i, rope=None if turns is None else Rope(turns), **mine[name])
    return ways


def _mixes(ways: dict, module: nn.Module, name: str, shape: Shape) -> nn.ParameterDict:
    """A mixer's parts for this module; what cannot be is refused."""
    s: Step = ways["mixer"]
    mixer, budget = s.method, s.budget
    assert isinstance(mixer, Mixer)
    if not mixer.chooses and budget.keep != 1:
        raise ValueError(f"{mixer.name} reads what it gives weight to, not '{budget}': write '{mixer.name} 100%'")
    if not budget.plain:
        raise ValueError(f"a query reads a share or a number of keys, not '{budget}'; write '10%' or '2048'")
    if s.allocator or s.correctors or _places(s)[1] != list(PHASES):
        raise ValueError(
            f"{mixer.name} is the module's attention in all phases, undivided: write '{mixer.name} {budget}'"
        )
    if other := ways.get("prefill") or ways.get("decode") or ways.get(TRAIN):
        raise ValueError(f"{name}: {mixer.name} says what is read, and {other.method.name} too: write one of them")
    if "forget" in ways and type(mixer).note is not Mixer.note:
        raise ValueError(f"{name}: {mixer.name} remembers more of a token than its key; no step of cache goes with it")
    if getattr(module, "sinks", None) is not None and not mixer.sinks:
        raise ValueError(f"{name} has sinks, of which {mixer.name} knows nothing")
    return parts_of(s, module, name, shape)


def _refreshed(s: Step) -> tuple[Step, Refresher | None]:
    """The step without whoever says when all is read again; and who that is."""
    some = [c for c in s.correctors if isinstance(c, Refresher)]
    if len(some) > 1:
        raise ValueError(f"{s.method.name}: one method says when tokens are read again, not {len(some)}; leave one")
    return replace(s, correctors=tuple(c for c in s.correctors if c not in some)), next(iter(some), None)


def refresher_of(ways: Mapping[nn.Module, Ways]) -> Refresher | None:
    """Who says when the latest tokens are read again by all there is; one for the whole model."""
    some = list(dict.fromkeys(w.refresher for w in ways.values() if w.refresher))
    if len(some) > 1:
        raise ValueError(f"a model's tokens are read again all at once: write {some[0].name} alike in all steps")
    return next(iter(some), None)


def rereader_of(ways: Mapping[nn.Module, Ways]) -> Evictor | None:
    """An evictor that has the model say a prompt again; one for the whole model."""
    every = (w.forget.evictor for w in ways.values() if w.forget and w.forget.evictor.chunk)
    some = list({(e.chunk, e.prompt): e for e in every}.values())
    if len(some) > 1:
        raise ValueError(
            f"a model says a prompt again all at once: write chunk and prompt of {some[0].name} alike in all steps"
        )
    return next(iter(some), None)


def _parted(s: Step) -> tuple[tuple[Corrector, ...], Form | None]:
    """Who repairs what stays, and how it is stored."""
    forms = [c for c in s.correctors if isinstance(c, Form)]
    if len(forms) > 1:
        raise ValueError(
            f"what is cached is stored in one form, not in {' and '.join(f.name for f in forms)}; leave one"
        )
    return tuple(c for c in s.correctors if not isinstance(c, Form)), next(iter(forms), None)


def _project(module: nn.Module) -> Tensor | None:
    """What a module makes of each head's output, `[heads, dim, hidden]`, where it is a plain map of that name."""
    out, dim = getattr(module, "o_proj", None), getattr(module, "head_dim", None)
    if not isinstance(out, nn.Linear) or not isinstance(dim, int) or out.in_features % dim:
        return None
    return out.weight.detach().T.unflatten(0, (-1, dim))


def _places(s: Step) -> tuple[str, list[str]]:
    """Which modules, and in which phases."""
    words = words_of(s.where)
    return rest_of(words), [w for w in words if w in (*PHASES, TRAIN)] or list(getattr(s.method, "phases", PHASES))


def _length(s: Step) -> int:
    """Up to how many tokens a pattern leaves decoding as it is."""
    said = lengths_of(words_of(s.where))
    if said and s.axis == "cache":
        raise ValueError(f"'{s}': a cache forgets at any length; leave out 'beyond {said[0]}'")
    return max(said, default=0)


def _check_pattern(s: Step) -> None:
    if not isinstance(s.method, Pattern):
        raise ValueError(
            f"{s.method.name} is of kind {kind(type(s.method)).lower()}: write a pattern, such as attention/quest"
        )
    if not s.budget.plain:
        raise ValueError(f"a query reads a share or a number of keys, not '{s.budget}'; write '10%' or '2048'")
    if s.allocator:
        raise ValueError(f"{s.method.name}: nothing divides what is read; write '{s.method.name} {s.budget}'")
    if len(s.correctors) > 1:
        raise ValueError(f"{s.method.name}: one method corrects what is read, not {len(s.correctors)}; leave one")
    size = s.method.block
    if not (size % PAGE == 0 or PAGE % size == 0):
        raise ValueError(
            f"{s.method.name}: blocks of {size} keys do not divide into pages; write block=16, 32, 64 or 128, or 1 to 8"
        )
