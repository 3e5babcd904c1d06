"""fewer train features/... --groups: neighbouring layers that are alike share one dictionary."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewer.core import Budget

from ._bar import Bar, both, loss
from ._print import lines, note
from ._text import LEARNT, tokenizer_for

if TYPE_CHECKING:
    from fewer.features import Sparsifier

    from ._train_dictionary import Wanted

LOOK = 64  # windows from which it is seen how alike layers are


def groups(
    sparsifier: "Sparsifier",
    kept: Budget,
    model: str,
    out: Path,
    data: tuple[str, int],
    wanted: "Wanted",
    count: int,
    device: str,
    force: bool,
    json: bool,
    board: Any = None,
) -> None:
    """Deal out the layers, learn one dictionary a group on what all of its layers say, and judge it at each of them."""
    from fewer.dictionaries import save
    from fewer.dictionaries.layered import at_layers, heard
    from fewer.measure import amad, angular_distance, layer_groups
    from fewer.models import find_taps, open_model
    from fewer.train.kept import Kept

    from ._train_dictionary import BATCH
    from ._train_source import windows_of
    from .judge import judged, unseen

    if wanted.writes or wanted.skip or wanted.begin or wanted.boost or wanted.store or wanted.keep != "error":
        raise ValueError("--groups reads several sites: without --to, --skip, --loss, --from, --boost, --store")
    tokenizer = tokenizer_for(model, LEARNT)
    opened, _ = open_model(model, device)
    taps, special = find_taps(opened, every(opened, wanted.reads)), frozenset(tokenizer.all_special_ids)
    text = windows_of(data, tokenizer, wanted, BATCH)
    distance = angular_distance(heard(opened, taps, text[:LOOK], special))
    parts = layer_groups(distance, count)
    for i, part in enumerate(parts):
        note(f"group {i}: {', '.join(str(taps[layer]) for layer in part)}")
    note(f"mean over groups of the largest angle within: {amad(distance, parts):.3f} of pi")
    learnt, about = [], {"model": model, "data": data[0], "length": data[1]}
    with Bar(json) as bar:
        for i, part in enumerate(parts):
            told: Any = both(board, (lambda row: lines([row])) if json else loss(bar(f"learning group {i}")))
            some = [taps[layer] for layer in part]
            learnt.append(
                _learnt((sparsifier, kept), opened, some, text, special, wanted, Path(f"{out}.{i}"), told, about, force)
            )
    out.mkdir(exist_ok=True)
    for i, d in enumerate(learnt):
        save(d, out / f"group.{i}", force=force)
        Kept(f"{out}.{i}", "").finish()
    note(f"written: {out}; judge it again with `fewer judge {out}`")
    test = unseen(data[0], tokenizer, data[1], wanted.test) if wanted.test else None
    for at in (at for d in learnt for at in at_layers(d) if test is not None):
        judged(at, opened, tokenizer, test, data[0], json)


def _learnt(
    rule: tuple["Sparsifier", Budget], model: Any, taps: list, text: Any, leave: frozenset[int], wanted: "Wanted", out: Path,
    told: Any, about: dict[str, Any], force: bool,
) -> Any:  # fmt: skip
    """One dictionary on what all of these sites say, one under the other."""
    from fewer.dictionaries.layered import layered
    from fewer.train import Lesson, Live, Pupil, learn

    from . import _train_dictionary as front
    from ._train_source import parted

    source, unseen = (
        Live(model, taps, some, front.BATCH, leave, seed=wanted.seed, spread=True) for some in parted(text, front.BATCH)
    )
    width = next(iter(source)).shape[1]
    pupil = Pupil(*rule, wanted.latents or 8 * width, wanted.seed, (), (), *front.forms(wanted))
    lesson = Lesson(max(1, wanted.tokens // front.BATCH), wanted.rate, seed=wanted.seed, hide=wanted.hide)
    (d,) = learn([pupil], source, lesson, out=out, told=told, about=about, unseen=unseen, force=force)
    return layered(d, [str(tap) for tap in taps])


def every(model: Any, texts: tuple[str, ...]) -> list[str]:
    """Sites, with `*` for any part of a path. ValueError: nothing is like it.

    >>> from torch import nn
    >>> every(nn.ModuleDict({"layers": nn.ModuleList([nn.Identity(), nn.Identity()])}), ("layers.*",))
    ['layers.0', 'layers.1']
    """
    found = []
    for text in texts:
        path, colon, side = text.partition(":")
        like = re.compile(r"(.*\.)?" + r"[^.]+".join(map(re.escape, path.split("*"))))
        some = [name for name, _ in model.named_modules() if like.fullmatch(name)] if "*" in path else [path]
        if not some:
            raise ValueError(f"--site {text}: the model has no such modules")
        found += [name + colon + side for name in some]
    return found
