"""What a language model still knows: negative log-likelihood, perplexity, KL divergence to the dense model."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .estimate import Estimate, mean

Model = Callable[..., Any]  # model(input_ids=ids).logits
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Reference:
    """What the dense model said about `tokens`, exact and small: measure many sparse twins against one dense run.

    Logits would take `count * length * vocab` floats (half a gigabyte for 16k tokens of the bundled model). Kept
    instead is what enters the output head, `width` floats a token, and a copy of the head (16 MB + 8 MB there): the
    logits are computed again, window by window, by the same head, so they are the dense model's up to the last float32
    bit or two (a matrix product may round differently in another batch). Where the model does more after its head
    (Gemma's soft cap) or has no head to be found, the logits themselves are kept, in float32: mind the memory.
    """

    tokens: Int[Tensor, "count length"]
    inputs: list[Tensor]
    head: nn.Module

    @classmethod
    def of(
        cls, dense: Model, tokens: Int[Tensor, "count length"], batch: int = 4, progress: Progress | None = None
    ) -> "Reference":
        """Run the dense model once. Its head is copied: `dense` may be pruned in place afterwards."""
        head = dense.get_output_embeddings() if hasattr(dense, "get_output_embeddings") else None
        seen: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach())) if head else None
        inputs: list[Tensor] = []
        plain = False
        try:
            for at, logits in _runs(dense, tokens, batch, progress):
                if at == 0:  # decided once, on the first batch
                    plain = head is not None and len(seen) == 1 and _is_head(head, seen[0], logits)
                inputs += (seen[-1] if plain else logits.float()).clone().unbind(0)
                seen.clear()
        finally:
            if hook:
                hook.remove()
        return cls(tokens, inputs, _copied(head) if head is not None and plain else nn.Identity())

    def logits(self, at: int) -> Float[Tensor, "length vocab"]:
        """The dense logits of window `at`, float32."""
        with torch.no_grad():
            return self.head(self.inputs[at]).float()


@dataclass(frozen=True, eq=False)
class Quality:
    """Perplexity and KL to dense from one run, with what each window gave (nats per token), ready for `paired`."""

    perplexity: Estimate
    kl: Estimate
    nll: Float[Tensor, " count"]
    divergence: Float[Tensor, " count"]


def nll(
    model: Model, tokens: Int[Tensor, "count length"], batch: int = 4, progress: Progress | None = None
) -> Float[Tensor, " count"]:
    """The mean negative log-likelihood of each window's tokens but the first, in nats.

    Computed in float32, summed in float64. `model` is anything that gives `model(input_ids=ids).logits`; modules are put in eval mode meanwhile. Logits are
    held for one batch at a time: `batch * length * vocab` numbers.
    """
    runs = _runs(model, tokens, batch, progress)
    return torch.stack([_nll(w, tokens[at + i]) for at, logits in runs for i, w in enumerate(logits)])


def perplexity(
    model: Model, tokens: Int[Tensor, "count length"], batch: int = 4, progress: Progress | None = None
) -> Estimate:
    """exp of the mean negative log-likelihood over all predicted tokens (all but the first of each window).

    The interval is Student's over windows on the log scale, then exponentiated: windows are taken as independent,
    though neighbours out of one document resemble each other. For the difference of two models use `paired` on their
    `nll`.
    """
    return _exp(mean(nll(model, tokens, batch, progress)))


def kl(
    model: Model,
    dense: Model | Reference,
    tokens: Int[Tensor, "count length"],
    batch: int = 4,
    progress: Progress | None = None,
) -> Estimate:
    """KL(dense ‖ model) of the next-token distributions, in nats, mean over the same predictions as `perplexity`.

    `dense` is a `Reference` (run once, used often) or a model, run side by side.
    """
    return quality(model, dense, tokens, batch, progress).kl


def quality(
    model: Model,
    dense: Model | Reference,
    tokens: Int[Tensor, "count length"],
    batch: int = 4,
    progress: Progress | None = None,
) -> Quality:
    """Perplexity and KL to dense in one run of the model.

    Raises `ValueError` if the reference was made of other tokens.
    """
    if isinstance(dense, Reference) and not torch.equal(dense.tokens.cpu(), tokens.cpu()):
        raise ValueError("the reference saw other tokens: make it with Reference.of(dense, tokens) of these tokens")
    losses, divergences = [], []
    for at, logits in _runs(model, tokens, batch, progress):
        truth = _truth(dense, tokens, at, len(logits))
        for i, window in enumerate(logits):
            losses.append(_nll(window, tokens[at + i]))
            divergences.append(_kl(truth(i), window))
    ours, apart = torch.stack(losses), torch.stack(divergences)
    return Quality(_exp(mean(ours)), mean(apart), ours, apart)


def _truth(dense: Model | Reference, tokens: Tensor, at: int, size: int) -> Callable[[int], Tensor]:
    if isinstance(dense, Reference):
        return lambda i: dense.logits(at + i)
    logits = _forward(dense, tokens[at : at + size])
    return lambda i: logits[i]


def _runs(model: Model, tokens: Tensor, batch: int, progress: Progress | None) -> Iterator[tuple[int, Tensor]]:
    """The logits of one batch after the other, with the index of its first window."""
    if tokens.shape[1] < 2:
        raise ValueError("windows of one token predict nothing: give windows of at least 2 tokens")
    for at in range(0, len(tokens), batch):
        yield at, _forward(model, tokens[at : at + batch])
        if progress:
            progress(min(at + batch, len(tokens)), len(tokens))


def _forward(model: Model, ids: Tensor) -> Tensor:
    with at_rest(model):
        return model(input_ids=ids.to(device_of(model))).logits


@contextlib.contextmanager
def at_rest(model: Model) -> Iterator[None]:
    """No gradients, no dropout; every submodule's mode restored afterwards."""
    were = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for module, _ in were:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in were:
            module.training = training


def device_of(model: Model) -> torch.device:
    """Where the model wants its tokens."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


def _nll(logits: Float[Tensor, "length vocab"], ids: Int[Tensor, " length"]) -> Float[Tensor, ""]:
    each = F.cross_entropy(logits[:-1].float(), ids[1:].to(logits.device), reduction="none")
    return each.double().mean().cpu()


def _kl(dense: Float[Tensor, "length vocab"], ours: Float[Tensor, "length vocab"]) -> Float[Tensor, ""]:
    p = F.log_softmax(dense[:-1].to(ours.device, torch.float32), -1)
    q = F.log_softmax(ours[:-1].float(), -1)
    return (p - q).mul_(p.exp_()).sum(-1).double().mean().cpu()


def _exp(e: Estimate) -> Estimate:
    value, low, high = (math.exp(x) if x < 700 else math.inf for x in (e.value, e.low, e.high))
    return Estimate(value, low, high, e.n)


def _is_head(head: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Whether the logits are what the head says, and nothing came after it."""
    with torch.no_grad():
        again = _copied(head)(x).float()
    return again.shape == logits.shape and torch.allclose(again, logits.float(), rtol=1e-4, atol=1e-4)


def _copied(head: nn.Module) -> nn.Module:
    """A frozen copy that shares nothing, without the hooks that others may have hung on the original."""
    twin = copy.deepcopy(head).requires_grad_(False)
    twin._forward_pre_hooks.clear()
    twin._forward_hooks.clear()
    return twin
