"""Which sites a text names: roles, groups and globs, with `!` to take away, and a good answer to a typo."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from fewer.core.site import Site

from .roles import GROUPS, ROLES

Owner = tuple[Site, list[Site]]  # a site, and the later owners of the same tensor


def _is(site: Site, pattern: str) -> bool:
    """Whether one site answers to one pattern."""
    if pattern in GROUPS:
        latent = site.role == "other" and pattern == "attention" and ("attn" in site.name or "attention" in site.name)
        return site.role in GROUPS[pattern] or latent  # DeepSeek's q_a_proj, kv_b_proj, ...
    if pattern == "experts":
        return ".experts." in f".{site.name}"
    if pattern in ROLES and pattern == site.role:
        return True
    return any(is_named(n, pattern) for n in (site.name, site.name.partition("[")[0]))


def _answers(owner: Owner, pattern: str) -> bool:
    return any(_is(site, pattern) for site in (owner[0], *owner[1]))


def taken(where: str, hits: Callable[[str], set[Any]]) -> set[Any]:
    """What the patterns of `where` name, one after the other: `!` takes away, from everything if it stands first.

    `hits(pattern)` is what one pattern names; it raises where that is nothing.
    """
    words = [w.strip() for w in where.split(",")]
    if not all(w.strip("! ") for w in words):
        raise ValueError(f"an empty pattern in {where!r}; write '*', a role such as 'q', or a glob such as '*.mlp.*'")
    chosen: set[Any] = set()
    for word in words if not words[0].startswith("!") else ["*", *words]:
        some = hits(word.lstrip("! "))
        chosen = chosen - some if word.startswith("!") else chosen | some
    return chosen


def is_named(name: str, pattern: str) -> bool:
    """Whether a glob fits a name; brackets stand for themselves."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def matching(where: str, found: Sequence[Owner], reserved: Sequence[Owner], order: Sequence[Owner]) -> list[Site]:
    """The sites that `where` names, in `order`; `reserved` ones only where a pattern finds nothing in `found`."""
    if not found and where.strip() == "*":
        return []

    def hits(pattern: str) -> set[int]:
        both = [*found, *reserved] if pattern in ROLES else found
        some = [o for o in both if _answers(o, pattern)] or [o for o in reserved if _answers(o, pattern)]
        if not some:
            raise ValueError(_nothing(pattern, order))
        return {id(o[0]) for o in some}

    chosen = taken(where, hits)
    return [site for site, _ in order if id(site) in chosen]


def _nothing(pattern: str, order: Sequence[Owner]) -> str:
    names = [site.name for owner in order for site in (owner[0], *owner[1])]
    words = [*dict.fromkeys(site.role for site, _ in order), *GROUPS, "experts"]
    ends = {n.rpartition(".")[2]: f"*.{n.rpartition('.')[2]}" for n in reversed(names) if "." in n}
    inner = {part: f"*.{part}.*" for n in names for part in n.split(".")[:-1] if not part.isdigit()}
    near = get_close_matches(pattern, [*words, *names], n=3, cutoff=0.5)
    near += [(inner | ends)[t] for t in get_close_matches(pattern.strip("*."), [*(inner | ends)], n=2, cutoff=0.6)]
    return f"no linear map matches {pattern!r}; close: {', '.join(dict.fromkeys(near)) or ', '.join(words)}"
