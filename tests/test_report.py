"""Reports: what is printed, drawn and written says what was measured, and opens offline."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from fewer.core import Change
from fewer.report import COLUMNS, Report, best, compared, figure, finding, front, jsonl, page, picture, plain, show
from fewer.report.figure import looks, records
from fewer.report.table import number, size

ABOUT = {"model": "tiny </script> model", "data": "text", "machine": "a <machine>", "command": "fewer frontier"}


def row(method, budget, kept, bits, p, error=""):
    losses = [math.log(p) + d for d in (-0.5, 0.0, 0.5)] if p else []
    good = None if error else p
    return {
        "axis": "weights", "step": f"weights/{method} {budget}", "method": method, "budget": budget, "kept": kept, "bits": bits,
        "bytes_before": 2000, "bytes_after": bits and int(bits * 125), "flops": kept, "seconds": 1.5,
        "perplexity": good, "perplexity_low": good and p * 0.6, "perplexity_high": good and p * 1.6,
        "kl": good and math.log(p / 6), "kl_low": good and math.log(p / 6), "kl_high": good and math.log(p / 6),
        "losses": losses, "control": method in ("dense", "random"), "error": error,
    }  # fmt: skip


ROWS = [
    row("dense", "", 1.0, 16.0, 6.0),
    row("random", "50%", 0.5, 9.0, 600.0),
    row("random", "2:4", 0.5, 9.0, 700.0),
    row("wanda", "50%", 0.5, 9.0, 6.6),
    row("wanda", "2:4", 0.5, 9.0, 9.0),
    row("wanda", "30%", 0.3, 6.0, 30.0),
    row("wanda + eora", "50%", 0.5, 12.0, 6.3),
    row("magnitude", "50%", 0.5, 9.0, 12.0),
    row("magnitude", "30%", None, None, None, "ValueError: no <luck>"),
]


def test_front_is_what_brute_force_says():
    measured = [r for r in ROWS if r["perplexity"]]
    beaten = lambda r: any(  # noqa: E731
        o["bits"] <= r["bits"] and o["perplexity"] <= r["perplexity"] and (o["bits"], o["perplexity"]) != (r["bits"], r["perplexity"])
        for o in measured
    )  # fmt: skip
    assert {r["step"] for r in front(ROWS)} == {r["step"] for r in measured if not beaten(r)}


def test_the_finding_compares_methods_of_equal_cost():
    """EoRA's extra part costs a third more bytes, so it is not the best *at* 50 %."""
    assert finding(ROWS) == "Keeping 50 %, wanda costs +10 % perplexity, random 100-fold"
    assert best(ROWS, "30%")["method"] == "wanda" and best(ROWS, "70%") is None


def test_nothing_measured_is_said():
    assert finding([ROWS[-1]]) == "Nothing could be measured"


def test_the_ratio_to_dense_is_paired_so_shared_noise_cancels():
    dense, *_, wanda = compared([ROWS[0], ROWS[3]])
    assert wanda["ratio"] == pytest.approx(1.1) and wanda["ratio_high"] - wanda["ratio_low"] < 1e-5
    assert wanda["perplexity_to"] == pytest.approx(6.6) and wanda["front"] and dense["front"]


def test_a_plain_table_says_everything_and_a_failure_its_reason():
    lines = plain(compared(ROWS)).splitlines()
    assert len(lines) == len(ROWS) + 1
    assert re.match(
        r"wanda +50% +50\.0% +9\.00 +1\.1 kB +50\.0% +6\.60 \[3\.96, 10\.6\] +1\.10 \[1\.10, 1\.10\]", lines[4]
    )
    assert lines[-1].startswith("magnitude") and lines[-1].endswith("ValueError: no <luck>")


def test_a_terminal_gets_the_same_cells():
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(show(compared(ROWS)))
    text = console.export_text()
    assert all(r["method"] in text for r in ROWS) and "6.60 [3.96, 10.6]" in text and "no <luck>" in text


def test_json_lines_are_json_even_of_what_is_no_number():
    first, second = jsonl([{"a": math.nan, "b": math.inf}, {"a": 1.5, "b": "x"}]).splitlines()
    assert json.loads(first) == {"a": None, "b": None} and json.loads(second) == {"a": 1.5, "b": "x"}
    json.loads(first, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("x", "text"), [(0, "0"), (0.00001, "1e-05"), (999.5, "1000"), (6.30, "6.30"), (-0.5, "-0.500"), (1e7, "1e+07")]
)
def test_numbers_keep_three_digits(x, text):
    assert number(x) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5e13, "50.0 TB")])
def test_sizes(n, text):
    assert size(n) == text


def test_the_change_report_adds_up():
    changes = [
        Change("a", "weights/wanda", "50%", 0.5, 3000, 1500, "bitmask", 0.25),
        Change("b", "weights/wanda", "50%", 0.25, 1000, 250, "csr"),
    ]
    report = Report(changes)
    assert report.total == {"site": "total", "kept": 0.4375, "bytes_before": 4000, "bytes_after": 1750}
    assert [json.loads(line)["site"] for line in report.jsonl().splitlines()] == ["a", "b"]
    assert "25.00%" in str(report).splitlines()[1] and str(report).splitlines()[-1].startswith("total")


def test_no_two_methods_look_alike_and_random_is_grey():
    many = [row(f"m{i}", "50%", 0.5, 9.0, 7.0 + i) for i in range(35)]
    style = looks([*many, ROWS[1]])
    assert len(set(style.values())) == 36 and style["random"][0] == "#8A8F98" and "dense" not in style


def test_the_figure_draws_every_measured_row_and_no_other():
    drawn = records(compared(ROWS), "bits", "perplexity")
    assert [r["step"] for r in drawn] == [r["step"] for r in ROWS if not r["error"]]
    spec = figure(compared(ROWS), ABOUT).to_dict()
    assert spec["title"]["text"] == finding(ROWS)
    assert [r["grouped"] for r in spec["datasets"]["points"]].count(True) == 2


def test_pictures_are_drawn_without_a_browser(tmp_path):
    chart = figure(compared(ROWS), ABOUT)
    svg, png = picture(chart, tmp_path / "f.svg").read_text(), picture(chart, tmp_path / "f.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000
    for word in ("dense 6", "random", "wanda + eora", "Keeping 50 %", "perplexity on unseen text"):
        assert word in svg
    assert "undefined" not in svg and "NaN" not in svg
    with pytest.raises(ValueError, match=r"ends in \.svg or \.png"):
        picture(chart, tmp_path / "f.bmp")


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.loads, self.cells, self.title = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        self.loads += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if getattr(self, "tag", "") == "td":
            self.cells.append(data)
        if getattr(self, "tag", "") == "title":
            self.title += data.strip()


def test_the_page_is_one_file_that_needs_no_network():
    html = page(compared(ROWS), ABOUT)
    reader = Reader()
    reader.feed(html)
    assert reader.loads == [] and "{{" not in html.partition("<script>")[0]
    assert not re.search(r"@import|\bfetch\(['\"]http|url\(['\"]?http", html.partition("<script>")[0])
    assert reader.title == finding(ROWS) and "6.60" in reader.cells
    assert "tiny &lt;/script&gt; model" in html and "a &lt;machine&gt;" in html and "no &lt;luck&gt;" in html
    assert html.count("</script>") == 2, "data closed a script"


def test_every_column_says_what_it_is():
    assert len({c.field for c in COLUMNS}) == len(COLUMNS) and all(c.title for c in COLUMNS)


def test_a_click_on_the_legend_is_heard():
    import vl_convert

    drawn = json.dumps(vl_convert.vegalite_to_vega(figure(compared(ROWS), ABOUT).to_dict()))
    assert '"name": "method_legend_symbols", "interactive": true' in drawn


def test_a_control_beyond_all_others_is_drawn_at_the_edge_with_its_value():
    import vl_convert

    rows = [row("dense", "", 1, 16, 6.0), row("wanda", "50%", 0.5, 9, 7.0), row("random", "50%", 0.5, 9, 1e6)]
    drawn = vl_convert.vegalite_to_svg(figure(rows, {}).to_dict())
    assert "↑ 1M<" in drawn and ">100000<" not in drawn and ">10<" in drawn
