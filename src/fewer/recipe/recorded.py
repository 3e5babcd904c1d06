"""Decoding as CUDA graphs: a step of one token is recorded once, and replayed for those that follow."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewer.models.cache_layer import Memory

from .attending import Attending
from .forwarded import forwarded, given
from .remembered import Remembered

SHAPES = 1024  # that torch may compile
AHEAD = 1024  # tokens that there is room for when a recording is made


class Tape:
    """What a step told the GPU, kept by CUDA."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def record(self, do: Callable[[], Any]) -> Any:
        """Note what `do` would tell; nothing is done yet."""
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph):
            return do()

    def play(self) -> None:
        self.graph.replay()


@dataclass(eq=False)
class _Take:
    """One recording: what it is given, what it gives, and what must lie where it lay."""

    tape: Tape
    ids: Tensor
    positions: Tensor
    answer: Any
    memories: list[Remembered]
    state: tuple
    seen: int  # the tokens there were when it was last played


class Recorded:
    """A model's `forward` that records its steps of one token. All others, and those it cannot record, are done as ever.

    The new token of every row counts as real. A recording is made anew when what is remembered has moved: after tokens were
    forgotten, rows exchanged, or `ahead` tokens.
    """

    def __init__(self, model: nn.Module, engine: Attending, compiled: bool = False, ahead: int = AHEAD):
        self.engine, self.ahead, self.plain = engine, ahead, model.forward
        self.step = torch.compile(model.forward, dynamic=False) if compiled else model.forward  # of one token
        self.take: _Take | None = None
        self.ready: tuple | None = None  # what a step was last done for as ever, so that the next can be recorded

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `model.forward` is meanwhile."""
        ids, name, memories = given(args, kwargs)
        if ids is None or not self._can(ids, kwargs) or not self._ours(memories, kwargs[name].layers if name else []):
            return self.plain(*args, **kwargs)
        for m in memories:
            if m.store.room < 1:
                m.store.ahead(self.ahead)
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.full_like(ids, memories[0].seen)
        t = self.take
        if t is None or t.memories != memories or t.state != _state(memories, ids):
            return self._begin(name, memories, ids, positions, kwargs)
        if t.seen != memories[0].seen:  # others came between: whatever is due is done first
            out = self._step(**self._given(name, ids, positions, kwargs))
            t.seen = memories[0].seen
            return out
        t.ids.copy_(ids)
        t.positions.copy_(positions)
        t.tape.play()
        for m in memories:
            m.stepped()
        t.seen += 1
        return t.answer

    @staticmethod
    def _can(ids: Tensor, kwargs: dict[str, Any]) -> bool:
        if ids.ndim != 2 or ids.shape[1] != 1 or torch.is_grad_enabled():
            return False
        return not any(kwargs.get(k) for k in ("output_attentions", "output_hidden_states")) and not any(
            kwargs.get(k) is not None for k in ("labels", "inputs_embeds")
        )

    def _ours(self, memories: list[Memory], layers: list[Any]) -> bool:
        """Whether a cache is wholly ours, and nothing is due that the host must do."""
        mine = bool(layers) and len(memories) == len(layers) and all(m.engine is self.engine for m in memories)
        return mine and all(m.seen and m.plain_step for m in memories)

    def _recording(self, memories: list[Remembered], given: dict[str, Any]) -> Any:
        for m in memories:
            m.recording = True
        try:
            return self._step(**given)
        finally:
            for m in memories:
                m.recording = False

    def _step(self, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=SHAPES):  # each layer has a number, and is compiled by itself
            return self.step(**kwargs)

    def _begin(
        self, name: str, memories: list[Remembered], ids: Tensor, positions: Tensor, kwargs: dict[str, Any]
    ) -> Any:
        """The first time a step is done as ever, with room for those to come; the second time it is recorded."""
        state = _state(memories, ids)
        if self.ready != (memories, state):
            for m in memories:
                m.store.ahead(self.ahead)
            out = self._step(**self._given(name, ids, positions, kwargs))  # whatever is due is done
            self.ready = memories, _state(memories, ids)
            return out
        ids, positions = ids.clone(), positions.clone()
        given = self._given(name, ids, positions, kwargs)
        tape, before = Tape(), memories[0].seen
        answer = tape.record(lambda: self._recording(memories, given))
        tape.play()
        self.take = _Take(tape, ids, positions, answer, memories, state, before + 1)
        return answer

    @staticmethod
    def _given(name: str, ids: Tensor, positions: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a step is given, in a recording and before it."""
        more = {k: x for k, x in kwargs.items() if k in ("use_cache", "return_dict", "logits_to_keep")}
        return {"input_ids": ids, "position_ids": positions, name: kwargs[name]} | more


def _state(memories: list[Remembered], ids: Tensor) -> tuple:
    """What a recording of the next step takes for granted."""
    return (
        ids.shape,
        *(
            (m.store.version, m.ways.decode is not None and m.saves_at(m.store.longest + 1), id(m.digests))
            for m in memories
        ),
    )


@contextlib.contextmanager
def recorded(model: nn.Module, engine: Attending, compiled: bool = False, ahead: int = AHEAD) -> Iterator[Recorded]:
    """While this is open, steps of one token are recorded and replayed; with `compiled`, by torch first, all but attention.

    ValueError if the model is not on one GPU.
    """
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        raise ValueError(
            f"record=True records CUDA graphs: the model must lie on one GPU, not on {sorted(map(str, devices))}"
        )
    here = Recorded(model, engine, compiled, ahead)
    with forwarded(model, here._forward):
        yield here
