"""Another activation in a model's MLPs, in the config too, so that a saved model opens with it."""

from torch import nn
from transformers.activations import ACT2FN

ACTS = ("act_fn", "activation_fn", "act", "intermediate_act_fn", "activation", "activation_func")
WORDS = ("hidden_act", "activation_function", "hidden_activation")


def put_activation(model: nn.Module, name: str) -> None:
    """Make every MLP of `model`, in place, act by `name`, a word of transformers: relu, relu2, silu.

    Squared ReLU is relu2. ValueError: no such word, or a model whose config names no activation.
    """
    if name not in ACT2FN:
        raise ValueError(f"activation {name!r}: transformers knows {', '.join(sorted(ACT2FN))}")
    config = getattr(model, "config", None)
    words = [w for w in WORDS if isinstance(getattr(config, w, None), str)]
    homes = [
        (home, word) for home in model.modules() for word in ACTS if isinstance(getattr(home, word, None), nn.Module)
    ]
    if not words or not homes:
        raise ValueError(f"{type(model).__name__}: its config and modules name no activation to replace")
    for home, word in homes:
        setattr(home, word, ACT2FN[name])
    for word in words:
        setattr(config, word, name)
