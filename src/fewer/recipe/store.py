"""Directories that appear whole or not at all: written beside their place, moved there in one step."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fewer.core.replace import exchange


def check_place(out: str | Path, force: bool) -> None:
    """Refuse, before any work, a place where nothing can be put."""
    out = Path(out)
    if out.exists() and not force:
        raise ValueError(f"{out} exists; write --force (force=True) to replace it once the new one is whole")
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} is no directory to write {out.name} in")


class Store:
    """A directory in the making: `OUT.partial` until `finish` moves it to `OUT`.

    Each file is written under another name, synced, then renamed, so that what is there is whole. A killed run leaves
    `OUT.partial`, which the next run with the same `key` goes on with; `OUT` itself is not touched before the end.
    """

    def __init__(self, out: str | Path, key: str, force: bool = False):
        self.out = Path(out)
        self.partial = self.out.with_name(self.out.name + ".partial")
        check_place(self.out, force)
        if self.partial.exists() and self._key() != key:
            shutil.rmtree(self.partial)  # another job's leavings
        self.partial.mkdir(exist_ok=True)
        self.text("job.json", json.dumps({"key": key}))

    def _key(self) -> str | None:
        try:
            return json.loads((self.partial / "job.json").read_text())["key"]
        except (OSError, ValueError, KeyError):
            return None

    def has(self, name: str) -> bool:
        return (self.partial / name).exists()

    def path(self, name: str) -> Path:
        return self.partial / name

    def text(self, name: str, text: str) -> None:
        part = self.partial / f".{name}.part"
        part.write_text(text)
        self._settle(part, name)

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """One more JSON object in a log."""
        with (self.partial / name).open("a") as log:
            log.write(json.dumps(line) + "\n")

    def tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        part = self.partial / f".{name}.part"
        whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        try:
            save_file(whole, part, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as wrong:  # a full disk, say
            raise OSError(
                f"{name} cannot be written to {self.partial}: {wrong}; what is finished stays there, and the same command "
                "goes on with it"
            ) from wrong
        self._settle(part, name)

    def _settle(self, part: Path, name: str) -> None:
        """Synced, readable to whom a new file would be, under its own name: in that order."""
        part.chmod(0o666 & ~_umask())
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self.partial / name)

    def finish(self) -> Path:
        """Put the whole in its place. An old `OUT` stays until the very moment the new one stands there."""
        (self.partial / "job.json").unlink()
        if self.out.exists():
            exchange(self.partial, self.out)
            shutil.rmtree(self.partial) if self.partial.is_dir() else self.partial.unlink()
        else:
            self.partial.rename(self.out)
        return self.out


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
