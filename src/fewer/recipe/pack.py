"""From what survived at each site to modules that hold nothing else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from fewer.core import Site
from fewer.layout import Dense, Layout
from fewer.models import SparseLinear, join


def packed(
    model: nn.Module, sites: Sequence[Site], stored: Mapping[str, Any], choose: Callable[[Layout], Layout] | None = None
) -> dict[str, SparseLinear]:
    """A `SparseLinear` for every linear module that the stored sites are (parts of), by module name.

    What has no packed module keeps its dense tensors, with zeros in them: embeddings, stacked experts, and maps that
    packing would not make smaller. `choose` gives each map another layout, `Dense` too: for speed, say.
    """
    names = {id(module): name for name, module in model.named_modules()}
    parts: dict[int, list[Site]] = {}
    for site in sites:
        if site.name in stored and _packs(site):
            parts.setdefault(id(site.module), []).append(site)
    out = {}
    for key, here in parts.items():
        first = stored[here[0].name]
        whole = len(here) == 1 and here[0].part is None
        layout, low_rank = (
            (first.layout, first.low_rank)
            if whole
            else join([(s, stored[s.name].layout, stored[s.name].low_rank) for s in here])
        )
        layout = layout if choose is None else choose(layout)
        around = first.around if whole else None  # none in parts: whoever makes them needs a module to itself
        new = any(stored[s.name].bias is not None for s in here)
        if choose is not None or low_rank or around or new or not isinstance(layout, Dense):
            out[names[key]] = SparseLinear.from_linear(here[0].module, layout, low_rank, around)
    return out


def _packs(site: Site) -> bool:
    linear = isinstance(site.module, nn.Linear) or type(site.module).__name__ == "Conv1D"
    return linear and site.param == "weight" and site.index is None
