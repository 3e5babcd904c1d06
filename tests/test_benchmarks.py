"""Rows of other people's benchmarks become tasks; what must be said is what they say must be."""

import json

import pytest

from fewer.data import Open, Task, Turn, benchmark
from fewer.measure.answers import answers
from fewer.models import open_model

RULER = {"context": "a note: 48213. ", "question": "Which number?", "answer_prefix": " It is", "answer": ["48213", "7"]}
RULER |= {"max_new_tokens": 12, "task": "niah"}
SCBENCH = {
    "id": 1,
    "context": "a b c",
    "multi_turns": [{"input": "first?", "answer": "a"}, {"input": "last?", "answer": ["c"]}],
}
LONGBENCH = {"input": "Who?", "context": "Ann and Bo.", "answers": ["Ann", "Bo"], "length": 3, "dataset": "qa"}


def write(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    return path


def test_rows_become_tasks(tmp_path):
    path = write(tmp_path, [RULER, SCBENCH, LONGBENCH])
    ruler, scbench, longbench = benchmark(path)
    assert ruler.turns == (Open("a note: 48213. Which number? It is", "48213, 7", (("48213",), ("7",)), 12),)
    assert [t.prompt for t in scbench.turns] == ["a b c\nfirst?\n", "\nlast?\n"]
    assert [t.parts for t in scbench.turns] == [(("a",),), (("c",),)]
    assert longbench.prompt == "Ann and Bo.\nWho?\n" and longbench.turns[0].parts == (("Ann", "Bo"),)
    assert benchmark(path, 1) == [ruler] and benchmark(write(tmp_path, [RULER], "rows.json")) == [ruler]


def test_what_is_right():
    ruler = Open("?", "48213, 7", (("48213",), ("7",)), 12)
    assert ruler.right("7 then 48213!") and not ruler.right("48213") and not ruler.right("7")
    either = Open("?", "Ann", (("Ann", "Bo"),), 12)
    assert either.right("it was BO") and not either.right("Cy")
    assert Turn("?", " 7\n").right("7") and not Turn("?", " 7\n").right("7 8")


def test_a_room_is_as_many_tokens():
    """The model says 5 tokens; an answer that is among what it says is right, the whole of it need not be."""
    model, tokenizer = open_model("bundled")
    text = "import os\nimport sys\n\n\ndef main():\n    return os.path."
    asked = tokenizer(text, return_tensors="pt")
    said = tokenizer.decode(model.generate(**asked, max_new_tokens=5, do_sample=False)[0, -5:])
    first = said.strip()[:3]
    turns = Open(text, first, ((first,),), 5), Open(text, "zzz", (("zzz",),), 5)
    assert [answers(model, tokenizer, [Task((t,))])[0] for t in turns] == [[True], [False]]


def test_parquet_needs_pyarrow_and_says_so(tmp_path):
    path = tmp_path / "rows.parquet"
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        path.write_bytes(b"PAR1")
        with pytest.raises(ModuleNotFoundError, match="needs pyarrow"):
            benchmark(path)
        return
    parquet.write_table(pyarrow.Table.from_pylist([RULER]), path)
    assert benchmark(path)[0].turns[0].parts == (("48213",), ("7",))


@pytest.mark.parametrize(
    "row, words",
    [
        ({"text": "a"}, "row 0: columns text; known are those of RULER"),
        (SCBENCH | {"multi_turns": []}, "multi_turns is empty"),
        (SCBENCH | {"multi_turns": [{"input": "a"}]}, "a turn has input and answer"),
        (RULER | {"answer": []}, "the answer is empty"),
        (RULER | {"max_new_tokens": 0}, "no room for an answer"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, row, words):
    with pytest.raises(ValueError, match=words):
        benchmark(write(tmp_path, [row]))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        benchmark(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        benchmark(tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no rows"):
        benchmark(tmp_path / "empty.jsonl")
