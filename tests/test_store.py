"""What is saved appears whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fewer.recipe.store import Store, exchange


def written(path):
    return sorted(p.name for p in path.iterdir())


def test_nothing_is_there_before_the_end(tmp_path):
    store = Store(tmp_path / "out", key="a")
    store.text("config.json", "{}")
    store.tensors("model.safetensors", {"w": torch.ones(2)})
    assert not (tmp_path / "out").exists()
    assert written(store.finish()) == ["config.json", "model.safetensors"]
    assert written(tmp_path) == ["out"]


def test_an_old_result_is_kept_without_force(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists; write --force"):
        Store(tmp_path / "out", key="a")


def test_force_replaces_the_old_result_at_the_end(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    store = Store(tmp_path / "out", key="a", force=True)
    store.text("new", "new")
    assert written(tmp_path / "out") == ["old"]
    store.finish()
    assert written(tmp_path / "out") == ["new"] and written(tmp_path) == ["out"]


def test_the_same_job_goes_on_and_another_starts_anew(tmp_path):
    Store(tmp_path / "out", key="a").text("block-0", "x")
    assert Store(tmp_path / "out", key="a").has("block-0")
    assert not Store(tmp_path / "out", key="b").has("block-0")


def test_a_full_disk_leaves_the_old_result(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fewer.recipe.store.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        Store(tmp_path / "out", key="a", force=True).tensors("m.safetensors", {"w": torch.ones(2)})
    assert (tmp_path / "out" / "old").read_text() == "old"


def test_a_write_that_fails_says_where_and_what_to_do(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("fewer.recipe.store.save_file", full)
    store = Store(tmp_path / "out", key="a")
    with pytest.raises(
        OSError, match=r"m.safetensors cannot be written to .*out.partial: .*No space left.*goes on with it"
    ):
        store.tensors("m.safetensors", {"w": torch.ones(2)})


def test_a_kill_in_the_middle_leaves_the_old_result_and_whole_files(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    script = textwrap.dedent("""
        import os, signal, sys, torch
        from fewer.recipe import store
        s = store.Store(sys.argv[1], key="a", force=True)
        s.tensors("one.safetensors", {"w": torch.ones(3)})
        real = store.save_file
        def half(tensors, path, **more):
            real(tensors, path, **more)
            os.truncate(path, 20)
            os.kill(os.getpid(), signal.SIGKILL)
        store.save_file = half
        s.tensors("two.safetensors", {"w": torch.ones(3)})
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")])
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "out" / "old").read_text() == "old"
    again = Store(tmp_path / "out", key="a", force=True)
    assert again.has("one.safetensors") and not again.has("two.safetensors")
    assert torch.equal(load_file(again.path("one.safetensors"))["w"], torch.ones(3))


def test_no_directory_to_write_in(tmp_path):
    with pytest.raises(ValueError, match="no directory to write"):
        Store(tmp_path / "nowhere" / "out", key="a")


def test_exchange_swaps_two_directories(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "is").read_text() == "b" and (tmp_path / "b" / "is").read_text() == "a"


def test_a_log_has_one_object_a_line(tmp_path):
    store = Store(tmp_path / "out", key="a")
    store.append("log.jsonl", {"a": 1})
    store.append("log.jsonl", {"b": 2})
    lines = (store.finish() / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"a": 1}, {"b": 2}]
    assert os.path.exists(tmp_path / "out")
