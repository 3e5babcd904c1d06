"""fewer: neural networks that compute less, and what that costs.

    import fewer

    with fewer.apply(model, "weights/wanda 2:4 @ *.mlp.*", data):  # undone exactly on leaving
        ...
    fewer.sparsify("path/to/model", "weights/sparse_gpt 50%", out="smaller")
    model = fewer.load("smaller")

Importing this loads neither torch nor transformers; using it does.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_FACE = {
    "apply": "recipe",
    "sparsify": "recipe",
    "fast": "recipe.fast",
    "load": "recipe",
    "save": "recipe",
    "frontier": "recipe.frontier",
    "budget": "core",
    "find": "core",
    "methods": "core",
    "axes": "core",
    "check_method": "testing",
}
__all__ = [*_FACE, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(importlib.import_module(f"fewer.{_FACE[name]}"), name)
    raise AttributeError(f"module 'fewer' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
