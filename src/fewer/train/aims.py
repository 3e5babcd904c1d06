"""What a dictionary in a running model is to keep as it was: its predictions, and perhaps what later sites say."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Run:
    """What a model said of some windows, and what it said at some sites on the way."""

    ids: Int[Tensor, "windows length"]
    logits: Float[Tensor, "windows length vocab"]
    heard: Mapping[str, Float[Tensor, "windows length dim"]]
    real: Bool[Tensor, "windows length"]  # where the dictionary speaks


class Aim(ABC):
    """How far a run with the dictionary is from the model's own; lower is better."""

    sites: tuple[str, ...] = ()  # what must be heard in both runs

    @abstractmethod
    def of(self, run: Run, own: Run) -> Float[Tensor, ""]:
        """The mean over the tokens that are predicted, in nats if nothing else is said."""


@dataclass(frozen=True)
class Kl(Aim):
    """KL(own || with the dictionary) of the next-token distributions, nats a token: the same as in `measure.quality`
    (Braun et al. 2024, 2405.12241, L_e2e without its L1)."""

    def of(self, run: Run, own: Run) -> Float[Tensor, ""]:
        p, q = (F.log_softmax(each.logits[:, :-1].float(), -1) for each in (own, run))
        return F.kl_div(q.flatten(0, 1), p.flatten(0, 1), reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Ce(Aim):
    """Cross entropy of the text's own next token, nats a token; the model's own run counts for nothing."""

    def of(self, run: Run, own: Run) -> Float[Tensor, ""]:
        return F.cross_entropy(run.logits[:, :-1].flatten(0, 1).float(), run.ids[:, 1:].flatten())


@dataclass(frozen=True)
class Downstream(Aim):
    """Another aim, and what later sites say: plus `weight` times the share of their variance that is missed, mean over sites
    (Braun et al. 2024, 2405.12241, L_e2e+ds).

    Differs from the paper: the squared error of a site is divided by its variance in the batch, so that neither the model's
    scale nor its width matters; there it is the plain mean, times 2.5 beside 0.5 KL.
    """

    sites: tuple[str, ...]
    first: Aim = Kl()
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.sites:
            raise ValueError("Downstream names no sites: give those after the dictionary's, such as ('layers.6',)")

    def of(self, run: Run, own: Run) -> Float[Tensor, ""]:
        missed = [_missed(own.heard[name][own.real], run.heard[name][own.real]) for name in self.sites]
        return self.first.of(run, own) + self.weight * torch.stack(missed).mean()


def _missed(truth: Float[Tensor, "n dim"], said: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    truth, said = truth.float(), said.float()
    return (said - truth).square().sum() / (truth - truth.mean(0)).square().sum().clamp(min=1e-12)
