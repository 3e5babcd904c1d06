"""Our own form of a dictionary: safetensors, and a note in JSON that says the rest in words that people write."""

from pathlib import Path

from fewer.core import budget
from fewer.core.spell import method_of, spell
from fewer.features import Dictionary, Encoder, Sparsifier

from ._disk import Tensors, fitting, loaded, note_of, write_note, write_tensors
from ._form import single

NAME, FORMAT = "fewer", 1  # the format is what this version writes, and the newest that it reads
TENSORS, NOTE = "dictionary.safetensors", "dictionary.json"
SHAPES = {"encoder": "maps in", "encoder_bias": "maps", "decoder": "latents out", "decoder_bias": "out"}
SAID = {"format": int, "sparsifier": str, "budget": str, "reads": list, "writes": list, "about": dict}


def read(folder: Path) -> Dictionary:
    """ValueError: a file that is missing, cut short, newer than this version, or does not fit together."""
    file = folder / NOTE
    note = note_of(file)
    for name, kind in SAID.items():
        if not isinstance(note.get(name), kind):
            raise ValueError(f"{file}: {name!r} must be of type {kind.__name__}")
    if note["format"] > FORMAT:
        raise ValueError(
            f"{file}: written by a newer version (format {note['format']}, this one reads {FORMAT}); update fewer"
        )
    try:
        sparsifier, kept = method_of(note["sparsifier"], "features"), budget(note["budget"])
        how = method_of(str(note.get("encoder", "features/linear")), "features")
    except (ValueError, LookupError) as wrong:
        raise ValueError(f"{file}: {wrong}") from wrong
    if not isinstance(sparsifier, Sparsifier):
        raise ValueError(f"{file}: sparsifier={note['sparsifier']!r} is no method of the axis features")
    if not isinstance(how, Encoder):
        raise ValueError(f"{file}: encoder={note['encoder']!r} is no encoder, such as features/linear")
    found = loaded(folder / TENSORS)
    t = fitting(folder / TENSORS, found, SHAPES | {"skip?": "out in"})
    _check_maps(folder / TENSORS, how, t)
    own = {name.removeprefix("own."): x for name, x in found.items() if name.startswith("own.")}
    _check_own(folder / TENSORS, own, sparsifier.begin(len(t["decoder"]), kept))
    matrices = (t[name] for name in SHAPES)
    sites = (tuple(map(str, note[side])) for side in ("reads", "writes"))
    d = Dictionary(sparsifier, kept, *matrices, own, t.get("skip"), *sites, note["about"], how)
    try:
        d.encode(d.encoder.new_zeros(1, d.encoder.shape[1]))
    except (KeyError, RuntimeError) as wrong:
        raise ValueError(
            f"{folder / TENSORS}: what {sparsifier.name} has learnt is missing or of a wrong shape: {wrong}"
        ) from wrong
    return d


def write(d: Dictionary, folder: Path) -> None:
    """Any dictionary, in the dtype that it has."""
    write_tensors(folder / TENSORS, d.tensors() | {f"own.{name}": t for name, t in d.own.items()})
    note = {"format": FORMAT, "sparsifier": spell(d.sparsifier), "budget": str(d.budget), "encoder": spell(d.how)}
    write_note(folder / NOTE, note | {"reads": d.reads, "writes": d.writes, "about": dict(d.about)})


FORM = single(NAME, (NOTE, TENSORS), read, write)


def _check_maps(file: Path, how: Encoder, t: Tensors) -> None:
    try:
        maps = how.maps(len(t["decoder"]))
    except ValueError as wrong:
        raise ValueError(f"{file}: {wrong}") from wrong
    if len(t["encoder"]) != maps:
        latents = len(t["decoder"])
        raise ValueError(
            f"{file}: 'encoder' has {len(t['encoder'])} rows; {latents} latents of {how.name} ask for {maps}"
        )


def _check_own(file: Path, own: Tensors, begun: Tensors) -> None:
    """What only training needs may be missing, as in dictionaries that others have learnt."""
    for name, first in begun.items():
        if name in own and own[name].shape != first.shape:
            raise ValueError(f"{file}: 'own.{name}' is {list(own[name].shape)}, not {list(first.shape)}")
    if bad := [name for name, t in own.items() if not t.isfinite().all()]:
        raise ValueError(f"{file}: 'own.{bad[0]}' is NaN or infinite somewhere")
