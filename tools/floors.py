"""Who lives on which floor: imports go down, never sideways and never up. Change it only with docs/architecture.md."""

import pathlib

SOURCE = pathlib.Path(__file__).parents[1] / "src" / "fewer"
AXES = ("weights", "activations", "attention", "cache", "experts", "features", "finetune")
AXES += ("retrieval", "tokens", "spatial", "codes")

FLOORS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("layout",),
    ("kernels",),
    ("select", "calibrate", "data"),
    AXES,
    ("testing",),
    ("models", "measure"),
    ("recipe", "train", "dictionaries"),
    ("report",),
    ("cli",),
    ("__init__", "__main__"),  # the face: sees all, and nobody below sees it
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
NARROW = {"report": {"core", "measure"}}  # may see less than lies below


def room(path: pathlib.Path) -> str:
    """The room of a file: `weights` of `src/fewer/weights/wanda.py`."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")
