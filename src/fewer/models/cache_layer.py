"""What a model's attention asks for, who answers, and a layer of transformers' cache that remembers as the answerer likes."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin


@dataclass(frozen=True)
class Asked:
    """What a model's attention module asks for: softmax(scale q.k) v, of new tokens over old ones and themselves.

    `q, k, v` are those of the new tokens, rotated; behind a key may stand what else is to be remembered of its token. `real` is False at padding, `[batch, tokens so far]`; `mask`, if there is
    one, says which query may read which token instead, `[batch, 1 or heads, new, tokens so far]`. `window`: only the last so
    many; `cap`: scores are cap tanh(score / cap); `sinks`: a score of each head that takes part in the softmax and has no
    value. `causal` is False for encoders. `x` are the hidden states that the module was given for the new tokens;
    `turn` rotates vectors of heads at the new tokens' places as the model rotates `q` and `k`, if it does.
    """

    q: Float[Tensor, "batch heads new dim"]
    k: Float[Tensor, "batch kv_heads new wide"]
    v: Float[Tensor, "batch kv_heads new out"]
    scale: float
    real: Bool[Tensor, "batch tokens"] | None = None
    mask: Bool[Tensor, "batch _heads new tokens"] | None = None
    window: int = 0
    cap: float = 0.0
    sinks: Float[Tensor, " heads"] | None = None
    causal: bool = True
    x: Float[Tensor, "batch new hidden"] | None = None
    turn: Callable[[Tensor], Tensor] | None = None

    def places(self, seen: int) -> Int32[Tensor, "batch new"]:
        """Where the new tokens stand, after so many; -1: padding."""
        new = self.q.shape[2]
        at = torch.arange(seen, seen + new, dtype=torch.int32, device=self.q.device).expand(len(self.q), -1)
        return at if self.real is None else at.masked_fill(~self.real[:, -new:].bool(), -1)

    def alone(self) -> tuple[Int32[Tensor, "batch kv_heads tokens"], Int32[Tensor, "batch new"]]:
        """Where its keys and its queries stand if there is nothing before: the last query at the last key; -1: padding."""
        keys, new = self.k.shape[2], self.q.shape[2]
        at = torch.arange(keys, dtype=torch.int32, device=self.q.device).expand(len(self.q), -1)
        if self.real is not None:
            at = at.masked_fill(~self.real.bool(), -1)
        now = at[:, keys - new :] if keys >= new else at.new_full((len(self.q), new), keys)
        return at[:, None].expand(-1, self.k.shape[1], -1), now


class Memory(ABC):
    """What is remembered of one layer: made by the engine, kept by a layer of transformers' cache."""

    seen: int  # tokens, padding too
    rows: int  # of the batch
    engine: "Engine"

    @property
    def bare(self) -> Any:
        """Itself; of one that is watched, what is watched."""
        return self

    @abstractmethod
    def crop(self, tokens: int) -> None:
        """Forget the last so many."""

    @abstractmethod
    def pick(self, rows: Tensor) -> None:
        """These rows of the batch, in this order."""


class Engine(ABC):
    """Who does the attention of a model's modules."""

    @property
    def bare(self) -> Any:
        """Itself; of one that is watched, what is watched."""
        return self

    @abstractmethod
    def memory(self, module: nn.Module) -> Memory:
        """An empty one for this module."""

    @abstractmethod
    def attend(self, module: nn.Module, asked: Asked, memory: Memory | None) -> Float[Tensor, "batch heads new out"]:
        """Do it; without a memory, over what is asked alone."""


class Layer(CacheLayerMixin):
    """One layer of transformers' cache whose content is a `Memory`: its length is that of all tokens there have been."""

    is_sliding = False
    is_croppable = True

    def __init__(self, memory: Memory, sliding: bool = False) -> None:
        super().__init__()
        self.memory, self.is_sliding, self.awaited = memory, sliding, False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, cache_kwargs: Any = None, kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The new ones alone: the attention that comes next takes them in."""
        if not self.awaited:
            raise RuntimeError(
                "this cache was filled inside `fewer.apply(...)`, and a model now reads it outside: stay inside to go on with "
                "it, or begin with an empty cache"
            )
        self.is_initialized, self.awaited = True, False
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.memory.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.memory.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.memory.crop(abs(tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.memory.seen:
            self.memory.pick(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.memory.seen:
            self.memory.pick(torch.arange(self.memory.rows).repeat_interleave(repeats))

    def reset(self) -> None:
        if self.memory.seen:
            self.memory.crop(self.memory.seen)
