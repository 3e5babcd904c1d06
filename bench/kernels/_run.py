"""One long call on a GPU, in parts: written after each, so that a part that fails or comes too late loses nothing of the others."""

import json
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import torch

from . import _device as device


class Run:
    """What has been found so far, in the folder that OUT names, else in `folder`, under `file`."""

    def __init__(self, limit: float, parts: str, folder: pathlib.Path, file: str):
        self.wanted, self.begin, self.limit = re.compile(parts), time.time(), limit
        self.bandwidth = device.copy_bandwidth()
        self.place = pathlib.Path(os.environ.get("OUT") or folder) / file
        self.found: dict[str, Any] = {"machine": device.machine(self.bandwidth), "failed": {}, "skipped": []}

    def part(self, name: str, do: Callable[..., object], *args: object) -> None:
        """Do it if it is wanted and there is time; what it gives, if anything, is kept under its name."""
        if not self.wanted.search(name):
            return
        if time.time() - self.begin > self.limit:
            self.found["skipped"].append(name)
            return
        try:
            if (gave := do(*args)) is not None:
                self.found[name] = gave
        except Exception as why:
            self.found["failed"][name] = f"{type(why).__name__}: {str(why)[:600]}"
        if device.CUDA:
            torch.cuda.empty_cache()
        gave = json.dumps(self.found[name])[:1500] if name in self.found else self.found["failed"].get(name, "")
        print(f"[{time.time() - self.begin:4.0f} s] {name} {gave}", flush=True)
        self.write()

    def write(self) -> None:
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.place.write_text(json.dumps(self.found, indent=1) + "\n")

    def time(
        self, what: dict, calls: dict[str, list], size: dict[str, int], replays: int = 20, graphs: bool = True
    ) -> None:
        """A result for each call; `size` in bytes tells what part of the time the memory needs."""
        failed: dict[str, str] = {}
        rows = []
        for name, t in device.interleaved(calls, replays, failed, graphs).items():
            of_bound = {} if name not in size else {"of_bound": size[name] / self.bandwidth / t["seconds"]}
            rows.append(what | {"name": name} | t | of_bound | ({"bytes": size[name]} if name in size else {}))
        self.found.setdefault("results", []).extend(rows)
        label = " ".join(str(v) for v in what.values())
        for r in rows:
            spread = f"({r['q25'] * 1e6:.1f}-{r['q75'] * 1e6:.1f})"
            print(f"{label} {r['name']}: {r['seconds'] * 1e6:.1f} us {spread} {r.get('of_bound', 0):.0%}", flush=True)
        for name, why in failed.items():
            print(f"FAILED {label} {name}: {why}"[:300], flush=True)
        self.found["failed"] |= {f"{label} {name}": why for name, why in failed.items()}
