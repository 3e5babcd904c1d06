"""In which form a sparse model is written: ours, plain tensors with zeros, or that of another tool."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from fewer.core import Site
from fewer.kernels import fastest
from fewer.layout import Layout, Quantised, Spqr
from fewer.models import SparseLinear, compressed_tensors, hub
from fewer.models.foreign import WRITTEN, Written

from .pack import packed

Tensors = dict[str, Tensor]


class Format(ABC):
    """How survivors become tensors in a file, and what config.json says about it.

    `holds_bias`: whether there is a place for the bias of a map whose architecture has none; `holds_widths`: for layers
    that are narrower than the architecture says.
    """

    name: str
    holds_bias: bool = False
    holds_widths: bool = True

    def modules(self, model: nn.Module, sites: Sequence[Site], stored: Mapping[str, Any]) -> dict[str, SparseLinear]:
        """The modules that are in place while the model's tensors are taken."""
        return {}

    def encode(self, tensors: Tensors, touched: Sequence[Site]) -> tuple[Tensors, dict[str, Any]]:
        """What is written for plain tensors, and what must be remembered of each map that was changed."""
        return tensors, {}

    @abstractmethod
    def describe(self, model: nn.Module, told: Mapping[str, Any], share: float) -> dict[str, Any]:
        """The `quantization_config` of the whole; empty if there is nothing to say.

        `told` is what was remembered, by name of map; `share` is how much of what was touched is zero.
        """


class Packed(Format):
    """What survived and nothing else, in the smallest of our layouts."""

    name = "packed"
    holds_bias = True

    def modules(self, model: nn.Module, sites: Sequence[Site], stored: Mapping[str, Any]) -> dict[str, SparseLinear]:
        return packed(model, sites, stored)

    def describe(self, model: nn.Module, told: Mapping[str, Any], share: float) -> dict[str, Any]:
        return {"quant_method": "fewer", "version": hub.VERSION, "sites": dict(told)} if told else {}


class Fast(Packed):
    """What survived, each map in the layout that the measured costs find fastest for one token."""

    name = "fast"

    def modules(self, model: nn.Module, sites: Sequence[Site], stored: Mapping[str, Any]) -> dict[str, SparseLinear]:
        return packed(model, sites, stored, quickest)


def quickest(layout: Layout, tokens: int = 1, dtype: torch.dtype = torch.float32) -> Layout:
    """The same map where it runs fastest; codes stay codes."""
    if isinstance(layout, Quantised | Spqr):
        return layout
    return fastest(layout.dense(), layout.keep(), tokens, dtype)


class Plain(Format):
    """Tensors with zeros: every tool loads them, no byte is saved."""

    name = "dense"

    def describe(self, model: nn.Module, told: Mapping[str, Any], share: float) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Foreign(Format):
    """As another tool writes them: each `nn.Linear` that this way can hold and makes smaller; the rest is plain."""

    way: Written
    holds_widths = False

    @property
    def name(self) -> str:
        return self.way.name

    def encode(self, tensors: Tensors, touched: Sequence[Site]) -> tuple[Tensors, dict[str, Any]]:
        out, told = dict(tensors), {}
        for name in dict.fromkeys(s.name.partition("[")[0] for s in touched if isinstance(s.module, nn.Linear)):
            w = tensors.get(f"{name}.weight")
            parts = None if w is None else self.way.write(w)
            if w is not None and parts is not None and sum(t.nbytes for t in parts.values()) < w.nbytes:
                del out[f"{name}.weight"]
                out |= {name + ending: t for ending, t in parts.items()}
                told[name] = {}
        return out, told

    def describe(self, model: nn.Module, told: Mapping[str, Any], share: float) -> dict[str, Any]:
        return compressed_tensors.describe(model, self.way, told, share) if told else {}


FORMATS: dict[str, Format] = {f.name: f for f in (Packed(), Fast(), Plain(), *map(Foreign, WRITTEN.values()))}


def find_format(name: str) -> Format:
    """The format of that name; `LookupError` names all of them."""
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS, n=1)
        raise LookupError(f"no format {name!r}; there are: {', '.join(FORMATS)}" + (f"; {near[0]}?" if near else ""))
    return FORMATS[name]
