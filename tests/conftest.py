"""Every shape in every signature is checked while the tests run; compiled kernels keep their own counsel."""

import hashlib
import os
import pathlib
from fractions import Fraction

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


def pytest_addoption(parser):
    parser.addoption(
        "--share", default="1", help="run so many of all tests, such as 3/5: others at each commit (`.ci/run`)"
    )
    parser.addoption("--draw", default="", help="what draws them, such as a commit's name")


def pytest_collection_modifyitems(config, items):
    """All tests are run by `make test`; where time is limited, a part of them, drawn by name."""
    share, draw = Fraction(config.getoption("--share")), config.getoption("--draw")
    if share >= 1:
        return

    def first(item):
        return int(hashlib.sha256(f"{draw} {item.nodeid}".encode()).hexdigest()[:8], 16) < share * 2**32

    config.hook.pytest_deselected(items=[i for i in items if not first(i)])
    items[:] = [i for i in items if first(i)]
