"""KVzap: what the model would read when it says the text again, guessed from each token's hidden state."""

from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, linear

from fewer.cache import ByScore, Counts, Keep, Past, Score
from fewer.cache._scores import with_recent
from fewer.core import Paper, method

Layers = list[list[tuple[Tensor, Tensor]]]  # of each layer its maps, one after another, each (weight, bias)


@method(Paper("2601.07891", "KVzap: Fast, Adaptive, and Faithful KV Cache Pruning", 2026))
class KvZap(ByScore):
    """Keep the newest `recent` tokens and those to whom a small learnt network gives most, from the hidden state alone.

    score = W x + b, or W2 gelu(W1 x + b1) + b2, a number for each key-value head; it is taken when a token comes, and kept beside its key.
    `file` is a safetensors of `layers.N.weight` and `.bias`, or `layers.N.0` and `layers.N.2`: those of nvidia/KVzap-linear-* and -mlp-*.

    Differs from the paper: what scores below a threshold goes there, here what a budget does not keep; they take half of the budget at most.

    >>> past = Past.of(torch.zeros(1, 1, 4, 1))
    >>> from dataclasses import replace
    >>> KvZap(recent=1).evict(replace(past, noted=torch.tensor([[[0.0, 3.0, 1.0, -2.0]]])), torch.tensor([[2]]))
    tensor([[[False,  True, False,  True]]])
    """

    quick = False
    file: str = ""
    recent: int = 128

    def note(self, past: Past) -> Score:
        layers, here = _layers(self.file), past.layer or 0
        if past.x is None or here >= len(layers) or layers[here][0][0].shape[1] != past.x.shape[-1]:
            wide = None if past.x is None else past.x.shape[-1]
            shape = [tuple(w.shape) for w, _ in layers[min(here, len(layers) - 1)]]
            raise ValueError(
                f"{self.file}: {len(layers)} layers of maps {shape}; asked for layer {here} of width {wide}"
            )
        x = past.x.float()
        for i, (w, b) in enumerate(layers[here]):
            x = linear(gelu(x) if i else x, w.to(x.device), b.to(x.device))
        if x.shape[-1] != past.k.shape[1]:
            raise ValueError(f"{self.file}: scores for {x.shape[-1]} heads, and there are {past.k.shape[1]}")
        return x.mT

    def score(self, past: Past) -> Score:
        return past.noted

    def evict(self, past: Past, counts: Counts) -> Keep:
        return with_recent(past, past.noted, (counts // 2).clamp(max=self.recent), counts)


@lru_cache(maxsize=4)
def _layers(file: str) -> Layers:
    """The maps of each layer. ValueError names the file and what is wrong with it."""
    try:
        there = {name: x.float() for name, x in load_file(Path(file)).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: no safetensors of scorers; {error}") from None
    there = {name.removeprefix("module_list.").removeprefix("layers."): x for name, x in there.items()}
    out: Layers = []
    while maps := [m for m in (f"{len(out)}.", f"{len(out)}.0.", f"{len(out)}.2.") if m + "weight" in there]:
        out.append([(there[m + "weight"], there[m + "bias"]) for m in maps])
    if not out or 2 * sum(map(len, out)) != len(there):
        raise ValueError(
            f"{file}: 'layers.N.weight' and 'layers.N.bias', or those of 'layers.N.0' and 'layers.N.2', are wanted; "
            f"there is {', '.join(sorted(there)[:3])}, ..."
        )
    return out
