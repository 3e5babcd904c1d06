"""The words that all rooms share: budgets, methods, papers, sites."""

import doctest
import importlib
import sys
from fractions import Fraction

import pytest
import torch
from torch import nn

from fewer.core import Budget, Change, Paper, Site, axes, budget, find, method, methods
from fewer.core.method import Method
from fewer.core.site import first_argument


@pytest.mark.parametrize("room", ["budget", "method", "paper", "site"])
def test_the_examples_in_the_docstrings_are_right(room):
    assert doctest.testmod(importlib.import_module(f"fewer.core.{room}")).failed == 0


READ = {
    "50%": Budget(Fraction(1, 2)),
    "12.5%": Budget(Fraction(1, 8)),
    ".5%": Budget(Fraction(1, 200)),
    "100%": Budget(Fraction(1)),
    "64": Budget(64),
    "1": Budget(1),
    "2:4": Budget(2, group=4),
    "4:4": Budget(4, group=4),
    "25% of 16x16": Budget(Fraction(1, 4), unit=(16, 16)),
    "3 of 2x8 per tensor": Budget(3, unit=(2, 8), scope="tensor"),
    "2:4 of 16x1": Budget(2, group=4, unit=(16, 1)),
    "10% per column": Budget(Fraction(1, 10), scope="column"),
    "10% per layer": Budget(Fraction(1, 10), scope="layer"),
    "30% per model": Budget(Fraction(3, 10), scope="model"),
    "  30% per row ": Budget(Fraction(3, 10)),
}


@pytest.mark.parametrize("text", READ)
def test_a_budget_is_read_as_it_is_written(text):
    assert budget(text) == READ[text]


@pytest.mark.parametrize("b", READ.values(), ids=str)
def test_a_budget_prints_as_it_is_read(b):
    assert budget(str(b)) == b and budget(b) is b


def test_how_budgets_are_printed():
    assert [str(READ[t]) for t in ("12.5%", "64", "2:4", "  30% per row ")] == ["12.5%", "64", "2:4", "30%"]
    assert str(READ["3 of 2x8 per tensor"]) == "3 of 2x8 per tensor"
    assert str(budget("100%")) == "100%" and str(budget("33.3333%")) == "33.3333%"


@pytest.mark.parametrize("text", ["half", "", "50", "-3", "5%%", "50 %", "2:4:8", "50% of 16", "50% per head", "50% 3"])
def test_what_is_no_budget_is_answered_with_what_is(text):
    if text == "50":
        assert budget(text) == Budget(50)
        return
    with pytest.raises(ValueError, match=r"not a budget: .*write '50%'"):
        budget(text)


@pytest.mark.parametrize("text", ["0%", "0", "100.1%", "5:4", "0:4"])
def test_nothing_and_more_than_everything_are_no_budgets(text):
    with pytest.raises(ValueError, match="keeps something and at most everything"):
        budget(text)


def test_a_group_has_no_scope_and_a_unit_has_a_size():
    with pytest.raises(ValueError, match=r"has no scope.*write '2:4'"):
        budget("2:4 per tensor")
    with pytest.raises(ValueError, match="at least one row"):
        budget("50% of 0x4")


def test_counting_is_exact_and_rounds_down_but_keeps_one():
    assert [budget("10%").of(n) for n in (1, 9, 10, 19, 20)] == [1, 1, 1, 1, 2]
    assert [budget("70%").of(n) for n in (10, 100, 1000)] == [7, 70, 700], "0.7 * 10 in floats is 7.000000000000001"
    assert [budget("29%").of(100), budget("57%").of(100)] == [29, 57]
    assert [budget("5").of(n) for n in (3, 5, 9)] == [3, 5, 5]
    assert budget("2:4").of(4) == 2 and budget("100%").of(7) == 7


def test_which_budgets_are_joint():
    assert [budget(f"10% per {s}").joint for s in ("row", "column", "tensor", "layer", "model")] == [False] * 3 + [
        True
    ] * 2


def test_a_count_for_one_tensor():
    assert budget("30% of 4x4 per model").with_count(7) == budget("7 of 4x4 per tensor")
    assert budget("2:4").with_count(7) == budget("7 per tensor")


@pytest.mark.parametrize(
    "text, rows, cols",
    [("50%", 3, 5), ("2:4", 3, 8), ("25% of 2x4", 4, 8), ("5", 3, 5), ("3 per column", 3, 5), ("15 per tensor", 3, 5),
     ("2:4 of 2x2", 4, 8), ("999 per model", 3, 5), ("2 of 2x2 per column", 4, 4), ("2 of 2x2", 4, 4), ("4 of 2x2 per tensor", 4, 4)],
)  # fmt: skip
def test_what_can_be_met_is_let_through(text, rows, cols):
    budget(text).check(rows, cols)


@pytest.mark.parametrize(
    "text, rows, cols, says",
    [
        ("2:4", 3, 6, r"rows of 6 do not divide into groups of 4; M may be one of \[2\]"),
        ("2:4 of 1x2", 3, 12, r"rows of 6 do not divide into groups of 4"),
        (
            "25% of 2x4",
            3,
            8,
            r"3x8 does not divide into units of 2x4; heights that divide: \[1\], widths: \[1, 2, 4, 8\]",
        ),
        ("25% of 2x4", 4, 6, "4x6 does not divide"),
        ("6", 3, 5, "there are only 5 to keep per row; write 5 or less"),
        (
            "50% of 3x3",
            64,
            192,
            r"heights that divide: \[1, 2, 4, 8, 16, 32, 64\], widths: \[1, 2, 4, 8, 16, 32, 64\]",
        ),
        ("4 per column", 3, 5, "there are only 3 to keep per column"),
        ("16 per tensor", 3, 5, "there are only 15 to keep per tensor"),
        ("3 of 2x2", 4, 4, "there are only 2 to keep per row"),
        ("3 of 2x2 per column", 4, 4, "there are only 2 to keep per column"),
        ("5 of 2x2 per tensor", 4, 4, "there are only 4 to keep per tensor"),
    ],
)
def test_what_cannot_be_met_says_what_can(text, rows, cols, says):
    with pytest.raises(ValueError, match=says):
        budget(text).check(rows, cols)


def test_eleven_axes_each_with_its_control():
    assert len(axes()) == 11 and all(f"{axis}/random" in methods(axis) for axis in axes())


def test_methods_are_the_files_of_their_axis():
    assert "weights/wanda" in methods("weights") and not any("_" == m.split("/")[1][0] for m in methods("weights"))
    assert find("weights/wanda").name == "weights/wanda" and find("weights/wanda").paper.id == "2306.11695"


@pytest.mark.parametrize(
    "name, says",
    [("weights/wandaa", "close: weights/wanda"), ("wanda", "close: weights/wanda"), ("a/b/c", "none, see")],
)
def test_a_typo_is_answered_with_a_name(name, says):
    with pytest.raises(LookupError, match=f"no method '{name}'; {says}" if "none" not in says else says):
        find(name)


def test_only_axes_have_methods():
    for name in ("kernels", "weights/wanda", ""):
        with pytest.raises(LookupError, match="no axis .*there are: weights, activations"):
            methods(name)


def test_another_package_adds_a_method_by_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(
        "from fewer.core import Paper, method\nfrom fewer.weights import ByScore\n\n"
        "@method(Paper('0000.00000', 'Theirs', 2026))\nclass Mine(ByScore):\n"
        "    '''Keep the smallest.'''\n\n    def score(self, w, stats):\n        return -w.abs()\n"
    )
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[another]\nweights/mine = theirs:Other\nweights/other = theirs:Other\n"
        "[fewer.methods]\nweights/first = theirs:First\nweights/mine = theirs:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert methods("weights").count("weights/mine") == 1 and "weights/other" not in methods("weights")
    assert find("weights/mine")().score(torch.tensor([[-2.0]]), None).item() == -2.0
    sys.modules.pop("theirs")


def test_a_method_says_its_rule():
    with pytest.raises(TypeError, match="say the rule"):

        @method(Paper("0", "No", 2026))
        class Silent(Method):
            pass


def test_a_method_is_a_frozen_value_named_after_its_file():
    @method(Paper("0", "No", 2026))
    class Some(Method):
        """Some rule."""

        a: int = 1

    assert Some() == Some(1) != Some(2) and Some.name.endswith("/test_core") and Some.needs == ()
    with pytest.raises(AttributeError):
        Some().a = 2  # type: ignore[misc]


def test_where_papers_are():
    assert Paper("10.1/x", "t", 2000).url == "https://doi.org/10.1/x"
    assert Paper("2306.11695", "t", 2023).url == "https://arxiv.org/abs/2306.11695"


def site(**how):
    module = nn.Module()
    module.weight = nn.Parameter(torch.arange(24.0).reshape(how.pop("shape", (4, 6))))
    return Site("m", module, **how), module.weight


def test_a_plain_site_is_its_parameter():
    s, p = site()
    assert s.shape == (4, 6) and torch.equal(s.read(), p) and not s.read().requires_grad and s.tensor is p
    s.write(-s.read())
    assert torch.equal(p.detach(), -torch.arange(24.0).reshape(4, 6))


def test_a_transposed_site_is_read_and_written_the_other_way():
    s, p = site(transposed=True)
    assert s.shape == (6, 4) and torch.equal(s.read(), p.detach().mT)
    s.write(torch.ones(6, 4).cumsum(0))
    assert torch.equal(p.detach(), torch.ones(4, 6).cumsum(1))


@pytest.mark.parametrize("part", [slice(1, 3), torch.tensor([3, 0])])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_is_some_output_rows(part, transposed):
    s, p = site(part=part, transposed=transposed)
    rows = (p.detach().mT if transposed else p.detach()).clone()
    assert torch.equal(s.read(), rows[part])
    s.write(torch.full_like(s.read(), -1.0))
    rows[part] = -1
    assert torch.equal(p.detach().mT if transposed else p.detach(), rows)


def test_an_expert_is_one_of_a_stack():
    s, p = site(shape=(2, 3, 4), index=1)
    assert s.shape == (3, 4) and torch.equal(s.read(), p.detach()[1])
    s.write(torch.zeros(3, 4))
    assert p.detach()[1].abs().sum() == 0 and p.detach()[0].sum() == 66


def test_a_site_keeps_its_parameters_dtype():
    s, p = site()
    p.data = p.data.bfloat16()
    s.write(torch.full((4, 6), 1 / 3))
    assert p.dtype == torch.bfloat16 and p[0, 0].item() == torch.tensor(1 / 3).bfloat16().item()
    s, p = site(part=slice(0, 1))
    p.data = p.data.bfloat16()
    s.write(torch.full((1, 6), 1 / 3))
    assert p[0, 0].item() == torch.tensor(1 / 3).bfloat16().item() and p[1, 0] == 6


def test_what_a_map_is_given():
    assert first_argument(nn.Module(), (1, 2), {}) == 1 and first_argument(nn.Module(), (), {"x": 3}) == 3


def test_a_change_is_a_row():
    row = Change("s", "weights/wanda", "50%", 0.5, 10, 5).as_dict()
    assert row["site"] == "s" and row["layout"] == "dense" and row["error"] is None and row["seconds"] == 0
