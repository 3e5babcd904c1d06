"""Recipes are text that reads back, and errors say what to write."""

import pytest

from fewer.core import budget
from fewer.recipe.steps import Step, recipe, step, to_yaml

GOOD = [
    "weights/wanda 50%",
    "weights/wanda 2:4 @ *.mlp.*",
    "weights/random(seed=3) 12.5% per tensor @ q, k, !*.0.*",
    "weights/magnitude 25% of 4x4 per model",
    "weights/sparse_gpt(block=64) 50% by owl + dsnot + eora(rank=16) @ mlp",
]


@pytest.mark.parametrize("text", GOOD)
def test_a_step_prints_as_it_was_written(text):
    assert str(step(text)) == text and step(str(step(text))) == step(text)


def test_the_parts_of_a_step():
    s = step("weights/wanda 50% by owl + dsnot + eora(rank=16) @ *.mlp.*")
    assert (s.method.name, s.budget, s.where, s.axis) == ("weights/wanda", budget("50%"), "*.mlp.*", "weights")
    assert s.allocator.name == "weights/owl" and [c.name for c in s.correctors] == ["weights/dsnot", "weights/eora"]
    assert s.correctors[1].rank == 16 and s.what == "weights/wanda by owl + dsnot + eora(rank=16)"


def test_a_recipe_skips_comments_and_blank_lines():
    assert recipe("# all\n\nweights/wanda 50%  # half\n") == (step("weights/wanda 50%"),)


def test_yaml_reads_back(tmp_path):
    steps = recipe("\n".join(GOOD))
    path = tmp_path / "r.yaml"
    path.write_text(to_yaml(steps))
    assert recipe(path) == recipe(str(path)) == steps


def test_a_text_file_is_a_recipe(tmp_path):
    path = tmp_path / "r.txt"
    path.write_text("\n".join(GOOD))
    assert recipe(path) == recipe("\n".join(GOOD))


def test_steps_may_be_given_as_mappings():
    row = {"method": "weights/wanda", "budget": "50%", "then": "dsnot", "where": "mlp"}
    assert recipe([row, "weights/wanda 2:4", step("weights/wanda 10%")])[0] == step("weights/wanda 50% + dsnot @ mlp")


@pytest.mark.parametrize(
    "text, error, says",
    [
        ("weights/wanda", ValueError, "not a step"),
        ("wanda 50%", LookupError, "weights/wanda"),
        ("weights/wandaa 50%", LookupError, "close: weights/wanda"),
        ("weights/wanda half", ValueError, "not a budget: 'half'"),
        ("weights/wanda 0%", ValueError, "keeps something"),
        ("weights/random(sed=1) 50%", ValueError, "its fields are: seed=0"),
        ("weights/random(seed=x) 50%", ValueError, "must be of type int"),
        ("weights/wanda 50% by dsnot", ValueError, "after 'by' write a allocator"),
        ("weights/wanda 50% + owl", ValueError, r"after '\+' write a corrector"),
        ("weights/owl 50%", ValueError, "'weights/wanda 50% by weights/owl'"),
        ("weights/eora 50%", ValueError, r"'weights/wanda 50% \+ weights/eora'"),
        ("weights/wanda 2:4 by erk", ValueError, "divides one budget over all maps"),
        ("", ValueError, "at least one step"),
    ],
)
def test_a_wrong_step_is_answered_with_the_right_one(text, error, says):
    with pytest.raises(error, match=says):
        recipe(text)


def test_a_newer_recipe_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("version: 99\nsteps: [weights/wanda 50%]\n")
    with pytest.raises(ValueError, match="version 99 is newer than this fewer"):
        recipe(path)


@pytest.mark.parametrize(
    "text, says",
    [("steps: 3", "list"), ("[1, 2]", "keys 'version' and 'steps'"), ("steps: [{method: weights/wanda}]", "lacks")],
)
def test_a_malformed_yaml_is_refused(tmp_path, text, says):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        recipe(path)


def test_a_missing_recipe_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        recipe("nowhere.yaml")


def test_a_step_is_a_value():
    assert isinstance(step("weights/wanda 50%"), Step) and hash(step("weights/wanda 50%")) == hash(
        step("weights/wanda 50%")
    )
