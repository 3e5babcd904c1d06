"""A wheel built from the checkout works outside of it, with its model, and holds nothing but the package."""

import os
import subprocess
import sys
import zipfile

import pytest

from tools.floors import SOURCE

ROOT = SOURCE.parents[1]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    run = subprocess.run([sys.executable, "-c", BUILD, str(folder)], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return folder / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
    """Run code in a fresh interpreter that sees the unpacked wheel and its dependencies, not the checkout."""
    home = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(home)

    def run(*words: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=home, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(home) in run("-c", "import fewer; print(fewer.__file__)"), "the checkout was imported, not the wheel"
    return run


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    listed = subprocess.run(["git", "ls-files", "src/fewer"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode == 0 and listed.stdout:  # a checkout, not an unpacked archive
        expected = {n.removeprefix("src/") for n in listed.stdout.split() if (ROOT / n).exists()}
        assert expected <= names
        assert all(n.startswith("fewer/") and "__pycache__" not in n for n in names)
    assert "fewer/models/bundled/model.safetensors" in names and "fewer/models/bundled/tokenizer.json" in names


@pytest.mark.slow
def test_the_wheel_says_licence_entry_point_and_extras(wheel):
    packed = zipfile.ZipFile(wheel)
    texts = {n.partition(".dist-info/")[2]: packed.read(n).decode() for n in packed.namelist() if ".dist-info/" in n}
    assert "fewer = fewer.cli:main" in texts["entry_points.txt"]
    assert "Apache License" in texts["licenses/LICENSE"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]
    assert all(f"Provides-Extra: {extra}\n" in texts["METADATA"] for extra in ("test", "docs", "ray", "data", "gpu"))


@pytest.mark.slow
def test_the_wheel_lists_methods_outside_the_checkout(outside):
    said = outside("-m", "fewer", "methods")
    assert "weights/wanda" in said and "attention/quest" in said


@pytest.mark.slow
def test_the_bundled_model_of_the_wheel_speaks_outside_the_checkout(outside):
    code = (
        "import torch\nfrom fewer.models import open_model\nmodel, tokenizer = open_model('bundled')\n"
        "ids = torch.tensor([[0, *tokenizer('import os\\n')['input_ids']]])\n"
        "print(bool(torch.isfinite(model(ids).logits).all()))"
    )
    assert outside("-c", code).split()[-1] == "True"
