"""Long-context benchmarks from files that somebody has: RULER, SCBench, LongBench; told by the columns of their rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tasks import Open, Task

RULER = {"context", "question", "answer_prefix", "answer", "max_new_tokens"}
SCBENCH = {"context", "multi_turns"}
LONGBENCH = {"context", "input", "answers"}
FORMS = "RULER (context, question, answer_prefix, answer, max_new_tokens), SCBench (context, multi_turns) or LongBench (context, input, answers)"
ROOM = 64  # tokens for an answer, where nothing is said of it


def benchmark(path: str | Path, count: int | None = None) -> list[Task]:
    """The first `count` rows of a `.jsonl`, `.json` or `.parquet` file as tasks.

    | columns | a task | is right if it says |
    |---|---|---|
    | RULER's, as kvpress has them | the context, one question | every string of `answer` |
    | SCBench's | the context, each of `multi_turns`, in one cache | the turn's `answer`, or each of its strings |
    | LongBench's | the context, one question | one of `answers` |

    Upper and lower case count alike, and what else is said does not count: RULER's own rule. LongBench's own scores are F1 and others, by
    data set: these are not those. ValueError names the file, the row and what is missing; `.parquet` needs pyarrow.
    """
    file = Path(path)
    rows = _rows(file)
    if not rows:
        raise ValueError(f"{file}: no rows")
    return [_task(row, f"{file}, row {i}") for i, row in enumerate(rows[:count])]


def _rows(file: Path) -> list[Mapping[str, Any]]:
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; give a .jsonl, .json or .parquet of {FORMS}")
    if file.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ModuleNotFoundError as missing:
            raise ModuleNotFoundError(f"{file} needs pyarrow: pip install pyarrow, or write it as .jsonl") from missing
        return parquet.read_table(file).to_pylist()
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    if not isinstance(found, list):
        raise ValueError(f"{file}: a list of rows is wanted, not {type(found).__name__}")
    return found


def _task(row: Any, place: str) -> Task:
    there = set(row) if isinstance(row, Mapping) else set()
    if there >= RULER:
        room = int(row["max_new_tokens"])
        prompt = f"{row['context']}{row['question']}{row['answer_prefix']}"
        return Task((_turn(prompt, [[x] for x in _strings(row["answer"], place)], room),))
    if there >= SCBENCH:
        said = [_one(turn, place) for turn in row["multi_turns"]]
        if not said:
            raise ValueError(f"{place}: multi_turns is empty")
        return Task((said[0]._replace(prompt=f"{row['context']}{said[0].prompt}"), *said[1:]))
    if there >= LONGBENCH:
        return Task((_turn(f"{row['context']}\n{row['input']}\n", [_strings(row["answers"], place)], ROOM),))
    raise ValueError(f"{place}: columns {', '.join(sorted(map(str, there))) or 'none'}; known are those of {FORMS}")


def _one(turn: Any, place: str) -> Open:
    if not isinstance(turn, Mapping) or not {"input", "answer"} <= set(turn):
        raise ValueError(f"{place}: a turn has input and answer, not {turn!r}")
    return _turn(f"\n{turn['input']}\n", [[x] for x in _strings(turn["answer"], place)], ROOM)


def _turn(prompt: str, parts: list[list[str]], room: int) -> Open:
    """Of each part, one of the strings must be said."""
    if room < 1:
        raise ValueError(f"{room} tokens are no room for an answer: at least 1")
    return Open(prompt, ", ".join(part[0] for part in parts), tuple(map(tuple, parts)), room)


def _strings(found: Any, place: str) -> list[str]:
    said = [str(x) for x in (found if isinstance(found, list | tuple) else [found]) if str(x).strip()]
    if not said:
        raise ValueError(f"{place}: the answer is empty")
    return said
