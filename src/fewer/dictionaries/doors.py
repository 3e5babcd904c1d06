"""One door for every form in which dictionaries lie on a disk or on the hub: they are known by their files."""

import re
from collections.abc import Sequence
from pathlib import Path

from fewer.features import Dictionary

from . import circuit_tracer, dictionary_learning, files, gemma_scope, llama_scope, llamascopium, sae_lens, sparsify
from ._disk import whole
from ._form import Form
from ._probe import check_probe, write_probe

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        files.FORM,
        sae_lens.FORM,
        sparsify.FORM,
        dictionary_learning.FORM,
        *gemma_scope.FORMS,
        llama_scope.FORM,
        *circuit_tracer.FORMS,
        llamascopium.FORM,
    )
}


def load(place: str | Path, format: str | None = None, verify: bool = True) -> Dictionary:
    """The dictionary in a directory, or at `hf:owner/name` or `hf:owner/name/folder`, in any form that `FORMS` names.

    If a probe lies beside it (we always write one), the dictionary must still say of it what it did. ValueError: no such
    directory, none of these forms, files that do not fit together or were changed, or several dictionaries: see `load_all`.
    """
    found = load_all(place, format, verify)
    if len(found) != 1:
        raise ValueError(f"{place} holds {len(found)} dictionaries: load_all gives them all")
    return found[0]


def load_all(place: str | Path, format: str | None = None, verify: bool = True) -> list[Dictionary]:
    """All dictionaries of a directory: those of each layer, or of each directory in it, in the order of their numbers."""
    folder = _fetched(str(place)) if str(place).startswith("hf:") else Path(place)
    forms = [_form(format)] if format else list(FORMS.values())
    if not folder.is_dir():
        raise ValueError(f"{place}: no such directory; give that of a dictionary, or 'hf:owner/name/folder'")
    if form := _lying(folder, forms):
        found = form.read(folder)
        if verify:
            check_probe(found, folder)
        return found
    below = sorted((f for f in folder.iterdir() if f.is_dir() and _lying(f, forms)), key=_natural)
    if not below:
        known = "; ".join(f"{form.name}: {', '.join(form.marks)}" for form in forms)
        raise ValueError(f"{place} holds no dictionary; one is known by its files: {known}")
    return [d for f in below for d in load_all(f, format, verify)]


def save(
    dictionary: Dictionary | Sequence[Dictionary], out: str | Path, force: bool = False, format: str = files.NAME
) -> Path:
    """Write a directory, whole or not at all, and a probe beside the form's own files.

    `fewer` holds everything; other forms hold what their tools know (`about`, budgets and sites as far as there is a place).
    Several dictionaries go into a form that holds one for each layer. `force` replaces a dictionary that is there, once the
    new one is whole. ValueError: `out` exists, or the form has no place for what the dictionary is; LookupError: no such form.
    """
    out, form = Path(out), _form(format)
    several = [dictionary] if isinstance(dictionary, Dictionary) else list(dictionary)
    if out.exists() and not force:
        raise ValueError(f"{out} exists; write --force (force=True) to replace it")
    if out.exists() and not (out.is_dir() and (_lying(out, list(FORMS.values())) or not any(out.iterdir()))):
        raise ValueError(f"{out} is no dictionary, so it is not replaced by one; name another place")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.absolute().parent} is no directory to write {out.name} in")
    if not several:
        raise ValueError("there is no dictionary to save")
    with whole(out.absolute()) as part:
        several = [d.to("cpu") for d in several]
        form.write(several, part)
        found = form.read(part)  # what was written must say what the dictionary says; of several, biases may have moved
        write_probe(several if len(several) == 1 else found, part)
        check_probe(found, part)
    return out


def _form(name: str) -> Form:
    if name not in FORMS:
        raise LookupError(f"no form {name!r}; there are: {', '.join(FORMS)}")
    return FORMS[name]


def _lying(folder: Path, forms: Sequence[Form]) -> Form | None:
    return next((form for form in forms if form.lies_in(folder)), None)


def _natural(path: Path) -> list[tuple[int, str]]:
    """`layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _fetched(place: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    owner, _, rest = place.removeprefix("hf:").partition("/")
    name, _, folder = rest.partition("/")
    if not owner or not name:
        raise ValueError(f"{place}: write 'hf:owner/name' or 'hf:owner/name/folder'")
    try:
        home = snapshot_download(f"{owner}/{name}", allow_patterns=[f"{folder}/*" if folder else "*"])
    except (OSError, ValueError, HfHubHTTPError) as wrong:
        raise ValueError(f"{place} cannot be fetched: {wrong}") from wrong
    return Path(home) / folder
