"""Every shape in every signature is checked while the tests run; compiled kernels keep their own counsel."""

import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

if not torch.cuda.is_available():  # Triton reads this when it is first imported, by whichever test comes first
    os.environ["TRITON_INTERPRET"] = "1"

from jaxtyping import install_import_hook

ROOMS = [p.name for p in (pathlib.Path(__file__).parents[1] / "src" / "fewer").iterdir() if p.is_dir()]
install_import_hook(
    [f"fewer.{room}" for room in ROOMS if room not in ("kernels", "testing", "cli", "__pycache__")],
    "beartype.beartype",
)
