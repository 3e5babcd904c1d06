"""ModelOpt's `sparse_attention_config`, read and written: skipped softmax and N:M of scores."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fewer
from fewer.attention.dfss import Dfss
from fewer.attention.skip_softmax import SkipSoftmax
from fewer.core.spell import spell

from .phases import PHASES
from .steps import Recipe, step

Keys = Mapping[str, Any]
GROUP = {"targets", "ignore", "initial_disabled_steps", "algorithm"}
SKIP = GROUP | {"threshold_scale_factor", "target_sparsity"}
SPARSE = GROUP | {"sparsity_n", "sparsity_m", "dense_sink_tokens", "dense_recent_tokens"}
FORMULA = "a * exp(b * target_sparsity)"
OBSERVED = {"a", "b", "min_observed_sparsity", "max_observed_sparsity"}


def read(found: Keys, place: str) -> tuple[Recipe, tuple[str, ...]]:
    """The steps of a `sparse_attention_config` with `config_groups`, and what they leave out. ValueError names what is unknown."""
    groups = found["config_groups"]
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(
            f"{place}: config_groups is an object of groups, such as {{'group_0': {{...}}}}, not {groups!r}"
        )
    _refuse(set(found) - {"config_groups", "producer"}, f"{place}", {"config_groups", "producer"})
    steps: Recipe = ()
    notes: tuple[str, ...] = ()
    for name, group in groups.items():
        here = f"{place}: {name}"
        which = group.get("algorithm") if isinstance(group, Mapping) else None
        if which == "skip_softmax":
            _refuse(set(group) - SKIP, here, SKIP)
            more, told = skipping(group, here)
        elif which == "sparse_softmax":
            _refuse(set(group) - SPARSE, here, SPARSE)
            more, told = _sparse(group, here), ()
        else:
            raise ValueError(f"{here}: algorithm {which!r} is unknown; known are skip_softmax and sparse_softmax")
        steps, notes = steps + more, notes + told + _left_out(group, name)
    return steps, notes


def skipping(found: Keys, place: str) -> tuple[Recipe, tuple[str, ...]]:
    """A step for each phase that has a threshold: a number, or a formula and the share that is to be skipped."""
    factor, target = found.get("threshold_scale_factor"), found.get("target_sparsity", 0.5)
    if factor is None:
        raise ValueError(
            f"{place}: threshold_scale_factor is missing: the formula's a and b lie in the model's config.json"
        )
    texts = {}
    for phase in PHASES:
        gone = target.get(phase, 0.5) if isinstance(target, Mapping) else target
        if (line := _line(factor, phase, place)) is None:
            continue
        if not isinstance(gone, int | float) or not 0 <= gone <= 1:
            raise ValueError(f"{place}: target_sparsity of {phase} is {gone!r}; it is a share from 0 to 1")
        texts[phase] = spell(SkipSoftmax(a=line[0], b=line[1], aim=round(1 - gone, 12)))
    if not texts:
        raise ValueError(f"{place}: threshold_scale_factor names neither {' nor '.join(PHASES)}")
    return tuple(step(f"{text} 100% @ {phase}") for phase, text in texts.items()), ()


def _line(factor: Any, phase: str, place: str) -> tuple[float, float] | None:
    """a and b of a phase; a plain number is a, and b is 0; None if nothing is said of the phase."""
    said = factor
    if isinstance(factor, Mapping):
        if (formula := factor.get("formula", FORMULA)) != FORMULA:
            raise ValueError(f"{place}: the formula {formula!r} is unknown; known is {FORMULA!r}")
        _refuse(set(factor) - {"formula", *PHASES}, f"{place}: threshold_scale_factor", {"formula", *PHASES})
        said = factor.get(phase)
    if said is None:
        return None
    if isinstance(said, Mapping):
        _refuse(set(said) - OBSERVED, f"{place}: {phase}", OBSERVED)
    a, b = (said.get("a"), said.get("b")) if isinstance(said, Mapping) else (said, 0.0)
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in (a, b)) or a < 0:
        raise ValueError(f"{place}: threshold_scale_factor of {phase} is {said!r}; a number, or a and b, not below 0")
    return float(a), float(b)


def _sparse(found: Keys, place: str) -> Recipe:
    sizes = {key: found.get(key, 0) for key in ("sparsity_n", "sparsity_m", "dense_sink_tokens", "dense_recent_tokens")}
    n, m, sinks, recent = sizes.values()
    if not all(type(x) is int and x >= 0 for x in sizes.values()) or not 0 < n <= m:
        raise ValueError(f"{place}: {n!r} of {m!r}, {sinks!r} first and {recent!r} newest keys: counts, 0 < n <= m")
    return (step(f"{spell(Dfss(n=n, m=m, sinks=sinks, recent=max(1, recent)))} 100% @ prefill"),)


def _left_out(group: Keys, name: str) -> tuple[str, ...]:
    notes = []
    if group.get("ignore"):
        notes.append(f"{name}: {', '.join(group['ignore'])} stay dense there: take them out with '@ !...'")
    if group.get("initial_disabled_steps"):
        notes.append(
            f"{name}: dense for the first {group['initial_disabled_steps']} steps of a diffusion; here from the first"
        )
    return tuple(notes)


def _refuse(unknown: set[str], place: str, known: set[str]) -> None:
    if unknown:
        raise ValueError(
            f"{place}: the keys {', '.join(sorted(unknown))} are unknown; known are {', '.join(sorted(known))}"
        )


def describe(steps: Recipe, targets: tuple[str, ...] = ()) -> dict[str, Any]:
    """The `sparse_attention_config` of steps of `attention/skip_softmax` and `attention/dfss`; `targets` are classes of modules.

    ValueError for a step that ModelOpt has no words for.
    """
    factor: dict[str, Any] = {"formula": FORMULA}
    target, groups = {}, []
    common = {"targets": list(targets) or ["*"], "ignore": [], "initial_disabled_steps": 0}
    for s in steps:
        words = [w.strip() for w in s.where.split(",")]
        phases = [w for w in words if w in PHASES] or list(s.method.phases)
        known = isinstance(s.method, SkipSoftmax | Dfss) and s.budget.plain and s.budget.whole
        if not known or set(words) - {"*", *PHASES}:
            raise ValueError(
                f"ModelOpt has no words for '{s}': write attention/skip_softmax or attention/dfss at 100%, everywhere"
            )
        if isinstance(s.method, SkipSoftmax):
            factor |= {phase: {"a": s.method.a, "b": s.method.b} for phase in phases}
            target |= dict.fromkeys(phases, round(1 - s.method.aim, 12))
            continue
        sizes = {"sparsity_n": s.method.n, "sparsity_m": s.method.m}
        sizes |= {"dense_sink_tokens": s.method.sinks, "dense_recent_tokens": s.method.recent}
        groups.append({"algorithm": "sparse_softmax", **common, **sizes})
    if target:
        skip = {"algorithm": "skip_softmax", **common, "threshold_scale_factor": factor, "target_sparsity": target}
        groups.insert(0, skip)
    named = {f"group_{i}": group for i, group in enumerate(groups)}
    return {"config_groups": named, "producer": {"name": "fewer", "version": fewer.__version__}}


def write(steps: Recipe, config: str | Path, targets: tuple[str, ...] = ()) -> Path:
    """Put it into a model's config.json, whose other keys stay; the file is replaced in one step."""
    path = Path(config)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    told["sparse_attention_config"] = describe(steps, targets)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        json.dump(told, file, indent=2)
    os.chmod(file.name, path.stat().st_mode)
    os.replace(file.name, path)
    return path
