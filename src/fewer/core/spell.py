"""A method as text, `weights/eora(rank=16)`, and back."""

import ast
import dataclasses
import re
from typing import Any

from .method import Method, find

_CALL = re.compile(r"(?P<name>[\w/]+)(?:\((?P<fields>.*)\))?")


def spell(m: Method, axis: str = "") -> str:
    """A method as it is written in a step: its name, and the fields that are not the defaults; what its repr leaves out is
    not written (tensors)."""
    name = m.name.removeprefix(f"{axis}/") if axis else m.name
    fields = [
        f"{f.name}={spell(value) if isinstance(value, Method) else repr(value)}"
        for f in dataclasses.fields(m)  # type: ignore[arg-type]
        if f.repr and (value := getattr(m, f.name)) != f.default
    ]
    return f"{name}({', '.join(fields)})" if fields else name


def method_of(text: str, axis: str = "") -> Method:
    """Read `weights/eora(rank=16)`; with an axis, the short name `eora(rank=16)` too."""
    if not (call := _CALL.fullmatch(text.strip())):
        raise ValueError(f"not a method: {text!r}; write 'weights/wanda' or 'weights/eora(rank=16)'")
    name = call["name"] if "/" in call["name"] or not axis else f"{axis}/{call['name']}"
    cls = find(name)
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.repr}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for field in filter(None, (part.strip() for part in parted(call["fields"] or ""))):
        key, equals, value = (part.strip() for part in field.partition("="))
        if not equals or key not in defaults:
            known = ", ".join(f"{k}={v!r}" for k, v in defaults.items()) or "none"
            raise ValueError(f"{name} has no field {key!r}; its fields are: {known}")
        given[key] = _literal(name, key, value, defaults[key])
    return cls(**given)


def parted(text: str) -> list[str]:
    """Parted at commas, but not within the brackets of a tuple.

    >>> parted("a=1, b=((0, 1), (2,)), c=3")
    ['a=1', ' b=((0, 1), (2,))', ' c=3']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _literal(name: str, key: str, text: str, default: Any) -> Any:
    if isinstance(default, Method):
        return method_of(text, default.name.partition("/")[0])
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, bool | int | float | str | tuple) and type(value) is not type(default):
        raise ValueError(f"{name}: {key}={text} must be of type {type(default).__name__}; the default is {default!r}")
    return value
