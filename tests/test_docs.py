"""What the documentation says is true: every method has its page, and every Python block in it runs."""

import os
import re
import subprocess
import sys

import pytest

from fewer.core import axes, methods
from tools.docs import pages
from tools.floors import FLOORS, SOURCE
from tools.measured import section

ROOT = SOURCE.parents[1]
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
TABLE = re.compile(r"^```text\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
NAMES = [name for axis in axes() for name in methods(axis)]


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_every_method_has_one_page_with_its_rule_example_paper_and_source(made):
    for name in NAMES:
        page = made[f"methods/{name}.md"]
        assert f"`{name}`" in page and "**Paper.** [" in page and "class " in page
        assert "```pycon\n>>> " in page or name.endswith("/random"), f"{name}: no worked example on its page"
        assert page.count("\n## ") == 4 + bool(section(name)), f"{name}: a section is missing"
    assert sum(address.count("/") == 2 and not address.endswith("index.md") for address in made) == len(NAMES)


def test_what_was_measured_of_a_method_stands_on_its_page(made):
    measured = [name for name in NAMES if section(name)]
    assert set(methods("weights")) <= set(measured), "run the command in tools/measured.py"
    for name in measured:
        page = made[f"methods/{name}.md"]
        assert "## Measured" in page and "| dense |" in page and "weights/random" in page


def test_every_method_stands_once_on_its_axis_and_once_among_the_papers(made):
    for name in NAMES:
        axis, _, short = name.partition("/")
        assert made[f"methods/{axis}/index.md"].count(f"[{name}]({short}.md)") == 1
        assert made["methods/index.md"].count(f"[{name}]({name}.md)") == 1
        assert made["papers.md"].count(f"[{name}](methods/{name}.md)") == 1


def test_the_pages_lead_to_each_other(made):
    written = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*") if p.is_file()}
    texts = {**made, **{p.relative_to(ROOT / "docs").as_posix(): p.read_text() for p in WRITTEN[1:]}}
    for address, text in texts.items():
        for link in LINK.findall(text):
            there = os.path.normpath(os.path.join(os.path.dirname(address), link))
            assert there in made or there in written, f"{address} points to {link}, which is not there"


def test_what_readme_points_to_exists():
    for link in LINK.findall((ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), f"README.md points to {link}, which is not there"


def test_readme_is_short_and_names_every_axis():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert [axis for axis in axes() if f"`{axis}`" not in text] == []


def test_the_architecture_page_names_every_room_on_its_floor():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for number, floor in enumerate(FLOORS[:-1]):
        row = next((line for line in text.splitlines() if line.startswith(f"| {number} |")), "")
        missing = [room for room in floor if f"`{room}`" not in row]
        assert not missing, f"floor {number} of docs/architecture.md lacks {missing}"


def run(code: str, folder: object) -> str:
    """What a fresh interpreter prints, as a reader's would who pastes the code."""
    paths = os.pathsep.join([str(SOURCE.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=env, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in WRITTEN if BLOCK.search(p.read_text())], ids=lambda p: p.name)
def test_the_python_in_a_page_runs(path, tmp_path):
    """All blocks of a page run in order; where the page shows a table below a block, that is what is printed.

    Of the table all columns but the last are compared: errors depend on the text, which is this Python's library.
    """
    text = path.read_text()
    printed = run("\n".join(BLOCK.findall(text)), tmp_path).splitlines()
    for table in TABLE.findall(text):
        for line in table.splitlines()[1:]:
            assert any(p.split()[:6] == line.split()[:6] for p in printed), f"{path.name}: not printed: {line}"


def test_the_method_that_the_guide_adds_passes_its_checks(tmp_path):
    """The file of docs/adding-a-method.md is put where a reader would put it, and nothing else is done."""
    guide = (ROOT / "docs" / "adding-a-method.md").read_text()
    (source,) = re.findall(r'^```python title="src/fewer/weights/mine.py"\n(.*?)^```', guide, re.M | re.S)
    (tmp_path / "mine.py").write_text(source)
    code = (
        f"import fewer.weights\nfewer.weights.__path__.append({str(tmp_path)!r})\n"
        "from fewer.core import methods\nfrom fewer.testing import check_method\n"
        "assert 'weights/mine' in methods('weights')\ncheck_method('weights/mine')"
    )
    run(code, tmp_path)
