"""What `fewer train features/...` learns from: a model that runs, a store of activations, an array of rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._print import lines, note, table
from ._text import LEARNT, tokenizer_for

if TYPE_CHECKING:
    from ._train_dictionary import Wanted


@dataclass(frozen=True)
class Stream:
    """Activations to learn from, and to settle on; what is read and written of them; and who judges what was learnt."""

    source: Any
    unseen: Any
    sites: dict[str, int]  # columns
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    distinct: int  # tokens
    about: dict[str, Any]
    judge: Callable[[list[Any]], None]
    running: "Running | None" = None


@dataclass(frozen=True, eq=False)
class Running:
    """A model, and the windows of text that it is run on, as many at a time as a step has tokens."""

    model: Any
    windows: Any
    later: Any
    leave: frozenset[int]


def live(
    model: str, data: tuple[str, int], wanted: "Wanted", batch: int, device: str, json: bool, feels: bool
) -> Stream:
    """A model on text, with the slopes of its loss beside for who `feels`; what does not fit together is refused here."""
    from fewer.dictionaries.fit import widths
    from fewer.models import find_taps, open_model
    from fewer.train import Live, Windows

    from .judge import judge_all, unseen

    if not wanted.reads:
        raise ValueError("--site is missing: say what the dictionary reads, such as --site layers.4")
    tokenizer = tokenizer_for(model, LEARNT)
    opened, _ = open_model(model, device)
    reads, writes = find_taps(opened, wanted.reads), find_taps(opened, wanted.writes)
    wide = widths(opened, [*reads, *writes])
    wide |= {replace(tap, gradient=True): wide[tap] for tap in reads if feels}
    taps = [*wide]
    text = windows_of(data, tokenizer, wanted, batch)
    test = unseen(data[0], tokenizer, data[1], wanted.test) if wanted.test else None
    special, parts, at_once = frozenset(tokenizer.all_special_ids), parted(text, batch), max(1, batch // data[1])
    source, held = (Live(opened, taps, some, batch, special, seed=wanted.seed) for some in parts)
    windows, later_windows = (Windows(some, min(at_once, len(some)), wanted.seed) for some in parts)
    distinct = source.windows.numel()
    names = tuple(map(str, reads)), tuple(map(str, writes or reads))
    about = {"model": model, "data": data[0], "length": data[1], "distinct": distinct}

    def judge(learnt: list[Any]) -> None:
        if test is not None:
            judge_all(learnt, opened, tokenizer, test, data[0], json)

    running = Running(opened, windows, later_windows, special)
    return Stream(source, held, {str(t): wide[t] for t in taps}, *names, distinct, about, judge, running)


def stored(place: Path, wanted: "Wanted", batch: int, device: str, json: bool) -> Stream:
    """What `fewer activations` has written, or an array: .npy or .safetensors with one row an input."""
    return _array(place, wanted, batch, device, json) if place.is_file() else _store(place, wanted, batch, device, json)


def _store(place: Path, wanted: "Wanted", batch: int, device: str, json: bool) -> Stream:
    from fewer.train import Stored

    from .judge import judge_all, model_for, unseen

    if not place.exists():
        raise ValueError(
            f"{place}: no such store; give a directory of `fewer activations`, a .npy or a .safetensors file"
        )
    source = Stored(place, batch, wanted.seed, device=device)
    said = dict(source.manifest.get("about") or {})
    about = said | {"length": source.manifest.get("length"), "distinct": len(source)}

    def judge(learnt: list[Any]) -> None:
        if not wanted.test or not isinstance(said.get("model"), str):
            return
        data, length = str(said.get("data") or "stdlib"), int(about["length"] or 256)
        _, opened, tokenizer = model_for(place, learnt, None, device, "dictionaries are judged on text")
        judge_all(learnt, opened, tokenizer, unseen(data, tokenizer, length, wanted.test), data, json)

    names = _named(wanted.reads, source.sites), _named(wanted.writes, source.sites)
    reads = names[0] or tuple(source.sites)
    return Stream(source, None, source.sites, reads, names[1] or reads, len(source), about, judge)


def _named(wanted: Sequence[str], sites: Sequence[str] | dict[str, int]) -> tuple[str, ...]:
    """The sites whose paths end so.

    >>> _named(["layers.4"], ["model.layers.4", "model.layers.14"])
    ('model.layers.4',)
    """
    found = []
    for name in wanted:
        fits = [site for site in sites if site == name or site.endswith(f".{name}")]
        if len(fits) != 1:
            raise ValueError(f"site {name!r}: the store holds {', '.join(sites)}; write one of them")
        found += fits
    return tuple(found)


def _array(place: Path, wanted: "Wanted", batch: int, device: str, json: bool) -> Stream:
    from fewer.train import Rows
    from fewer.train.dictionaries import HELD

    if wanted.reads or wanted.writes:
        raise ValueError(f"{place} is an array, which has no sites: leave --site and --to out")
    rows = _opened(place)
    later = min(HELD * batch, len(rows) // 5)
    if len(rows) - later < batch or later < 1:
        raise ValueError(
            f"{place} holds {len(rows)} rows: at least {batch + batch // 4 + 1} are needed, a batch and some to settle on"
        )
    if device != "cpu":
        rows = _tensor(rows).to(device)
    source, held = Rows(rows[:-later], batch, wanted.seed), Rows(rows[-later:], min(batch, later))
    about = {"data": place.name, "distinct": len(rows) - later}

    def judge(learnt: list[Any]) -> None:
        _explained(learnt, rows[-later:], json)

    return Stream(source, held, {"": rows.shape[1]}, (), (), len(rows) - later, about, judge)


def _opened(place: Path) -> Any:
    """Rows, mapped where they can be. ValueError: another kind of file, several tensors, other shapes."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        if place.suffix == ".npy":
            rows = np.load(place, mmap_mode="r", allow_pickle=False)
        elif place.suffix == ".safetensors":
            with safe_open(place, "pt") as file:
                names = list(file.keys())
                if len(names) != 1:
                    raise ValueError(f"it holds {len(names)} tensors ({', '.join(names[:4])}), not one")
                rows = file.get_tensor(names[0])
        else:
            raise ValueError("its name ends neither in .npy nor in .safetensors")
    except (OSError, ValueError, SafetensorError, EOFError) as wrong:
        raise ValueError(f"{place} cannot be read: {wrong}") from wrong
    real = np.issubdtype(rows.dtype, np.number) if isinstance(rows, np.ndarray) else not rows.is_complex()
    if rows.ndim != 2 or not real:
        raise ValueError(f"{place}: {rows.dtype} {list(rows.shape)} found, real numbers [rows, columns] expected")
    return rows


def _tensor(rows: Any) -> Any:
    """In memory, as what is mapped may not be written to."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(rows)) if isinstance(rows, np.ndarray) else rows


def _explained(learnt: list[Any], rows: Any, json: bool) -> None:
    """How well rows that it has not seen are explained, beside controls."""
    from fewer.dictionaries.judge import principal_like, random_like, row
    from fewer.measure import reconstruction

    from .judge import columns

    x = _tensor(rows).float()
    first = learnt[0]
    k = max(1, round((first.encode(x).value != 0).sum().item() / len(x)))
    rivals = {f"seed {d.about['seed']}" if len(learnt) > 1 else "dictionary": d for d in learnt}
    rivals |= {"random": random_like(first, x, x, k), "pca": principal_like(first, x, x, k)}
    found = []
    for name, d in rivals.items():
        r = reconstruction((y, d.decode(codes, y), codes) for y in x.split(256) for codes in [d.encode(y)])
        found.append(row(name, (r.l0, r.explained, r.fvu, r.cosine, r.dead, r.dense)))
    if json:
        return lines(found)
    head, cells = columns(found)
    table(head, cells, wrap=head[1:])
    note(
        f"on {len(x)} rows that it has not learnt from; 95 % intervals over pieces of 256; controls are fitted on these rows"
    )


def parted(text: Any, batch: int) -> tuple[Any, Any]:
    """Windows to learn from, and the last, to settle on: a fifth at most."""
    from fewer.train.dictionaries import HELD

    later = min(HELD * batch // text.shape[1], max(1, len(text) // 5))
    return text[:-later], text[-later:]


def windows_of(data: tuple[str, int], tokenizer: Any, wanted: "Wanted", batch: int) -> Any:
    """As many windows as are asked for, or as there are, of the parts that no test reads; and some more, to settle on."""
    from fewer.data import corpus, every_window
    from fewer.train.dictionaries import HELD

    source, length = data
    documents = [*corpus(source, "calibration"), *corpus(source, "validation")]
    return every_window(documents, tokenizer, length, -(-(wanted.tokens + HELD * batch) // length), wanted.seed)
