"""Corpora, windows and tasks: the right text, all of it, and the same every time."""

import doctest
import importlib
import itertools
import json
import re
import sys
import types

import pytest
import torch

from fewer import data
from fewer.data import Document, corpus, needle, stdlib, table, variables, windows


class Letters:
    """A tokenizer whose tokens are characters, so that lengths can be counted by eye."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [ord(c) for c in text]}


def module_of(document):
    return document.name.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("room", ["stdlib", "texts", "windows", "tasks"])
def test_examples_in_docstrings_hold(room):
    assert doctest.testmod(importlib.import_module(f"fewer.data.{room}"), optionflags=doctest.ELLIPSIS).failed == 0


# --- the standard library ------------------------------------------------------------------------------------------------


def test_no_module_of_the_standard_library_lies_in_two_parts():
    parts = [{module_of(d) for d in stdlib(part)} for part in data.PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert [len(p) / sum(map(len, parts)) for p in parts] == pytest.approx([0.25, 0.25, 0.5], abs=0.07)


def test_the_split_never_changes():
    names = {part: {module_of(d) for d in stdlib(part)} for part in data.PARTS}
    assert {"logging", "datetime", "multiprocessing"} <= names["calibration"]
    assert {"difflib", "pickle", "threading"} <= names["validation"]
    assert {"asyncio", "email", "argparse"} <= names["test"]
    assert stdlib("validation") == stdlib("validation")


def test_the_corpus_holds_code_and_neither_tests_nor_tables_nor_installed_packages():
    found = [d for part in data.PARTS for d in stdlib(part)]
    folders = {folder for d in found for folder in d.name.split("/")[:-1]}
    assert not folders & {"test", "tests", "site-packages", "dist-packages", "encodings", "lib-dynload", "__pycache__"}
    assert next(d for d in found if d.name == "asyncio/queues.py").text.startswith("__all__")


def test_an_unknown_part_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'train'.*calibration, validation, test"):
        stdlib("train")


# --- windows -------------------------------------------------------------------------------------------------------------

ALPHABETS = [Document(str(i), "".join(chr(1000 * i + j) for j in range(40))) for i in range(1, 9)]


def test_windows_do_not_overlap_and_follow_the_text():
    tokens = windows(ALPHABETS, Letters(), length=10, count=12, seed=3)
    assert tokens.shape == (12, 10) and tokens.dtype == torch.long
    letters = tokens[tokens != 0]
    assert len(letters.unique()) == len(letters), "a character stands in two windows"
    for window in tokens.tolist():
        assert all(b == a + 1 or 0 in (a, b) for a, b in itertools.pairwise(window))


def test_every_document_begins_with_the_opener():
    tokens = windows(ALPHABETS, Letters(), length=41, count=8)
    assert (tokens[:, 0] == 0).all() and (tokens[:, 1:] != 0).all()
    assert sorted(tokens[:, 1].tolist()) == [1000 * i for i in range(1, 9)]


def test_the_seed_decides_which_windows():
    first, again, other = (windows(ALPHABETS, Letters(), 10, 6, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_plain_strings_are_documents_too():
    assert windows(["abcd"], Letters(), 5, 1).tolist() == [[0, 97, 98, 99, 100]]


def test_too_little_text_says_what_there_is_and_what_would_work():
    with pytest.raises(ValueError, match=r"hold 328 tokens, 5 windows of 100 need 500: ask for at most 3 windows"):
        windows(ALPHABETS, Letters(), 100, 5)
    assert windows(ALPHABETS, Letters(), 100, 3).shape == (3, 100)
    with pytest.raises(ValueError, match="of at most 328"):
        windows(ALPHABETS, Letters(), 1000, 5)
    assert windows(ALPHABETS, Letters(), 328, 1).shape == (1, 328)


# --- long-range tasks ----------------------------------------------------------------------------------------------------

MAKERS = {"needle": needle, "variables": variables, "table": table}


def truth(kind, prompt):
    """The answer, found by reading the prompt with other means."""
    if kind == "needle":
        word = re.search(r"# question: what is the access code for (\w+)\?\n# answer:$", prompt)[1]
        return re.search(rf"^# note: the access code for {word} is (\d{{5}})\.$", prompt, re.M)[1]
    asked = re.search(r"^assert (\S+) ==$", prompt, re.M)[1]
    if kind == "variables":
        scope = {}
        exec("\n".join(re.findall(r"^[A-Z]{6} = (?:\d{5}|[A-Z]{6})$", prompt, re.M)), scope)
        return str(scope[asked])
    scope = {}
    exec(re.search(r"^TABLE = \{\n(?:    '[a-z]{6}': \d{3},\n)+\}$", prompt, re.M)[0], scope)
    return str(eval(asked, scope))


@pytest.mark.parametrize("kind", MAKERS)
def test_the_answer_is_what_the_prompt_says(kind):
    for task in MAKERS[kind](Letters(), tokens=4000, count=5, seed=1):
        assert task.answer == f" {truth(kind, task.prompt)}\n"


@pytest.mark.parametrize("size", [{}, {"chains": 4, "length": 3}, {"chains": 3, "length": 1}])
def test_chains_of_any_number_and_length_lead_to_their_number(size):
    for task in variables(Letters(), tokens=3000, count=5, **size):
        assert task.answer == f" {truth('variables', task.prompt)}\n"
        lines = re.findall(r"^[A-Z]{6} = \w+$", task.prompt, re.M)
        assert len(lines) == size.get("chains", 1) * size.get("length", 4)


def test_filler_that_looks_like_what_is_planted_is_left_out():
    trap = "HPALET = HANDLE\nBAKOMI = 12345\n# note: not a code\n    'bakomi': 482,\nTABLE = {\n"
    filler = [Document("trap", (trap + "x = 1\n") * 30)]
    (task,) = variables(Letters(), tokens=900, filler=filler)
    assert "x = 1" in task.prompt and not any(line in task.prompt for line in trap.splitlines())


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("tokens", [1500, 4096])
def test_a_conversation_has_the_length_that_was_asked_for(kind, tokens):
    tasks = MAKERS[kind](Letters(), tokens=tokens, count=4)
    assert [1 + len("".join(p + a for p, a in t.turns)) for t in tasks] == [tokens] * 4


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_seed_gives_the_same_tasks_and_another_gives_others(kind):
    first, again, other = (MAKERS[kind](Letters(), 1500, count=2, seed=s) for s in (0, 0, 7))
    assert first == again and not set(first) & set(other)
    assert first[0] != first[1] and first == MAKERS[kind](Letters(), 1500, count=3, seed=0)[:2]


def test_several_turns_ask_different_questions_about_one_context():
    (task,) = needle(Letters(), tokens=2000, notes=4, questions=3)
    assert len({turn.prompt.splitlines()[-2] for turn in task.turns}) == 3
    for turn in task.turns[1:]:
        assert turn.answer == f" {truth('needle', task.prompt[: task.prompt.index('# question')] + turn.prompt)}\n"


def test_needles_lie_everywhere():
    where = []
    for task in needle(Letters(), tokens=4000, notes=4, count=20):
        lines = task.prompt.splitlines()
        where += [i / len(lines) for i, line in enumerate(lines) if line.startswith("# note:")]
    assert min(where) < 0.15 and max(where) > 0.85 and 0.4 < sum(where) / len(where) < 0.6


def test_a_context_too_short_says_how_long_it_must_be_and_that_is_enough():
    with pytest.raises(ValueError, match="ask for at least") as refusal:
        table(Letters(), tokens=100)
    least = int(str(refusal.value).split()[-1])
    assert truth("table", table(Letters(), tokens=least)[0].prompt) in table(Letters(), tokens=least)[0].answer


def test_one_cannot_ask_for_more_than_was_said():
    with pytest.raises(ValueError, match="3 questions about 2 notes"):
        needle(Letters(), notes=2, questions=3)


# --- other sources -------------------------------------------------------------------------------------------------------


def test_a_folder_is_split_by_file_and_leaves_out_what_is_hidden_or_no_text(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.md").write_text(f"text {i}")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text("hidden")
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    parts = [{d.name for d in corpus(str(tmp_path), part)} for part in data.PARTS]
    assert set.union(*parts) == {f"{i}.md" for i in range(40)} and sum(map(len, parts)) == 40
    assert corpus(str(tmp_path)) == sorted(corpus(str(tmp_path)))


def test_a_file_is_split_by_its_lines(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text("".join(f"{i}\n" for i in range(8)))
    assert [corpus(str(file), part)[0].text for part in data.PARTS] == ["0\n1\n", "2\n3\n", "4\n5\n6\n7\n"]
    assert corpus(str(file))[0].text == file.read_text()


def test_json_lines_give_the_field(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"text": f"t{i}", "code": f"c{i}"}) + "\n" for i in range(30)))
    assert [d.text for d in corpus(f"{file}:code")] == [f"c{i}" for i in range(30)]
    parts = [[d.text for d in corpus(str(file), part)] for part in data.PARTS]
    assert sorted(text for part in parts for text in part) == sorted(f"t{i}" for i in range(30)) and all(parts)
    with pytest.raises(ValueError, match=r"no field 'body'; it has: text, code"):
        corpus(f"{file}:body")


def test_a_dataset_of_hugging_face_is_asked_for_by_name_config_split_and_field(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [{"page": "one"}, {"page": "two"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert [d.text for d in corpus("hf:owner/wiki@raw-v1/train:page")] == ["one", "two"]
    corpus("hf:wiki/test:page")
    assert asked == [("owner/wiki", "raw-v1", "train"), ("wiki", None, "test")]


def test_without_datasets_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fewer\[data\]'"):
        corpus("hf:wiki/test:page")


@pytest.mark.parametrize("source", ["nothing/here", "hf:wiki", "no.jsonl"])
def test_an_unreadable_source_is_refused_with_the_forms_that_work(source):
    with pytest.raises(ValueError, match=r"write 'stdlib'|write 'hf:name"):
        corpus(source)
