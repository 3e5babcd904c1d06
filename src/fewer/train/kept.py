"""What a run must remember to go on to the bit: one safetensors file with a note in it, and a log of JSON lines."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .sharing import ALONE, Sharing


class Kept:
    """`OUT.partial`: parameters and both moments of AdamW after some step. Noise and data are functions of the step.

    The file appears whole or not at all. A run with another `key` does not go on with it. Of several processes the first
    writes, what all hold together, to a disk that all see.
    """

    def __init__(self, out: str | Path, key: str, by: Sharing = ALONE):
        self.file, self.by = Path(f"{out}.partial"), by
        self.log, self.key = Path(f"{out}.jsonl"), hashlib.sha256(key.encode()).hexdigest()

    def save(self, done: int, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Keep the state after `done` steps."""
        tensors = {f"value/{name}": p.detach() for name, p in parameters.items()}
        for name, p in parameters.items():
            tensors |= {f"{word}/{name}": t for word, t in optimizer.state[p].items()}
        tensors = self.by.whole(tensors, everywhere=False)
        if self.by.crew.rank:
            return
        part = self.file.with_name(f".{self.file.name}.part")
        note = {"note": json.dumps({"key": self.key, "done": done})}
        try:
            save_file({k: t.cpu().contiguous() for k, t in tensors.items()}, part, metadata=note)
        except SafetensorError as wrong:
            raise OSError(f"the state of the run cannot be written to {self.file}: {wrong}") from wrong
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self.file)

    def load(self, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
        """Put the state back and say how many steps were done: 0 if there is none of this job."""
        done = self._done()
        if len(seen := {*self.by.crew.gather(done)}) > 1:
            raise ValueError(
                f"processes see {self.file} after different steps ({seen}): it must be on a disk that all see"
            )
        if done:
            with safe_open(self.file, "pt") as file, torch.no_grad():
                names = list(file.keys())
                for name, p in parameters.items():
                    words = [n.partition("/")[0] for n in names if n.partition("/")[2] == name]
                    held = self.by.mine({f"{word}/{name}": file.get_tensor(f"{word}/{name}") for word in words})
                    state = {n.partition("/")[0]: t for n, t in held.items()}
                    p.copy_(state.pop("value"))
                    optimizer.state[p] = {w: t if w == "step" else t.to(p.device) for w, t in state.items()}
        if self.by.crew.rank:
            return done
        lines = self.log.read_text().splitlines()[:done] if self.log.exists() and done else []
        self.log.write_text("".join(f"{line}\n" for line in lines))
        return done

    def _done(self) -> int:
        try:
            with safe_open(self.file, "pt") as file:
                note = json.loads(file.metadata()["note"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return 0
        return note["done"] if note["key"] == self.key else 0

    def tell(self, row: Mapping[str, Any]) -> None:
        """One more line in the log."""
        if self.by.crew.rank:
            return
        with self.log.open("a") as log:
            log.write(json.dumps(row) + "\n")

    def finish(self) -> None:
        """What was learnt stands in its place now; the log stays."""
        self.file.unlink(missing_ok=True)
