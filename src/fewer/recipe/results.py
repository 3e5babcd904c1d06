"""What was measured is not measured again: one small JSON file a point, named by the key of its job."""

import json
import os
import tempfile
from pathlib import Path

from .point import Point


def folder() -> Path:
    """`$FEWER_CACHE`, else `fewer` in the user's cache directory."""
    if own := os.environ.get("FEWER_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewer"


def recall(key: str) -> Point | None:
    """The point of that key; a file that cannot be read is as good as none."""
    try:
        return Point.from_dict(json.loads((folder() / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(key: str, point: Point) -> None:
    """Keep a point. The file appears whole or not at all, whoever else writes the same."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=place, suffix=".part", delete=False, encoding="utf-8") as file:
        json.dump(point.as_dict(), file)
    os.replace(file.name, place / f"{key}.json")
