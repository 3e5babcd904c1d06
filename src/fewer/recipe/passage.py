"""Where the tokens of a model's run stand: the first of a text, or later ones; padding aside."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .forwarded import forwarded, named
from .phases import FEW

if TYPE_CHECKING:
    from .gating import Gating


@dataclass(frozen=True)
class Passage:
    """One run of a model: `places` says how many real tokens of its text came before each token."""

    places: Int[Tensor, "rows tokens"]
    real: Bool[Tensor, "rows tokens"]
    first: bool  # a text begins

    @property
    def phase(self) -> str:
        return "prefill" if self.first or self.places.shape[1] > FEW else "decode"

    def of(self, x: Tensor, name: str, told: Tensor) -> Tensor:
        """`told`, of each token, in the order in which x has them; ValueError if x holds others."""
        if x.shape[:-1].numel() != self.places.numel():
            raise ValueError(
                f"{name} hears {x.shape[:-1].numel()} of {self.places.numel()} tokens, and which they are is not told; leave it out"
            )
        return told if told is x or (told.ndim == x.ndim and told.shape == x.shape) else told.reshape(x.shape[:-1])


def passage_of(args: tuple, kwargs: dict[str, Any]) -> Passage | None:
    """What a model's `forward` is given; None without token ids or vectors in their place."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    ids = kwargs.get("inputs_embeds") if ids is None else ids
    if not isinstance(ids, Tensor) or ids.ndim < 2 or "pixel_values" in kwargs:
        return None
    rows, new = ids.shape[:2]
    past = kwargs[name].get_seq_length() if (name := named(kwargs)) else 0
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= new:
        mask = mask[:, : past + new].bool()
        return Passage((mask.cumsum(1) - 1).clamp(min=0)[:, -new:], mask[:, -new:], past == 0)
    places = torch.arange(past, past + new, device=ids.device).expand(rows, -1)
    return Passage(places, torch.ones_like(places, dtype=torch.bool), past == 0)


@contextlib.contextmanager
def passing(model: nn.Module, engine: "Gating") -> Iterator[None]:
    """Each run of the model tells the engine where its tokens stand."""
    original = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        engine.passage = passage_of(args, kwargs)
        if name := named(kwargs):
            _follow(kwargs[name], engine)
        try:
            return original(*args, **kwargs)
        finally:
            engine.passage = None
            engine.opened.clear()

    with forwarded(model, forward):
        yield


def _follow(cache: Cache, engine: "Gating") -> None:
    """Beams that change places in a cache do so in what gates remember."""
    if "reorder_cache" in vars(cache):
        return
    before = cache.reorder_cache

    def reorder_cache(beam_idx: Tensor) -> None:
        before(beam_idx)
        engine.reorder(beam_idx)

    cache.reorder_cache = reorder_cache  # type: ignore[method-assign]
