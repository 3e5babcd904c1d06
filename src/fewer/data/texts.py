"""Text from anywhere: the standard library, a file, a folder, JSON lines, a Hugging Face dataset."""

import json
import pathlib
import re

from .stdlib import Document, check_part, part_of, stdlib

TEXT_FILES = {
    *(".md", ".rst", ".tex", ".txt", ".py", ".pyi", ".c", ".cc", ".cpp", ".h", ".hpp", ".go", ".java", ".js", ".ts"),
    *(".rs", ".sh", ".sql", ".css", ".html", ".xml", ".cfg", ".ini", ".toml", ".yaml", ".yml"),
}
FORMS = "write 'stdlib', a text file, a folder, 'lines.jsonl:field' or 'hf:name@config/split:field'"


def corpus(source: str, part: str | None = None) -> list[Document]:
    """The documents of a source, all of them or one part.

    | source | documents |
    |---|---|
    | `stdlib` | the modules of the running Python (always in parts; by default its test part) |
    | `notes.txt` | the file; its parts are its first quarter of lines, the second, the last half |
    | `folder` | its text files at any depth, sorted by name, hidden ones left out |
    | `lines.jsonl:field` | the field (by default `text`) of each line |
    | `hf:name/split:field`, `hf:name@config/split:field` | the field of each row; needs the extra `fewer[data]` |

    Parts are by a hash of each document's name (a path in the folder, a row number), as in `stdlib`.
    Raises `ValueError` if nothing is there, `ModuleNotFoundError` if `datasets` is needed and missing.
    """
    if part is not None:
        check_part(part)
    if source == "stdlib":
        return stdlib(part or "test")
    found = _documents(source, part)
    found = [d for d in found if d.text.strip()]
    if not found:
        raise ValueError(f"no text in {source!r}" + (f" for the part {part!r}: give more documents" if part else ""))
    return found


def _documents(source: str, part: str | None) -> list[Document]:
    path = pathlib.Path(source)
    if source.startswith("hf:"):
        found = _hugging_face(source)
    elif match := re.fullmatch(r"(.*\.jsonl)(?::(.+))?", source):
        found = _json_lines(pathlib.Path(match[1]), match[2] or "text")
    elif path.is_file():
        return [_cut(_read(path, path.name), part)]
    elif path.is_dir():
        found = _folder(path)
    else:
        raise ValueError(f"no corpus {source!r}: {FORMS}")
    return [d for d in found if part is None or part_of(d.name) == part]


def _cut(document: Document, part: str | None) -> Document:
    lines = document.text.splitlines(keepends=True)
    a, b = len(lines) // 4, len(lines) // 2
    mine = {None: lines, "calibration": lines[:a], "validation": lines[a:b], "test": lines[b:]}[part]
    return Document(document.name, "".join(mine))


def _folder(path: pathlib.Path) -> list[Document]:
    files = sorted((f for f in path.rglob("*") if f.suffix in TEXT_FILES and f.is_file()), key=lambda f: f.as_posix())
    named = ((f.relative_to(path), f) for f in files)
    return [_read(f, name.as_posix()) for name, f in named if not any(p.startswith(".") for p in name.parts)]


def _read(file: pathlib.Path, name: str) -> Document:
    return Document(name, file.read_text(encoding="utf-8", errors="replace"))


def _json_lines(file: pathlib.Path, field: str) -> list[Document]:
    if not file.is_file():
        raise ValueError(f"no file {str(file)!r}: {FORMS}")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [_row(i, row, field, str(file)) for i, row in enumerate(rows)]


def _hugging_face(source: str) -> list[Document]:
    match = re.fullmatch(r"hf:(?P<name>[^@:]+?)(?:@(?P<config>[^/:]+))?/(?P<split>[^/:]+):(?P<field>.+)", source)
    if not match:
        raise ValueError(f"cannot read {source!r}: write 'hf:name/split:field' or 'hf:name@config/split:field'")
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"{source!r} needs the package datasets: pip install 'fewer[data]', or use 'stdlib', which needs nothing"
        ) from missing
    rows = load_dataset(match["name"], match["config"], split=match["split"])
    return [_row(i, row, match["field"], source) for i, row in enumerate(rows)]


def _row(i: int, row: dict, field: str, source: str) -> Document:
    if field not in row:
        raise ValueError(f"row {i} of {source!r} has no field {field!r}; it has: {', '.join(row)}")
    return Document(str(i), row[field])
