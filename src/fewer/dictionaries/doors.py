"""One door for every form in which a dictionary lies on a disk or on the hub: it is known by its files."""

from pathlib import Path

from fewer.features import Dictionary

from . import files, sae_lens, sparsify

FORMS = {files.NOTE: files.read, sae_lens.TENSORS: sae_lens.read, sparsify.TENSORS: sparsify.read}


def load(place: str | Path) -> Dictionary:
    """A dictionary of ours, of SAELens or of sparsify: a directory, or `hf:owner/name` or `hf:owner/name/folder`.

    ValueError: no such directory, none of these forms, or what is in it does not fit together.
    """
    folder = _fetched(str(place)) if str(place).startswith("hf:") else Path(place)
    if not folder.is_dir():
        raise ValueError(f"{place}: no such directory; give that of a dictionary, or 'hf:owner/name/folder'")
    for name, read in FORMS.items():
        if (folder / name).is_file():
            return read(folder)
    raise ValueError(f"{place} holds no dictionary: there is none of {', '.join(FORMS)}")


def _fetched(place: str) -> Path:
    from huggingface_hub import snapshot_download

    owner, _, rest = place.removeprefix("hf:").partition("/")
    name, _, folder = rest.partition("/")
    if not owner or not name:
        raise ValueError(f"{place}: write 'hf:owner/name' or 'hf:owner/name/folder'")
    inside = f"{folder}/*" if folder else "*"
    return Path(snapshot_download(f"{owner}/{name}", allow_patterns=[inside])) / folder
