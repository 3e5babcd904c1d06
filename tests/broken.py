"""How a broken method is named, and the check that must catch it; they are collected in `BROKEN`."""

import pytest

from fewer.core import Paper, method

PAPER = Paper("0000.00000", "Nowhere", 2026)
BROKEN: list = []


def broken(axis, by):
    """Mark a method as broken and say which check must say so."""

    def wrap(cls):
        cls.__module__ = f"fewer.{axis}.broken"
        BROKEN.append(pytest.param(method(PAPER)(cls), by, id=f"{cls.__name__}-{by}"))
        return cls

    return wrap
