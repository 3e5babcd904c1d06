"""fewer: neural networks that compute less, and what that costs.

    import fewer

    with fewer.apply(model, "weights/wanda 2:4 @ *.mlp.*", data):  # undone exactly on leaving
        ...
    fewer.sparsify("path/to/model", "weights/sparse_gpt 50%", out="smaller")
    model = fewer.load("smaller")

Importing this loads neither torch nor transformers; using it does. Once it is imported, transformers' `from_pretrained`
opens the models that it packed.
"""

import importlib
import importlib.util
import sys
import warnings
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


class _Teacher:
    """Waits for transformers' models to be imported, and tells transformers then how packed ones are opened.

    A finder that finds one module, once, with all other finders' help, and leaves: nothing else of the imports changes.
    """

    module = "transformers.modeling_utils"  # everything that opens a model passes through it

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and (loader := spec.loader) is not None:
            run = loader.exec_module

            def run_and_teach(module: Any) -> None:
                loader.__dict__.pop("exec_module")
                run(module)
                self.teach()

            loader.__dict__["exec_module"] = run_and_teach
        return spec

    @staticmethod
    def teach() -> None:
        try:
            importlib.import_module("fewer.models.hub")
        except ImportError as error:  # transformers itself must go on
            warnings.warn(f"transformers cannot open fewer's packed models: {error}", stacklevel=2)


if _Teacher.module in sys.modules:
    _Teacher.teach()
else:
    sys.meta_path.insert(0, _Teacher())


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(importlib.import_module(f"fewer.{_FACE[name]}"), name)
    raise AttributeError(f"module 'fewer' has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
