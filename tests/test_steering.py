"""A steering on a disk: it moves a model as its dictionary did, without it, and what does not fit is refused."""

import json
from dataclasses import replace

import pytest
import torch
from test_steer import IDS, LATENTS, dictionary, heard
from tiny import build

from fewer.dictionaries.steer import Add, ClampWhenActive, ScaleWhenActive, Set, steered
from fewer.dictionaries.steering import Steering, identity
from fewer.features.batch_top_k import BatchTopK
from fewer.features.jump_relu import JumpRelu
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_k import TopK

EDITS = (Set(3, 2.0), ClampWhenActive(31, -4.0), ScaleWhenActive(3, 0.5), Add(8, 1.5))
CASES = {  # sparsifier, what it has learnt, edits, rows that are kept
    "jump_relu": (JumpRelu(), {"threshold": torch.linspace(0, 2, LATENTS)}, EDITS, (3, 8, 31)),
    "batch_top_k": (BatchTopK(), {"threshold": torch.tensor(0.7)}, EDITS, (3, 8, 31)),
    "relu": (ReluL1(), {}, EDITS, (3, 8, 31)),
    "top_k, which competes": (TopK(), {}, EDITS, tuple(range(LATENTS))),
    "top_k, not asked": (TopK(), {}, (Add(8, 1.5), Add(2, -3.0)), (2, 8)),
}


@pytest.fixture(scope="module")
def model():
    return build("llama")


@pytest.mark.parametrize("sites", [("layers.0", "layers.0"), ("layers.1.mlp:in", "layers.1.mlp")], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_saved_steering_moves_as_its_dictionary_did(model, case, sites, tmp_path):
    sparsifier, own, edits, rows = CASES[case]
    d = dictionary(*((s,) for s in sites), sparsifier, own)
    found = Steering.load(Steering.cut(d, edits).save(tmp_path / "s"))
    assert found.latents == rows and found.of == identity(d) and found.dictionary.latents == len(rows)
    plain = heard(model, sites[1])
    with steered(model, d, edits):
        truth = heard(model, sites[1])
    with found.on(model):
        moved = heard(model, sites[1])
    assert torch.allclose(moved, truth, atol=1e-5) and not torch.allclose(moved, plain, atol=0.1)
    assert torch.equal(heard(model, sites[1]), plain)
    asked = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
    with steered(model, d, edits):
        said = model.generate(IDS, **asked)
    with found.on(model):
        assert torch.equal(model.generate(IDS, **asked), said)


def test_a_name_is_of_what_is_computed():
    d = dictionary()
    other = replace(d, decoder=d.decoder + 1e-6 * (torch.arange(LATENTS) == 5)[:, None])
    assert identity(d) == identity(replace(d, about={"x": 1})) != identity(other)
    assert identity(replace(d, reads=("layers.1",))) != identity(d)


def broken(change):
    def spoil(place):
        note = json.loads((place / "steering.json").read_text())
        change(note)
        (place / "steering.json").write_text(json.dumps(note))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: (p / "steering.json").unlink(), "steering.json cannot be read"),
        (lambda p: (p / "dictionary.safetensors").write_bytes(b"x" * 99), "dictionary.safetensors cannot be read"),
        (broken(lambda n: n.update(format=9)), "format 9 found, 1 expected"),
        (broken(lambda n: n.update(latents=[1])), "'latents' must be the 3 numbers of the rows"),
        (broken(lambda n: n.update(edits=[])), "'edits' must be a list of at least one"),
        (broken(lambda n: n["edits"][0].update(kind="Eval")), "its kind must be one of Add, Set"),
        (broken(lambda n: n["edits"][0].update(latent=3)), "latents are 0 to 2"),
        (broken(lambda n: n["edits"][0].update(to=float("nan"))), "must hold finite numbers"),
        (broken(lambda n: n["edits"][0].pop("to")), "must have latent, to"),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path, spoil, says):
    place = Steering.cut(dictionary(sparsifier=ReluL1()), EDITS).save(tmp_path / "s")
    with pytest.raises(ValueError, match="exists"):
        Steering.cut(dictionary(), EDITS).save(place)
    spoil(place)
    with pytest.raises(ValueError, match=says):
        Steering.load(place)


def test_edits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="no edits"):
        Steering.cut(dictionary(), [])
    with pytest.raises(ValueError, match=f"latent {LATENTS}: the dictionary has 0 to {LATENTS - 1}"):
        Steering.cut(dictionary(), [Add(LATENTS, 1.0)])
