"""Open a model: the bundled one, a directory, or a name on the hub; refuse what is none before heavy work."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from . import compressed_tensors
from .checkpoint import Checkpoint
from .sites import every_site

BUNDLED = Path(str(files("fewer.models") / "bundled"))
# The head that an architecture's name ends in -> the class that builds it; anything else is opened without a head.
HEADS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}


def open_model(name_or_path: str | Path, device: str = "cpu", dtype: str = "float32") -> tuple[nn.Module, Any]:
    """A model in eval mode without gradients, and its tokenizer (None if it has none).

    `"bundled"` is the 10M-parameter model that comes with the package; else a directory with `config.json` and
    `*.safetensors`, or a name on the hub. Raises `ValueError` for anything else, for weights that are missing, left
    over or not finite, and for an unknown `dtype`.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"not a dtype for weights: {dtype!r}; write 'float32', 'bfloat16' or 'float16'")
    place = locate(name_or_path)
    config = _config(place)
    if (getattr(config, "quantization_config", None) or {}).get("quant_method") == "fewer":
        from . import hub as hub  # teaches transformers to open what we packed
    if told := compressed_tensors.told(config):
        from huggingface_hub import snapshot_download

        place = place if Path(place).is_dir() else snapshot_download(place)
    if told or _foreign(place):
        from .lazy import open_packed

        model = open_packed(place, dtype).to(device)
        check_finite(model)
        return model, tokenizer_of(place)
    with _quiet(), weights_of(name_or_path):
        model, told = auto_class(config).from_pretrained(
            place,
            config=config,
            dtype=kind,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, with the other misfits
        )
    _complain(str(name_or_path), told)
    model = model.to(device).eval().requires_grad_(False)
    check_finite(model)
    return model, tokenizer_of(place)


def _foreign(place: str) -> bool:
    """Whether another tool stored maps of this directory in a way of its own."""
    with weights_of(place):
        return Path(place).is_dir() and bool(Checkpoint(Path(place)).foreign)


def locate(name_or_path: str | Path) -> str:
    """The directory of a model, or its name on the hub; `ValueError` if a directory is no model."""
    path = BUNDLED if str(name_or_path) == "bundled" else Path(name_or_path)
    if not path.exists():
        if str(name_or_path).count("/") > 1 or str(name_or_path).startswith((".", "/", "~")):
            raise ValueError(f"no such directory: {name_or_path}; write 'bundled', a directory, or a name on the hub")
        return str(name_or_path)
    if not path.is_dir():
        raise ValueError(f"{path} is a file, not a model; write the directory that holds its config.json")
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is no model: it has no config.json")
    if not any(path.glob("*.safetensors")):
        pickles = [p.name for p in (*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"))]
        why = (
            f"only {', '.join(sorted(pickles))}: read weights from safetensors, pickles can run code" if pickles else ""
        )
        raise ValueError(f"{path} is no model: it has no *.safetensors" + (f", {why}" if why else ""))
    return str(path)


def _config(place: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(place)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"cannot open the model {place!r}; write 'bundled', a directory with config.json and *.safetensors, or a "
            f"name on the hub that can be reached ({str(error).splitlines()[0]})"
        ) from error


def auto_class(config: Any) -> Any:
    """The transformers class that builds the architecture in the config, head included."""
    import transformers

    name = (getattr(config, "architectures", None) or [""])[0]
    kind = next((auto for end, auto in HEADS.items() if name.endswith(end)), "AutoModel")
    return getattr(transformers, kind)


def _complain(name: str, told: dict[str, Any]) -> None:
    """Weights that were not there would be random, weights left over would be lost: both are errors."""
    faults = {
        "lacks the weights": told.get("missing_keys"),
        "has weights that the model does not know": told.get("unexpected_keys"),
        "has weights of the wrong shape": told.get("mismatched_keys"),
    }
    for fault, keys in faults.items():
        if keys:
            some = ", ".join(sorted(str(k) for k in keys)[:3])
            raise ValueError(f"{name} {fault} {some}{' ...' if len(keys) > 3 else ''}")


@contextmanager
def weights_of(name_or_path: str | Path) -> Iterator[None]:
    """A file that is cut short or broken is a `ValueError` that names the model."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot read the weights of {name_or_path} from safetensors: {why}") from error


def tokenizer_of(place: str) -> Any:
    """The tokenizer of a directory or a name on the hub; None for a model that has none."""
    path = Path(place)
    if path.is_dir() and not any(
        (path / n).is_file() for n in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    ):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError):  # a vision model on the hub
        return None


def check_finite(model: nn.Module) -> None:
    """Raise `ValueError` naming the first weights that are NaN or infinite, by site where they belong to one."""
    for name, p in model.named_parameters():
        if not p.is_meta and not torch.isfinite(p).all():
            bad = int((~torch.isfinite(p)).sum())
            raise ValueError(
                f"the weights of {_site_of(model, name)} are not finite: {bad} of {p.numel()} are NaN or inf"
            )


def _site_of(model: nn.Module, parameter: str) -> str:
    names = lambda s: (s.name.partition("[")[0], f"{s.name.partition('[')[0]}.{s.param}")  # noqa: E731
    inside = [s for s in every_site(model) if parameter in names(s)]
    return next((s.name for s in inside if not torch.isfinite(s.read()).all()), parameter)


class _quiet:
    """transformers prints a table of what it did not load; we raise instead."""

    def __enter__(self) -> None:
        from transformers.utils import logging as bars

        self.log = logging.getLogger("transformers")
        self.level = self.log.level
        self.log.setLevel(logging.ERROR)
        self.bars = bars if bars.is_progress_bar_enabled() else None
        bars.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        self.log.setLevel(self.level)
        if self.bars:
            self.bars.enable_progress_bar()
