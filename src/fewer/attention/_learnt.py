"""What a pattern has learnt of each attention module: tensors by name, a value like any other, kept in one safetensors file."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ._protocol import ByScore, Key, Query, Score, in_blocks, newest

__all__ = ["NONE", "Held", "Learnt", "Mass", "Shape", "divergence", "pooled", "read_parts", "write_parts"]

Mass = Float[Tensor, "batch heads queries keys"]


class Held(Mapping[str, Tensor]):
    """Tensors by name, as a value: two are equal if all their tensors are.

    >>> a, b = Held({"w": torch.ones(2)}), Held({"w": torch.ones(2)})
    >>> a == b, hash(a) == hash(b), a == Held({"w": torch.zeros(2)}), a
    (True, True, False, Held(w [2]))
    """

    def __init__(self, tensors: Mapping[str, Tensor] = {}) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held) or self._shapes() != other._shapes():
            return False
        return all(t is other[name] or torch.equal(t, other[name]) for name, t in self.items())

    def __hash__(self) -> int:
        return hash(self._shapes())

    def __repr__(self) -> str:
        return f"Held({', '.join(f'{name} {list(shape)}' for name, shape in self._shapes())})"

    def to(self, device: torch.device) -> "Held":
        return Held({name: t.to(device) for name, t in self.items()})

    def _shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple(sorted((name, tuple(t.shape)) for name, t in self.items()))


NONE = Held()


@dataclass(frozen=True)
class Shape:
    """What parts are made for: an attention module's heads, those of its keys, their width, and that of its input."""

    heads: int
    kv_heads: int
    dim: int
    hidden: int = 0
    layer: int = 0


class Learnt(ByScore):
    """A pattern whose scores are learnt, for each attention module apart, from what the frozen model's own attention reads.

    `file` holds what was learnt of all modules (`fewer train`), `parts` is that of one: `at` puts it in. Without either it
    says something sensible.
    """

    file: str = ""
    parts: Held = NONE

    @abstractmethod
    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        """The parts of one module before the first step; training moves them."""

    @abstractmethod
    def truth(self, mass: Mass) -> Score:
        """What the softmax of the scores is to be, of the true attention's probabilities: whole blocks of queries at a time."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Where it is kept: a result depends on what is in there."""
        return (Path(self.file),) if self.file else ()

    def at(self, module: str) -> "Learnt":
        if self.parts or not self.file:
            return self
        every = read_parts(self.file)
        if module not in every:
            raise ValueError(f"{self.file} holds nothing of {module}; it knows {', '.join(sorted(every)[:3])}, ...")
        return replace(self, parts=every[module])


def divergence(m: Learnt, q: Query, k: Key, truth: Score) -> Float[Tensor, ""]:
    """KL(truth || softmax of the scores), nats, the mean over blocks of queries; of the future neither says anything.

    >>> from fewer.attention.seer import Seer
    >>> q, k = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    >>> truth = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    >>> divergence(Seer(rows=1, block=1), q, k, truth)  # 0 and log 2
    tensor(0.3466)
    """
    score = m.score(q, m.digest(k))
    block = torch.arange(score.shape[-1], device=score.device)
    future = block > newest(q, k.shape[2], m)[:, None]
    said = score.float().masked_fill(future, -torch.inf).log_softmax(-1).masked_fill(future, 0.0)
    truth = truth.detach().float()
    return (torch.special.xlogy(truth, truth) - truth * said).sum(-1).mean()


def pooled(mass: Mass, m: Learnt) -> Score:
    """The largest probability in each block, as shares of their sum: SeerAttention's ground truth."""
    wide = torch.nn.functional.pad(mass, (0, -mass.shape[-1] % m.block)).unflatten(-1, (-1, m.block)).amax(-1)
    high = in_blocks(wide, m.rows).amax(3)
    return high / high.sum(-1, keepdim=True).clamp(min=1e-30)


def write_parts(path: str | Path, parts: Mapping[str, Mapping[str, Tensor]], note: Mapping[str, str]) -> None:
    """Write the parts of each module, by `module.part`; the file appears whole or not at all."""
    path = Path(path)
    tensors = {
        f"{module}.{name}": t.detach().cpu().contiguous() for module, p in parts.items() for name, t in p.items()
    }
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata={**note, "parts": " ".join(dict.fromkeys(n for p in parts.values() for n in p))})
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def read_parts(path: str | Path) -> dict[str, Held]:
    """What was learnt, by module. ValueError or FileNotFoundError say what is wrong with the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"nothing learnt at {path}; learn it: `fewer train attention/seer 10% -o {path}`")
    return _read(str(path), Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: str, changed: int) -> dict[str, Held]:
    try:
        tensors = load_file(path)
    except SafetensorError as wrong:
        raise ValueError(f"{path} is no safetensors file, in which what was learnt is kept: {wrong}") from None
    found: dict[str, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        module, part = _parted(name)
        found.setdefault(module, {})[part] = t
    return {module: Held(p) for module, p in found.items()}


def _parted(name: str) -> tuple[str, str]:
    """A tensor's module and its name within: an indexer is a module in its attention's, as checkpoints have it.

    >>> _parted("model.layers.0.self_attn.indexer.wk.weight"), _parted("h.0.attn.for_keys")
    (('model.layers.0.self_attn', 'indexer.wk.weight'), ('h.0.attn', 'for_keys'))
    """
    before, inner, after = name.partition(".indexer.")
    if inner:
        return before, f"indexer.{after}"
    module, _, part = name.rpartition(".")
    return module, part
