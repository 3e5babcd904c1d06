"""Sparse attention as other tools write it down, turned into steps of ours: told by the keys of a file, never by its name."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fewer.cache.dms import Dms
from fewer.cache.duo import HEADS, Duo
from fewer.core import Budget
from fewer.core.spell import spell

from . import modelopt
from .steps import Recipe, step

Keys = Mapping[str, Any]
BEYOND = ("vertical_and_slash", 1000, 6096, 1.0)  # what MInference gives a head that its file leaves out
ROCKET = {"algorithm", "window_size", "kernel_size", "topr", "topk", "prompt_budget", "page_size", "kt_cache_dtype"}
SKIP = {"algorithm", "threshold_scale_factor", "target_sparsity", "seq_len_threshold", "uses_spcompress"}
MINIMAX = {
    "use_sparse_attention",
    "sparse_topk_blocks",
    "sparse_block_size",
    "sparse_num_index_heads",
    "sparse_index_dim",
}
MINIMAX |= {"sparse_init_block", "sparse_local_block", "sparse_score_type", "sparse_attention_freq"}
MINIMAX |= {"sparse_disable_index_value", "algorithm", "sparse_init_blocks", "sparse_local_blocks"}


@dataclass(frozen=True)
class Found:
    """What a file of another tool says: whose it is, the steps, and what of it they do not say."""

    tool: str
    steps: Recipe
    notes: tuple[str, ...] = ()


def interchange(source: str | Path | Mapping[str, Any] | Sequence[Any]) -> Found:
    """Read a file, a folder with one, or what was in it. ValueError names the place, what is there and what would be right.

    | told by | tool |
    |---|---|
    | a folder with `full_attention_heads.tsv` | DuoAttention |
    | a list of layers, `{"0": ["vertical_and_slash", v, s, score], ...}` | MInference, Qwen's 1M models |
    | `config_groups` | ModelOpt |
    | `algorithm` | TensorRT-LLM |
    | `sparse_topk_blocks` | MiniMax-M3 |
    | `dual_chunk_attention_config` | Qwen's 1M models |
    | `seerattn_...` | SeerAttention |
    | `dms_...` | DMS |
    """
    if not isinstance(source, str | Path):
        return _told(source, "what was given")
    path = Path(source)
    if path.is_dir():
        if (path / HEADS).is_file():
            return _duo(path)
        names = ("sparse_attention_config.json", "config.json")
        if not (there := next((path / n for n in names if (path / n).is_file()), None)):
            raise ValueError(f"{path}: no {HEADS} and no {' or '.join(names)} lies there")
        path = there
    if path.name == HEADS:
        return _duo(path.parent)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return _told(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _told(found: Any, place: str) -> Found:
    if isinstance(found, list):
        return _minference(found, place)
    if not isinstance(found, Mapping):
        raise ValueError(f"{place}: an object or a list of layers is wanted, not {type(found).__name__}")
    if found and all(str(n).isdigit() for n in found):
        return _minference([found[n] for n in sorted(found, key=int)], place)
    for key, reader in READERS.items():
        if any(name == key or (key.endswith("_") and name.startswith(key)) for name in found):
            return reader(found, place)
    raise ValueError(
        f"{place}: none of its keys is known to say how attention is sparse ({', '.join(map(str, list(found)[:8]))}); "
        f"known are {', '.join(READERS)}"
    )


def _within(found: Keys, place: str) -> Found:
    """An object that lies in another one."""
    key = next(k for k in ("sparse_attention_config", "dual_chunk_attention_config") if k in found)
    return _told(found[key], f"{place}: {key}")


def _duo(folder: Path) -> Found:
    duo = Duo.load(folder)
    text = f"cache/streaming_llm(sinks={duo.sinks}) 50% by {spell(duo, 'cache')}"
    note = "the file has no budget: at 50% half of the heads remember nearly all; another share is written in the step"
    return Found("DuoAttention", (step(text),), (note,))


def _minference(layers: Sequence[Any], place: str) -> Found:
    """A list of layers; those that are alike become one step."""
    texts = [_layer(heads, f"{place}, layer {n}") for n, heads in enumerate(layers)]
    if not texts:
        raise ValueError(f"{place}: a list of layers, and it is empty")
    steps = [
        step(f"{text} @ {', '.join(f'*.{n}.*' for n, mine in enumerate(texts) if mine == text)}, prefill")
        for text in dict.fromkeys(texts)
    ]
    if len(steps) == 1:
        steps = [step(f"{texts[0]} @ prefill")]
    note = "so many columns and so many diagonals are one budget of as many keys, met in blocks of 64"
    return Found("MInference", tuple(steps), (note,) if any("vertical_slash" in t for t in texts) else ())


def _layer(heads: Any, place: str) -> str:
    """The pattern of a layer, by heads of the queries, without its place."""
    if not isinstance(heads, Mapping) or not heads or not all(str(h).isdigit() for h in heads):
        raise ValueError(
            f"{place}: an object of heads by number is wanted, {{'0': ['vertical_and_slash', 1000, 6096, 1]}}"
        )
    found = {int(h): _head(said, f"{place}, head {h}") for h, said in heads.items()}
    every = [found.get(h, _head(BEYOND, place)) for h in range(max(found) + 1)]
    parts = list(dict.fromkeys(every))
    if len(parts) == 1:
        return f"attention/{parts[0]}"
    deal = tuple(parts.index(part) for part in every)
    return f"attention/by_head(parts={' | '.join(parts)!r}, deal={deal}) 100%"


def _head(said: Any, place: str) -> str:
    if not isinstance(said, list | tuple) or len(said) < 3 or not all(type(n) is int and n >= 0 for n in said[1:3]):
        raise ValueError(f"{place}: {said!r} is not a name and two sizes, such as ['stream_llm', 100, 800, 1]")
    name, first, second = said[:3]
    if name == "vertical_and_slash":
        return f"vertical_slash {max(1, first + second)}"
    if name == "stream_llm":
        return f"streaming(sinks={first}) {max(1, first + second)}"
    if name == "block_sparse":
        return f"bi_level {max(1, first) * 64}"
    raise ValueError(
        f"{place}: the pattern {name!r} is unknown; known are vertical_and_slash, stream_llm, block_sparse"
    )


def _modelopt(found: Keys, place: str) -> Found:
    return Found("ModelOpt", *modelopt.read(found, place))


def _tensorrt(found: Keys, place: str) -> Found:
    which = str(found["algorithm"]).lower()
    if which == "rocket":
        return _rocket(_known(found, ROCKET, place), place)
    if which == "skip_softmax":
        _known(found, SKIP, place)
        return Found("TensorRT-LLM", *modelopt.skipping(found, place))
    if which in ("dsa", "deepseek_v4"):
        return _indexer(found, place)
    if which in ("minimax_m3", "minimax"):
        return _minimax(found, place)
    raise ValueError(f"{place}: algorithm {found['algorithm']!r} is unknown; known are rocket, dsa, skip_softmax")


def _rocket(found: Keys, place: str) -> Found:
    """RocketKV: SnapKV of the prompt, then the best pages of what stayed."""
    window, kernel = _size(found, "window_size", 32, place), _size(found, "kernel_size", 63, place)
    page, stay = _size(found, "page_size", 4, place), _size(found, "prompt_budget", 2048, place)
    best = _size(found, "topk", 64, place) * page
    size = page if 16 % page == 0 else 4
    steps = (
        step(f"cache/snap_kv(window={window}, kernel={kernel}) {stay}"),
        step(f"attention/quest(block={size}) {best} @ decode"),
    )
    notes = ["pages are ranked by the bound of all channels, not of the topr largest of a query"]
    if size != page:
        notes.append(f"pages of {page} do not divide ours of 16: pages of {size} are read, as many keys in all")
    return Found("TensorRT-LLM", steps, tuple(notes))


def _indexer(found: Keys, place: str) -> Found:
    top = _size(found, "index_topk", 2048, place)
    raise ValueError(
        f"{place}: the {top} keys are chosen by an indexer that was learnt with the model ('indexer.wq_b', ...): open that "
        f"model itself; for another model write a step such as 'attention/quest {top} @ decode'"
    )


def _minimax(found: Keys, place: str) -> Found:
    _known(found, MINIMAX, place)
    if found.get("use_sparse_attention") is False:
        raise ValueError(f"{place}: use_sparse_attention is false: attention is dense, and there is no step to write")
    block, top = _size(found, "sparse_block_size", 128, place), _size(found, "sparse_topk_blocks", 16, place)
    freq = found.get("sparse_attention_freq")
    where = "prefill, decode"
    if freq is not None and not all(freq):
        some = [n for n, sparse in enumerate(freq) if sparse]
        if not some:
            raise ValueError(f"{place}: sparse_attention_freq names no layer that is sparse")
        where = f"{', '.join(f'*.{n}.*' for n in some)}, {where}"
    notes = ["blocks are ranked by the bound of q.k over a block: the heads of the index are learnt with the model"]
    if first := found.get("sparse_init_block", found.get("sparse_init_blocks", 0)):
        notes.append(f"the first {first} blocks are not forced: 'union' with 'streaming' does that")
    return Found("MiniMax-M3", (step(f"attention/quest(block={block}) {top * block} @ {where}"),), tuple(notes))


def _seer(found: Keys, place: str) -> Found:
    how = found.get("seerattn_sparsity_method", "threshold")
    block, gate = (
        _size(found, "seerattn_gate_block_size", 64, place),
        _size(found, "seerattn_gate_hidden_size", 128, place),
    )
    if how == "nz_ratio":
        amount = str(Budget(_share(found, "seerattn_nz_ratio", place)))
    elif how == "token_budget":
        amount = str(_size(found, "seerattn_token_budget", 0, place))
    else:
        raise ValueError(
            f"{place}: seerattn_sparsity_method {how!r} keeps what a gate scores above {found.get('seerattn_threshold')}, which "
            "is no budget; set it to 'nz_ratio' or 'token_budget'"
        )
    notes = (
        "its gates read queries and keys before they are rotated, ours after: they are not taken, and `fewer train` learns ours",
    )
    return Found("SeerAttention", (step(f"attention/seer(gate={gate}, rows={block}, block={block}) {amount}"),), notes)


def _dms(found: Keys, place: str) -> Found:
    times, window = _size(found, "dms_cr", 8, place), _size(found, "dms_window_size", 512, place)
    if found.get("dms_alpha_per", "head") != "head":
        raise ValueError(
            f"{place}: dms_alpha_per {found['dms_alpha_per']!r}: one decision for each head is wanted, 'head'"
        )
    numbers = {"scale": found.get("dms_alpha_scale", 100.0), "offset": found.get("dms_initial_alpha_offset", 5.0)}
    if not all(isinstance(x, int | float) for x in numbers.values()):
        raise ValueError(f"{place}: dms_alpha_scale and dms_initial_alpha_offset are numbers, not {numbers}")
    m = Dms(recent=window, scale=float(numbers["scale"]), offset=float(numbers["offset"]))
    share = str(Budget(Fraction(1, times)))
    notes = (f"'dms_cr' {times} is what it was trained for; here it is a budget: 1 of {times} stays",)
    return Found("DMS", (step(f"{spell(m)} {share}"),), notes)


def _known(found: Keys, keys: set[str], place: str) -> Keys:
    if unknown := sorted(set(found) - keys):
        raise ValueError(f"{place}: the keys {', '.join(unknown)} are unknown; known are {', '.join(sorted(keys))}")
    return found


def _size(found: Keys, key: str, default: int, place: str) -> int:
    n = default if found.get(key) is None else found[key]
    if type(n) is not int or n < 1:
        raise ValueError(f"{place}: {key} is {n!r}; it counts, and is at least 1")
    return n


def _share(found: Keys, key: str, place: str) -> Fraction:
    x = found.get(key)
    if not isinstance(x, int | float) or not 0 < x <= 1:
        raise ValueError(f"{place}: {key} is {x!r}; it is a share, above 0 and at most 1")
    return Fraction(str(x))


READERS: dict[str, Callable[[Keys, str], Found]] = {
    "config_groups": _modelopt,
    "algorithm": _tensorrt,
    "sparse_topk_blocks": _minimax,
    "seerattn_": _seer,
    "dms_": _dms,
    "index_topk": _indexer,
    "sparse_attention_config": _within,
    "dual_chunk_attention_config": _within,
}
