"""Activations on a disk: what was written is what is read, in an order that is known, and nothing half or foreign is learnt from."""

import itertools
import json

import numpy as np
import pytest
import torch
from tiny import batch, build

from fewer.cli import main
from fewer.core import budget
from fewer.features.top_k import TopK
from fewer.models import find_taps
from fewer.train import Lesson, Pupil, Rows, Source, Stored, activations, learn, store
from fewer.train.order import Order

SPECIAL = frozenset([1, 2])
LENGTH, SMALL = 12, 3 * 12 * 64 * 4  # a shard of three windows in float32


@pytest.fixture(scope="module")
def heard():
    model = build("llama")
    return model, find_taps(model, ["layers.0", "layers.1.mlp:in"]), batch("llama", rows=11, length=LENGTH)["input_ids"]


@pytest.fixture(scope="module")
def plain(heard, tmp_path_factory):
    return store(*heard, tmp_path_factory.mktemp("store") / "plain", torch.float32, SPECIAL, shard=SMALL)


def all_rows(stored):
    return stored.rows(np.arange(len(stored)))


def some(source, count, since=0):
    return [b.clone() for b in itertools.islice(source.since(since), count)]


@pytest.mark.parametrize("rows, size, run, pool", [(100, 7, 1, 10), (101, 8, 4, 30), (64, 16, 5, 1), (50, 3, 7, 999)])
def test_an_order_is_every_row_once_and_known_from_any_batch(rows, size, run, pool):
    order = Order(rows, size, 3, run, pool)

    def batches(number, count):
        pools = order.since(number)
        return list(itertools.islice((b for p in pools for b in p.reshape(-1, size).tolist()), count))

    each, found = order.each, batches(0, 3 * order.each + 1)
    passes = [[*itertools.chain(*found[i * each : (i + 1) * each])] for i in range(3)]
    for one in passes:
        assert len(set(one)) == len(one) == each * size > rows - run - size and set(one) <= set(range(rows))
    assert passes[0] != passes[1] != passes[2] and passes[0] != sorted(passes[0])
    for number in (1, each - 1, each, 2 * each + 1):
        assert batches(number, 3) == batches(0, number + 3)[number:]
    assert all(len(pool) <= order.held for pool in itertools.islice(order.since(0), 5))


def test_an_order_mixes_over_everything():
    """Rows of one run meet those of all others, and a batch is spread over the whole store."""
    first = next(Order(100_000, 500, run=50, pool=10_000).since(0))[:500]
    thirds = np.bincount(first // 20_000, minlength=5)
    assert thirds.min() > 50 and len(np.unique(first // 50)) > 150


def test_what_is_stored_is_what_the_taps_say(heard, plain):
    model, taps, ids = heard
    stored = Stored(plain, 10, run=4)
    truth = activations(model, taps, ids)[~torch.isin(ids, torch.tensor([*SPECIAL]))]
    near = torch.cdist(all_rows(stored).double(), truth.double())
    order = near.argmin(1)
    assert len(stored) == len(truth) == len(set(order.tolist())) and near.min(1).values.max() < 1e-4
    assert (order[1:] - order[:-1]).abs().float().mean() > 5  # neighbours in the file are not neighbours in the text
    assert stored.sites == {"model.layers.0": 32, "model.layers.1.mlp:in": 32}
    note = json.loads((plain / "activations.json").read_text())
    assert note["leave"] == [1, 2] and note["windows"] == 11 and note["length"] == LENGTH and len(note["shards"]) == 4
    assert not (plain.parent / "plain.partial").exists()
    for a, b in zip(some(stored, 20)[13:], some(stored, 7, 13), strict=True):
        assert torch.equal(a, b)


class InOrder(Source):
    """Rows in memory, in a given order."""

    def __init__(self, rows, order):
        self.rows, self.order = rows, order

    def since(self, number):
        for places in self.order.since(number):
            yield from self.rows[torch.from_numpy(places)].split(self.order.batch)


def test_learning_from_a_disk_is_learning_from_memory_to_the_bit(plain):
    pupils, lesson = [Pupil(TopK(), budget("4"), 48)], Lesson(30, rate=1e-2)
    one, mixed = Stored(plain, 10, seed=3, run=1), Stored(plain, 10, seed=3, run=4, pool=40)
    for source, same in ((one, Rows(all_rows(one), 10, seed=3)), (mixed, InOrder(all_rows(mixed), mixed.order))):
        assert all(map(torch.equal, some(source, 40), some(same, 40)))
        (disk,), (memory,) = (learn(pupils, s, lesson, mixed.sites) for s in (source, same))
        assert all(torch.equal(t, memory.tensors()[name]) for name, t in disk.tensors().items())
    assert disk.reads == ("model.layers.0", "model.layers.1.mlp:in")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(heard, plain, dtype, tmp_path):
    half = Stored(store(*heard, tmp_path / "half", dtype, SPECIAL, shard=SMALL // 2), 10, run=4)
    whole = Stored(plain, 10, run=4)
    assert torch.equal(all_rows(half), all_rows(whole).to(dtype)) and all_rows(half).dtype == dtype
    a, b = (next(iter(s)) for s in (half, whole))
    assert a.dtype == torch.float32 and torch.equal(a, b.to(dtype).float())
    files = [sum(f.stat().st_size for f in s.place.glob("*.safetensors")) for s in (half, whole)]
    assert files[0] < 0.55 * files[1]


class Killed(Exception):
    pass


def test_a_killed_write_goes_on_and_does_nothing_twice(heard, plain, tmp_path):
    out = tmp_path / "two"

    def die(row):
        if row["windows"] > 6:
            raise Killed

    with pytest.raises(Killed):
        store(*heard, out, torch.float32, SPECIAL, shard=SMALL, told=die)
    assert not out.exists()
    with pytest.raises(ValueError, match="two is not finished: store the same again"):
        Stored(out, 10)
    made = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "two.partial").glob("*.safetensors")}
    assert sorted(made) == ["00000.safetensors", "00001.safetensors"]
    rows = []
    store(*heard, out, torch.float32, SPECIAL, shard=SMALL, told=rows.append)
    assert rows[0]["windows"] == 9 and rows[-1] == {"windows": 11, "of": 11, "rows": len(Stored(plain, 10, run=4)), "bytes": rows[-1]["rows"] * 256}  # fmt: skip
    assert all((out / name).stat().st_mtime_ns == made[name] for name in made)
    for file in plain.iterdir():
        assert file.read_bytes() == (out / file.name).read_bytes()


def test_another_job_begins_anew_and_another_model_does_not_go_on(heard, tmp_path):
    model, taps, ids = heard
    with pytest.raises(Killed):
        store(model, taps, ids, tmp_path / "x", torch.float32, shard=SMALL, told=killer(4))
    other = build("llama", seed=1)
    with pytest.raises(ValueError, match=r"00000.safetensors was written by another model: .*% away"):
        store(other, taps, ids, tmp_path / "x", torch.float32, shard=SMALL)
    assert json.loads((store(other, taps, ids, tmp_path / "x") / "activations.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="x exists; write --force"):
        store(model, taps, ids, tmp_path / "x")
    store(model, taps, ids, tmp_path / "x", torch.float16, force=True)
    assert Stored(tmp_path / "x", 10).manifest["dtype"] == "float16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def killer(most):
    def die(row):
        if row["windows"] > most:
            raise Killed

    return die


def broken(change):
    model = build("llama")
    with torch.no_grad():
        change(model.model.layers[0].mlp.down_proj.weight)
    return model


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (
            lambda m, t, i, o: store(broken(lambda w: w.fill_(torch.nan)), t[1:], i, o),
            r"site model.layers.1.mlp:in: NaN or infinite",
        ),
        (
            lambda m, t, i, o: store(broken(lambda w: w.mul_(1e7)), t[:1], i, o, torch.float16, at_once=4),
            r"batch 0 \(windows \d+, \d+, \d+, \d+\): site model.layers.0: a number is too large for float16",
        ),
        (lambda m, t, i, o: store(m, [], i, o), "no site: there is nothing to store"),
        (lambda m, t, i, o: store(m, t, i[:1, :1], o, leave=frozenset(i[0, :1].tolist())), "no token that is not left"),
        (lambda m, t, i, o: store(m, t, i, o, torch.float64), "a store holds float32, bfloat16, float16"),
        (lambda m, t, i, o: store(m, t, i, o.parent / "no" / "where"), "is no directory to write where in"),
    ],
)
def test_what_cannot_be_stored_is_a_sentence(heard, tmp_path, do, says):
    with pytest.raises(ValueError, match=says):
        do(*heard, tmp_path / "store")


def test_a_late_batch_that_is_not_finite_is_named(heard, tmp_path):
    model, taps, ids = heard
    model = build("llama")
    model.model.embed_tokens.weight[int(ids[7, 5])] = (
        torch.nan
    )  # a word that no earlier window has, or an earlier one too
    with pytest.raises(ValueError, match=r"batch \d+ \(windows .*\): site model.layers.0: NaN or infinite at"):
        store(model, taps, ids, tmp_path / "store", at_once=2)


def note(change):
    def do(place):
        file = place / "activations.json"
        found = json.loads(file.read_text())
        change(found)
        file.write_text(json.dumps(found))

    return do


def cut(place):
    file = place / "00001.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def foreign(place):
    file = place / "00002.safetensors"
    text = file.read_bytes()
    at = text.index(b'"key":"') + 7
    file.write_bytes(text[:at] + b"0" * 64 + text[at + 64 :])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: (p / "activations.json").unlink(), "is no store of activations: .*activations.json cannot be read"),
        (lambda p: (p / "activations.json").write_text("{"), "is no store of activations"),
        (lambda p: (p / "00001.safetensors").unlink(), r"00001.safetensors is missing: .* expects \d+ rows"),
        (cut, r"00001.safetensors: \d+ bytes found, \d+ expected"),
        (lambda p: (p / "00001.safetensors").write_bytes(b""), r"00001.safetensors: 0 bytes found, \d+ expected"),
        (foreign, "00002.safetensors is of another store: key '0000"),
        (note(lambda n: n.update(format="other 2")), "format 'other 2' found, 'fewer.activations 1' expected"),
        (note(lambda n: n.update(shards=[])), "is empty: it holds 0 shards and no row"),
        (note(lambda n: n.update(sites={"a": 63})), r"F32 \[\d+, 64\] found, F32 \[\d+, 63\] expected"),
        (note(lambda n: n.update(dtype="int8")), "does not say its sites, dtype, key and shards"),
        (note(lambda n: n["shards"][0].update(file="../x")), "does not say its sites"),
    ],
)
def test_a_store_that_is_not_whole_is_refused_before_work(heard, plain, tmp_path, change, says):
    place = tmp_path / "copy"
    place.mkdir()
    for file in plain.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    Stored(place, 10, run=4)
    change(place)
    with pytest.raises(ValueError, match=says):
        Stored(place, 10, run=4)


def test_parts_of_a_store_are_its_batches(plain):
    whole, parts = Stored(plain, 10, run=4), [Stored(plain, 10, run=4).share(rank, 2) for rank in (0, 1)]
    for one, *two in zip(some(whole, 9), *(some(part, 9) for part in parts), strict=True):
        assert torch.equal(one, torch.cat(two))


def test_too_few_rows_are_refused(plain):
    with pytest.raises(ValueError, match="do not fill one batch of 1000"):
        Stored(plain, 1000)


def test_a_full_disk_is_seen_before_work(heard, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    with pytest.raises(ValueError, match="GB more, and its disk has 1e-05 GB left"):
        store(*heard, tmp_path / "store")


def test_the_command_stores_and_tells(tmp_path, capsys):
    words = [
        "--site",
        "layers.1",
        "--tokens",
        "200",
        "--length",
        "32",
        "--dtype",
        "float16",
        "-o",
        str(tmp_path / "store"),
    ]
    assert main(["activations", "bundled", *words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stored = Stored(tmp_path / "store", 20)
    assert rows[-1]["windows"] == rows[-1]["of"] == 7 and rows[-1]["rows"] == len(stored) > 150
    assert stored.manifest["about"] == {"model": "bundled", "data": "stdlib"}
    assert main(["activations", "bundled", *words[:-4], "--dtype", "int8", *words[-2:]]) == 2
    assert "--dtype int8: write one of float32" in capsys.readouterr().err
