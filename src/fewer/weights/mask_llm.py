"""MaskLLM: which N of every M weights stay is learnt through the whole model's loss; the weights stay what they are."""

import difflib
import functools
import itertools
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.core import Budget, Paper, Site, method
from fewer.weights import Keep, Learnt, Weight

TITLE = "MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models"
Logits = Float[Tensor, "groups candidates"]


@method(Paper("2409.17481", TITLE, 2024, ledger=386, equation="eq. 6 to 10"))
class MaskLlm(Learnt):
    """Keep the N of every M weights that were learnt, with the weights frozen, to lower the whole model's loss.

    Each group of M weights has a logit p for each of its C(M, N) masks S (six for 2:4). A step of training at progress t
    in 0 ... 1 draws Gumbel noise g and uses the soft mask sum_i y_i S_i, y = softmax((scale p + g) / temperature); scale
    and temperature move linearly. The loss is the model's less `reward` sum ||mask * W||^2, which holds gradients up.
    A prior mask M0 adds prior * std(p) * (<M0, S> - N^2 / M) to the first logits. In the end the largest logit decides.

    `fewer train weights/mask_llm 2:4 --model MODEL -o masks.npz` learns; `weights/mask_llm(file=masks.npz) 2:4` applies, then
    correctors may follow. The file is the authors' own form, so their published masks can be applied too: for each
    weight, by its name in the checkpoint (`.mask` after it or not), `np.packbits` of its mask in the order in which the
    checkpoint stores it, 1 = keep. Parts of a fused map share its array; a transposed one (`Conv1D`) is stored
    transposed, though its groups of M run along its inputs, as everywhere here.

    Differs from the paper: nothing in the rule; by default a run is shorter and its batches smaller (`fewer train --help`).

    Two weights of which one stays, logits 0 and 0.02: at first softmax(0, 100 * 0.02 / 4), in the end the larger:

    >>> logits = torch.tensor([[0.00, 0.02]])
    >>> MaskLlm().soft(logits, torch.zeros(1, 2), budget("1:2"), progress=0.0).round(decimals=4)
    tensor([[0.3775, 0.6225]])
    >>> MaskLlm().hard(logits, budget("1:2"))
    tensor([[False,  True]])
    """

    quick = False

    file: str = ""  # what was learnt
    scale_from: float = 100.0  # the paper's kappa, "from 1e2"
    scale_to: float = 500.0  # "to 5e2"
    temperature_from: float = 4.0  # the paper's tau
    temperature_to: float = 0.05
    prior: float = 3.0  # the paper's alpha, in standard deviations of the logits
    reward: float = 1e-5  # the paper's lambda

    def soft(self, logits: Logits, noise: Logits, budget: Budget, progress: float) -> Float[Tensor, "groups m"]:
        """The mask of each group in training: a mean of the candidates, which noise and annealing make a choice."""
        scale = self.scale_from + (self.scale_to - self.scale_from) * progress
        temperature = self.temperature_from + (self.temperature_to - self.temperature_from) * progress
        return ((scale * logits + noise) / temperature).softmax(-1) @ candidates(budget).to(logits)

    def hard(self, logits: Logits, budget: Budget) -> Bool[Tensor, "groups m"]:
        """The mask in the end."""
        return candidates(budget).to(logits.device)[logits.argmax(-1)]

    def towards(self, logits: Logits, keep: Bool[Tensor, "groups m"], budget: Budget) -> Logits:
        """First logits that lean to a mask that is known."""
        alike = keep.to(logits) @ candidates(budget).to(logits).mT - cast(int, budget.keep) ** 2 / budget.group
        return logits + self.prior * logits.std() * alike

    @property
    def files(self) -> tuple[Path, ...]:
        return (Path(self.file),) if self.file else ()

    def at(self, site: Site, budget: Budget) -> Keep:
        if not self.file:
            raise ValueError(
                f"{self.name} has learnt nothing yet: `fewer train {self.name} 2:4 --model MODEL -o masks.npz`, then write "
                f"'{self.name}(file=masks.npz) 2:4'"
            )
        candidates(budget)
        masks = _masks(self.file, Path(self.file).stat().st_mtime_ns if Path(self.file).exists() else 0)
        name, shape = weight_name(site), tuple(site.tensor.shape)
        if name not in masks:
            close = ", ".join(difflib.get_close_matches(name, masks, 3) or sorted(masks)[:3])
            raise ValueError(f"{self.file} holds no mask for {name}; close: {close}")
        count = int(np.prod(shape))
        if masks[name].size != -(-count // 8):
            raise ValueError(
                f"{self.file}: the mask of {name} has {masks[name].size} bytes, {shape} needs {-(-count // 8)}"
            )
        bits = torch.from_numpy(np.unpackbits(masks[name], count=count).astype(bool)).reshape(shape)
        keep = _seen_as(site, bits).read().contiguous()
        if bool((keep.reshape(-1, budget.group).sum(1) != budget.keep).any()):
            there = keep.reshape(-1, budget.group).sum(1)
            raise ValueError(
                f"budget '{budget}': the mask of {site.name} in {self.file} keeps {int(there.min())} to {int(there.max())} "
                f"of every {budget.group}; write the budget that it was learnt for"
            )
        return keep


def candidates(budget: Budget) -> Bool[Tensor, "candidates m"]:
    """All masks that a group of M may have, in lexical order. `ValueError` if the budget is no N:M of single weights.

    >>> candidates(Budget(1, 2)).int().tolist()
    [[1, 0], [0, 1]]
    """
    if not budget.group or budget.unit != (1, 1):
        raise ValueError(
            f"budget '{budget}': weights/mask_llm chooses among the masks of a group; write 2:4, or another N:M"
        )
    chosen = torch.tensor(list(itertools.combinations(range(budget.group), cast(int, budget.keep))))
    return torch.zeros(len(chosen), budget.group, dtype=torch.bool).scatter_(1, chosen, True)


def weight_name(site: Site) -> str:
    """The name in the checkpoint of the tensor that a site is, or is a part of.

    >>> weight_name(Site("h.0.attn.c_attn[q]", torch.nn.Linear(4, 4)))
    'h.0.attn.c_attn.weight'
    """
    base = site.name.partition("[")[0]
    return base if base.rpartition(".")[2] == site.param else f"{base}.{site.param}"


def _seen_as(site: Site, tensor: Tensor) -> Site:
    """The same site of a tensor of the same shape."""
    return replace(site, module=cast(Any, SimpleNamespace(**{site.param: tensor})))


def whole_masks(masks: Mapping[Site, Weight | Keep]) -> dict[str, Tensor]:
    """Masks of sites as masks of whole weights, by name, differentiably; of what no site is, everything stays."""
    whole: dict[str, Tensor] = {}
    for site, mask in masks.items():
        name = weight_name(site)
        if name not in whole:
            whole[name] = torch.ones(site.tensor.shape, dtype=mask.dtype, device=mask.device)
        place = whole[name] if site.index is None else whole[name][site.index]
        place = place.mT if site.transposed else place
        place[slice(None) if site.part is None else site.part] = mask
    return whole


def write_masks(path: str | Path, masks: Mapping[str, Bool[Tensor, "..."]]) -> None:
    """Write masks by name of weight, in the authors' form; the file appears whole or not at all."""
    packed = {name: np.packbits(mask.cpu().numpy(), axis=None) for name, mask in masks.items()}
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, **packed)  # type: ignore[arg-type]
    part.replace(path)


@functools.lru_cache(maxsize=2)
def _masks(file: str, changed: int) -> dict[str, np.ndarray]:
    """The packed masks of a file, by name of weight; nothing in it is run."""
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"no masks at {file}; learn some: `fewer train weights/mask_llm 2:4 --model MODEL -o {file}`"
        )
    try:
        with np.load(file, allow_pickle=False) as opened:
            found = {name.removesuffix(".mask"): opened[name] for name in opened.files}
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile) as wrong:
        raise ValueError(
            f"{file} is no file of masks (an .npz with one array of packed bits a weight): {wrong}"
        ) from None
    if bad := [name for name, bits in found.items() if bits.dtype != np.uint8]:
        raise ValueError(
            f"{file}: {bad[0]} is {found[bad[0]].dtype}, not packed bits (uint8): this is no file of masks"
        )
    return found
