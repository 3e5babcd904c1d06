"""The words in a step's place that say when it acts, for all axes that act while a model runs: '@ mlp, decode, beyond 4'."""

import re

PHASES = ("prefill", "decode")
FEW = 16  # new tokens that are a step of decoding
_BEYOND = re.compile(r"beyond (\d+)")


def words_of(where: str) -> list[str]:
    """The words of a place, which commas part."""
    return [w.strip() for w in where.split(",")]


def rest_of(words: list[str]) -> str:
    """The patterns of names among them: what says no phase and no length.

    >>> rest_of(words_of("*.mlp.*, decode, beyond 4")), rest_of(["decode"])
    ('*.mlp.*', '*')
    """
    return ",".join(w for w in words if w not in PHASES and not _BEYOND.fullmatch(w)) or "*"


def lengths_of(words: list[str]) -> list[int]:
    """After how many tokens it begins, each time that is said.

    >>> lengths_of(words_of("decode, beyond 4"))
    [4]
    """
    return [int(form[1]) for w in words if (form := _BEYOND.fullmatch(w))]


def beyond(tokens: int) -> str:
    """The word for: where there are more tokens than these."""
    return f"beyond {tokens}"
