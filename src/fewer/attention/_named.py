"""A method that another one names, in blocks of that one's size."""

from dataclasses import replace
from functools import cache

from fewer.attention import Pattern
from fewer.core.spell import method_of


@cache
def named(text: str, rows: int, block: int) -> Pattern:
    """What `text` says, as `attention/quest` or `streaming(sinks=0)`; looked up once, as it is asked at every step.

    ValueError: a method that is no pattern.
    """
    m = method_of(text.strip(), "attention")
    if not isinstance(m, Pattern):
        raise ValueError(f"{text!r} is no method of attention")
    return replace(m, rows=rows, block=block)
