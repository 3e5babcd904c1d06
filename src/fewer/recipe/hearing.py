"""What each attention module of a model is asked, and what a token takes there: by running the dense model and looking."""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fewer.cache._store import Store
from fewer.core import Budget
from fewer.measure.quality import at_rest, device_of
from fewer.models.attention import attended
from fewer.models.cache_layer import Asked, Engine, Memory

from .steps import Step
from .ways import Ways, ways_of

WHOLE = Budget(Fraction(1))


def acting(model: nn.Module, s: Step) -> dict[nn.Module, Ways]:
    """The modules that a step acts on, and how, were its budget everything."""
    every = ways_of(model, (replace(s, budget=WHOLE),))
    return {m: w for m, w in every.items() if w.prefill or w.decode or w.forget}


@dataclass(eq=False)
class Heard(Engine):
    """What is asked of each module, answered densely."""

    inner: Any
    asked: dict[nn.Module, list[Asked]] = field(default_factory=dict)

    def memory(self, module: nn.Module) -> Memory:
        raise RuntimeError("the model is only listened to: run it without a cache")

    def attend(self, module: nn.Module, asked: Asked, memory: Memory | None) -> Tensor:
        self.asked.setdefault(module, []).append(asked)
        return self.inner.attend(module, asked, None)


def heard(model: nn.Module, ids: Int[Tensor, "windows length"]) -> dict[nn.Module, list[Asked]]:
    """What each attention module is asked when the dense model reads each window."""
    from .attending import Attending

    engine = Heard(Attending(ways_of(model, ())))
    with attended(model, engine), at_rest(model):
        for row in ids:
            model(input_ids=row[None].to(device_of(model)), use_cache=False)
    return engine.asked


def slots_of(model: nn.Module, s: Step) -> dict[nn.Module, tuple[Ways, Asked, float]]:
    """What one token takes at each module of a step, in bytes as it is stored, by storing some."""
    ways, out = acting(model, s), {}
    asked = heard(model, torch.zeros(1, 2, dtype=torch.long))
    for module, w in ways.items():
        (one,), n = asked[module], 64 * w.page
        store = Store(w.page, w.form)
        k, v = (x[:, :, :1].expand(-1, -1, n, -1).contiguous() for x in (one.k, one.v))
        store.append(k, v, torch.arange(n, dtype=torch.int32, device=k.device)[None])
        if w.forget and w.forget.counts_received:
            store.put("received", torch.zeros(k.shape[:3], device=k.device))
        store.settle()
        out[module] = w, one, store.bytes / n
    return out
