"""Duo: retrieval heads remember, streaming heads do not."""

import json
import math
from pathlib import Path

import torch

from fewer.cache import Allocator, Counts, Score
from fewer.cache._plan import check_plan, room
from fewer.core import Paper, method

TITLE = "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads"
HEADS, SIZES = "full_attention_heads.tsv", "config.json"


@method(Paper("2410.10819", TITLE, 2024))
class Duo(Allocator):
    """Let the `streaming` share of heads that retrieve least keep `sinks` + `recent` tokens, the others what that saves.

    Used with `cache/streaming_llm`. `gates` are learnt numbers, layers x kv_heads, 1 for a head that retrieves.
    `Duo.load(folder)` reads the authors' `full_attention_heads.tsv` and `config.json`.

    Differs from the paper: the retrieval heads keep all that a budget allows, not all; what they cannot take goes back to the
    streaming heads. Without `gates` all heads are alike.

    Of 2 x 6 slots the streaming head keeps 1 + 2.

    >>> duo = Duo(((0.9, 0.1),), sinks=1, recent=2)
    >>> duo.allocate(torch.zeros(1, 2, 20), torch.tensor([[6, 6]]), layer=0, layers=1)
    tensor([[9, 3]])
    """

    gates: tuple[tuple[float, ...], ...] = ()
    streaming: float = 0.5
    sinks: int = 128  # the authors' "sink_size" and "recent_size"
    recent: int = 256

    @classmethod
    def load(cls, folder: str | Path, streaming: float = 0.5) -> "Duo":
        """The heads of a folder of the authors'. ValueError names the file and what is wrong with it."""
        heads, sizes = Path(folder) / HEADS, Path(folder) / SIZES
        try:
            gates = tuple(
                tuple(float(x) for x in line.split()) for line in heads.read_text().splitlines() if line.strip()
            )
        except ValueError as error:
            raise ValueError(f"{heads}: one number for each head, a line for each layer; {error}") from None
        if not gates or len({len(row) for row in gates}) > 1 or not all(map(math.isfinite, sum(gates, ()))):
            raise ValueError(f"{heads}: one finite number for each head, lines of equal length, one for each layer")
        try:
            config = json.loads(sizes.read_text())
            sinks, recent = config["sink_size"], config["recent_size"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{sizes}: an object with sink_size and recent_size; {error!r}") from None
        if not all(type(n) is int and n >= 0 for n in (sinks, recent)):
            raise ValueError(f"{sizes}: sink_size and recent_size count tokens, not {sinks!r} and {recent!r}")
        return cls(tuple(tuple(min(1.0, max(0.0, x)) for x in row) for row in gates), streaming, sinks, recent)

    def allocate(self, score: Score, counts: Counts, layer: int, layers: int) -> Counts:
        there = room(score)
        counts = counts.minimum(there)
        if not self.gates:
            return counts
        check_plan(self.name, self.gates, layers, counts.shape[1])
        gates = torch.tensor(self.gates)
        least = gates.flatten().argsort(stable=True)[: round(gates.numel() * self.streaming)]
        streams = torch.zeros(gates.numel(), dtype=torch.bool).index_fill(0, least, True).view_as(gates)
        s, f = int(streams.sum()), int((~streams).sum())
        if not s or not f:
            return counts
        total = (s + f) * counts
        stream = counts.clamp(max=self.sinks + self.recent).maximum((total - f * there) // s)
        return torch.where(streams[layer].to(counts.device), stream, (total - s * stream) // f).minimum(there)
