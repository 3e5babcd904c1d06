"""The sparsing law: how activation density runs with what a model has read, and with its shape, fitted by SciPy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .estimate import Estimate, student


@dataclass(frozen=True)
class Law:
    """A fitted curve: its coefficients with 95 % intervals (Student's, from the fit's covariance), and R^2 (higher is better)."""

    form: str
    coefficients: dict[str, Estimate]
    r_squared: float
    of: Callable[[Any], Any]

    def __call__(self, x: float | int) -> float:
        return float(self.of(np.asarray(x, float)))

    @property
    def limit(self) -> Estimate:
        """Where density goes in the end. Lower is better."""
        return self.coefficients["limit"]


def density_over_data(tokens: Sequence[float | int], density: Sequence[float | int]) -> Law:
    """Fit density against training tokens D by both laws of the paper, and give the one that leaves less unexplained.

    | law | form | the paper's models |
    |---|---|---|
    | rising | `limit - c / D^alpha` | SiLU |
    | falling | `limit + exp(b - c D^alpha)` | ReLU |

    Luo et al. 2024, Sparsing Law (2411.02335), section 4.1. D is divided by the largest given, so c is of that unit.
    ValueError: fewer than 5 points, shares outside 0..1, tokens that are not positive. RuntimeError: no fit was found.

    >>> x = [1e8, 2e8, 4e8, 8e8, 16e8, 32e8]
    >>> law = density_over_data(x, [0.4 - 0.05 * (d / 32e8) ** -0.5 for d in x])
    >>> law.form, round(law.limit.value, 4), round(law.coefficients["alpha"].value, 4)
    ('rising', 0.4, 0.5)
    """
    x, y = _points(tokens, density, 5)
    unit = x / x.max()

    def rising(d: Any, limit: float, c: float, alpha: float) -> Any:
        return limit - c * d**-alpha

    def falling(d: Any, limit: float, b: float, c: float, alpha: float) -> Any:
        return limit + np.exp(b - c * d**alpha)

    span = max(float(y.max() - y.min()), 1e-6)
    fits = [
        _fit("rising", rising, ("limit", "c", "alpha"), unit, y, (y[-1], span / 10, 0.3), ([0, 0, 0], [2, 2, 5])),
        _fit(
            "falling", falling, ("limit", "b", "c", "alpha"), unit, y, (max(float(y.min()) - span / 10, 0), np.log(span), 1.0, 0.5),
            ([0, -20, 0, 0], [1, 20, 60, 5]),
        ),
    ]  # fmt: skip
    found = [law for law in fits if law is not None]
    if not found:
        raise RuntimeError("neither law could be fitted: give points over a wider range of training tokens")
    best = max(found, key=lambda law: law.r_squared)
    return Law(best.form, best.coefficients, best.r_squared, lambda d, of=best.of: of(d / x.max()))


def density_over_shape(width_over_depth: Sequence[float | int], density: Sequence[float | int]) -> Law:
    """Fit density against a model's width-depth ratio: a line up to a bottleneck, level beyond it (section 4.3).

    `density = limit + slope * (min(ratio, bottleneck) - bottleneck)`. ValueError and RuntimeError as above.

    >>> law = density_over_shape([10, 20, 30, 40, 60, 80, 100], [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5])
    >>> round(law.coefficients["bottleneck"].value, 2), round(law.coefficients["slope"].value, 4)
    (50.0, 0.01)
    """
    x, y = _points(width_over_depth, density, 5)

    def bent(r: Any, limit: float, slope: float, bottleneck: float) -> Any:
        return limit + slope * (np.minimum(r, bottleneck) - bottleneck)

    names, bounds = ("limit", "slope", "bottleneck"), ([0, -np.inf, x[1]], [1, np.inf, x[-1]])
    steep = float(np.polyfit(x, y, 1)[0])
    fits = [
        _fit("bent", bent, names, x, y, (y[-1], steep, at), bounds) for at in x[1:-1]
    ]  # a bend is found from near by
    found = [law for law in fits if law is not None]
    if not found:
        raise RuntimeError("no line with a bottleneck could be fitted: give more shapes")
    return max(found, key=lambda law: law.r_squared)


def _points(x: Sequence[float | int], y: Sequence[float | int], least: int) -> tuple[Any, Any]:
    if len(x) != len(y) or len(x) < least:
        raise ValueError(f"{len(x)} places and {len(y)} densities: a fit needs as many of both, at least {least}")
    across, up = np.asarray(x, float), np.asarray(y, float)
    if not (np.isfinite(across).all() and (across > 0).all() and ((up >= 0) & (up <= 1)).all()):
        raise ValueError(f"densities {list(y)} at {list(x)}: expected shares from 0 to 1 at positive numbers")
    order = np.argsort(across)
    return across[order], up[order]


def _fit(form: str, of: Any, names: Sequence[str], x: Any, y: Any, start: Any, bounds: Any) -> Law | None:
    try:
        from scipy.optimize import OptimizeWarning, curve_fit
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("the sparsing law is fitted by SciPy: install fewer[judge]") from missing
    import warnings

    start = np.clip(np.asarray(start, float), np.asarray(bounds[0], float), np.asarray(bounds[1], float))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", OptimizeWarning
            )  # no covariance: the intervals are endless then, and say so
            values, covariance = curve_fit(of, x, y, start, bounds=bounds, max_nfev=20_000, xtol=1e-12, ftol=1e-12)
    except RuntimeError:
        return None
    freedom = len(x) - len(names)
    half = student(freedom) * np.sqrt(np.diag(covariance)) if freedom > 0 else np.full(len(names), np.inf)
    each = {
        n: Estimate(float(v), float(v - h), float(v + h), len(x)) for n, v, h in zip(names, values, half, strict=True)
    }
    left = float(np.square(y - of(x, *values)).sum())
    spread = float(np.square(y - y.mean()).sum())
    return Law(form, each, 1 - left / spread if spread else float(left == 0), lambda r: of(r, *values))
