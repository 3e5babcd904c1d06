"""What a model's answer costs: the loss that gradients are taken of."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as SPEAKERS

from .feed import first_of

Loss = Callable[[Tensor, Tensor], Tensor]  # (what the model answers, what it was asked) -> a mean over both's rows


def next_token(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean cross entropy of every token given those before it, in nats: logits `[windows, length, words]`."""
    return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def loss_of(model: nn.Module) -> Loss:
    """The loss that a model is trained for, where that can be known: next-token cross entropy for a language model."""
    if type(model).__name__ not in SPEAKERS.values():
        raise ValueError(
            f"a step asks for gradients, and {type(model).__name__} is no causal language model: say of what loss "
            "(loss=a function of the answer and the data that gives a mean over windows)"
        )
    return next_token


def answer_of(output: object) -> Tensor:
    """The logits in what a model returns, or its first tensor."""
    if isinstance(output, Tensor):
        return output
    if (found := getattr(output, "logits", None)) is not None:
        return found
    return first_of(output if isinstance(output, tuple) else output.to_tuple())  # type: ignore[attr-defined]
