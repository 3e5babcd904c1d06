"""Learning N:M masks through the loss of the whole model, which is never changed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from fewer.core import Budget, Site
from fewer.models import sites
from fewer.weights.mask_llm import MaskLlm, candidates, weight_name, whole_masks, write_masks

from .kept import Kept, job_of
from .learner import Learner
from .loop import Told, Training, train

Judge = Callable[[Callable[..., object], Tensor], Float[Tensor, ""]]


def next_token(model: Callable[..., object], ids: Int[Tensor, "count length"]) -> Float[Tensor, ""]:
    """The loss of a language model: nats a token, mean over all tokens but the first of each window."""
    logits = model(ids, use_cache=False).logits  # type: ignore[attr-defined]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@dataclass(frozen=True, eq=False)
class Masks(Learner[MaskLlm]):
    """Learn the masks of `model` at `where` and write them at `out`. A killed run goes on where it was, to the bit.

    The forward pass uses weight * soft mask in place of each weight (`torch.func.functional_call`); the model's own
    tensors are read and never written. `prior` are masks that are known, by site, to begin near; `judge` is the loss.
    """

    model: nn.Module
    out: Path
    where: str = "*"
    how: Training = Training()  # noqa: RUF009  frozen
    prior: Mapping[str, Bool[Tensor, "out in"]] | None = None
    judge: Judge = next_token
    told: Told | None = None
    force: bool = False  # to replace the state of a run with other settings

    def fit(self, method: MaskLlm, budget: Budget, batches: Iterable[Tensor]) -> MaskLlm:
        candidates(budget)  # refuses what is no N:M
        found = sites(self.model, self.where)
        for site in found:
            budget.check(*site.shape)
        weights = {name: p for name, p in self.model.named_parameters() if not p.is_meta}
        owners = {weight_name(site): site for site in found}
        if strange := [name for name in owners if name not in weights]:
            raise ValueError(
                f"{strange[0]} is no plain weight of {type(self.model).__name__}; learn from the dense model"
            )
        logits = self._first(method, budget, found)
        kept = Kept(self.out, self._key(method, budget, weights, batches), force=self.force)

        def loss(batch: Tensor, progress: float) -> Tensor:
            soft = {s: _soft(method, logits[s.name], budget, progress).reshape(s.shape) for s in found}
            masked = {name: weights[name] * mask for name, mask in whole_masks(soft).items()}
            held = sum(w.float().square().sum() for w in masked.values())

            def model(*args: object, **how: object) -> object:
                return functional_call(self.model, masked, args, how)

            return self.judge(model, batch) - method.reward * held

        train(logits, loss, batches, self.how, kept, self.told)
        hard = {s: method.hard(logits[s.name].detach(), budget).reshape(s.shape) for s in found}
        write_masks(self.out, whole_masks(hard))
        kept.finish()
        return replace(method, file=str(self.out))

    def _first(self, method: MaskLlm, budget: Budget, found: list[Site]) -> dict[str, Tensor]:
        """Logits from N(0, 0.01), leaning to the prior where there is one."""
        make, first = torch.Generator().manual_seed(self.how.seed), {}
        for site in found:
            rows, cols = site.shape
            shape = (rows * cols // budget.group, len(candidates(budget)))
            p = 0.01 * torch.randn(shape, generator=make)
            if self.prior is not None:
                p = method.towards(p, self.prior[site.name].cpu().reshape(-1, budget.group), budget)
            first[site.name] = p.to(site.tensor.device).requires_grad_()
        return first

    def _key(self, method: MaskLlm, budget: Budget, weights: Mapping[str, Tensor], batches: Iterable[Tensor]) -> str:
        """Which job this is: the same masks would be learnt by the same one only."""
        said = f"{method} {budget} {self.where} {replace(self.how, save_after=0.0)}"
        return job_of(said, [*weights.items(), *(self.prior or {}).items()], batches)


def _soft(method: MaskLlm, logits: Tensor, budget: Budget, progress: float) -> Tensor:
    noise = -torch.empty_like(logits).exponential_().log()  # Gumbel's
    return method.soft(logits, noise, budget, progress)
