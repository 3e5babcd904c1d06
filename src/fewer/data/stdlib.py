"""The Python standard library of the running interpreter: real text that needs no download."""

import hashlib
import pathlib
import sys
import sysconfig
from typing import NamedTuple

PARTS = ("calibration", "validation", "test")

# Not code that somebody wrote to be read: tables (`encodings`), generated help (`pydoc_data`); and whole programs that
# distributions often leave out.
SKIPPED_MODULES = {"encodings", "pydoc_data", "idlelib", "turtledemo", "lib2to3", "ensurepip", "test"}
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "_bundled", "__pycache__"}


class Document(NamedTuple):
    """A text and where it came from."""

    name: str
    text: str


def stdlib(part: str) -> list[Document]:
    """The source files of one part of the standard library, sorted by name.

    A top-level module or package is one unit and lies wholly in one part, chosen by a hash of its name: about a quarter
    of the modules are for calibration, a quarter for validation, half for test. The split never changes; the texts are
    those of the running Python, so numbers compare exactly between machines of the same Python version (distributions
    that leave modules out, such as `tkinter`, excepted). Tests and tables are skipped: see `SKIPPED_MODULES`. Raises
    `ValueError` for another `part` than `"calibration"`, `"validation"` and `"test"`.

    >>> part_of("asyncio"), part_of("datetime"), part_of("difflib")
    ('test', 'calibration', 'validation')
    """
    check_part(part)
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    names = sorted(n for n in sys.stdlib_module_names if n not in SKIPPED_MODULES and part_of(n) == part)
    files = [f for n in names for f in (sorted((root / n).rglob("*.py")) or [root / f"{n}.py"]) if f.is_file()]
    found = [(f.relative_to(root).as_posix(), f) for f in files if not SKIPPED_FOLDERS & set(f.relative_to(root).parts)]
    texts = (Document(name, f.read_text(encoding="utf-8", errors="replace")) for name, f in found)
    return [d for d in texts if d.text.strip()]


def part_of(name: str) -> str:
    """Where a module or a file lies: the first byte of SHA-256 of the name, a quarter, a quarter and a half of it."""
    byte = hashlib.sha256(name.encode()).digest()[0]
    return "calibration" if byte < 64 else "validation" if byte < 128 else "test"


def check_part(part: str) -> None:
    if part not in PARTS:
        raise ValueError(f"no part {part!r} of a corpus; write one of: {', '.join(PARTS)}")
