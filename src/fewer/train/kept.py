"""What a run must remember to go on to the bit: one safetensors file with a note in it, and a log of JSON lines."""

import contextlib
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .sharing import ALONE, Sharing


def job_of(said: str, tensors: Iterable[tuple[str, Tensor]], batches: Iterable[Tensor]) -> str:
    """Which job a run is, for `Kept`: what is said of it, the tensors it begins with, and what it learns from."""
    told = hashlib.sha256(said.encode())
    for name, t in tensors:
        told.update(f"{name} {tuple(t.shape)} {t.double().sum().item()!r}".encode())
    for batch in batches:
        told.update(batch.cpu().numpy().tobytes())
    return told.hexdigest()


class Kept:
    """`OUT.partial`: parameters and both moments of AdamW after some step. Noise and data are functions of the step.

    The file appears whole or not at all. A run with another `key` neither goes on with it nor, without `force`, replaces it.
    Of several processes the first writes, what all hold together, to a disk that all see.
    """

    def __init__(self, out: str | Path, key: str, by: Sharing = ALONE, force: bool = False):
        self.file, self.by, self.force = Path(f"{out}.partial"), by, force
        self.log, self.job, self.key = Path(f"{out}.jsonl"), key, hashlib.sha256(key.encode()).hexdigest()
        self.saved = 0  # steps, of what lies in the file

    def save(self, done: int, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Keep the state after `done` steps."""
        tensors = {f"value/{name}": p.detach() for name, p in parameters.items()}
        for name, p in parameters.items():
            tensors |= {f"{word}/{name}": t for word, t in optimizer.state[p].items()}
        tensors = self.by.whole(tensors, everywhere=False)
        if self.by.crew.rank:
            return
        part = self.file.with_name(f".{self.file.name}.part")
        note = {"note": json.dumps({"key": self.key, "done": done, "job": self.job})}
        try:
            save_file({k: t.cpu().contiguous() for k, t in tensors.items()}, part, metadata=note)
        except SafetensorError as wrong:
            raise OSError(f"the state of the run cannot be written to {self.file}: {wrong}") from wrong
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self.file)
        self.saved = done

    def load(self, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
        """Put the state back and say how many steps were done: 0 if there is none. ValueError: it is of another job."""
        done = self._done()
        if len(seen := {*self.by.crew.gather(done)}) > 1:
            raise ValueError(
                f"processes see {self.file} after different steps ({seen}): it must be on a disk that all see"
            )
        self.saved = done
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
        if not self.file.exists():
            return 0
        anew = "remove it, name another OUT, or write --force (force=True) to begin anew in its place"
        try:
            with safe_open(self.file, "pt") as file:
                note = json.loads(file.metadata()["note"])
            done, key, job = int(note["done"]), note["key"], str(note.get("job", ""))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as wrong:
            if self.force:
                return 0
            raise ValueError(f"{self.file} is no state of a run that can be read: {anew}") from wrong
        if key != self.key and not self.force:
            raise ValueError(
                f"{self.file} holds {done} steps of a run with other settings{_apart(job, self.job)}: {anew}"
            )
        return done if key == self.key else 0

    def tell(self, row: Mapping[str, Any]) -> None:
        """One more line in the log."""
        if self.by.crew.rank:
            return
        with self.log.open("a") as log:
            log.write(json.dumps(row) + "\n")

    def finish(self) -> None:
        """What was learnt stands in its place now; the log stays."""
        self.file.unlink(missing_ok=True)


class Rescue:
    """Around steps: whatever breaks in on them, an error or Ctrl-C, what was learnt in whole steps is kept first.

    A loss may have moved what is counted and not learnt (who spoke), so that is put back. Several processes do not do it:
    to keep what each holds is everybody's work, and one of them may be gone.
    """

    def __init__(self, kept: Kept | None, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer):
        self.kept, self.parameters, self.optimizer = kept, parameters, optimizer
        self.done, self.before, self.torn = 0, {}, False  # type: ignore[var-annotated]

    def begin(self) -> None:
        """A step begins: what it may change without learning is remembered."""
        if self.kept:
            self.before = {name: t.clone() for name, t in self.parameters.items() if not t.requires_grad}

    @contextlib.contextmanager
    def whole(self, done: int) -> Iterator[None]:
        """The step is taken here, and Ctrl-C waits for its end; after an error in it nothing is whole, and nothing is kept."""
        with _later():
            self.torn = True
            yield
            self.done, self.before, self.torn = done, {}, False

    def __enter__(self) -> "Rescue":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None or not self.kept or self.torn or self.kept.saved >= self.done or self.kept.by.crew.size > 1:
            return
        for name, t in self.before.items():
            self.parameters[name].copy_(t)
        self.kept.save(self.done, self.parameters, self.optimizer)


@contextlib.contextmanager
def _later() -> Iterator[None]:
    """Ctrl-C is heard at the end."""
    if threading.current_thread() is not threading.main_thread():  # no other hears it
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if heard:
        signal.raise_signal(signal.SIGINT)


def _apart(then: str, now: str) -> str:
    """The first setting in which two jobs differ, if they say any.

    >>> _apart("Lesson(steps=9, rate=0.1)", "Lesson(steps=9, rate=0.2)")
    ' (rate=0.1 there, rate=0.2 here)'
    """
    pairs = zip(*(re.split(r"[ ,()]+", text) for text in (then, now)), strict=False)
    a, b = next(((a, b) for a, b in pairs if a != b), ("", ""))
    return f" ({a[:80]} there, {b[:80]} here)" if "=" in a and "=" in b else ""
