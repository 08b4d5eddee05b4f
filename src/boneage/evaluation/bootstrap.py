"""The one bootstrap: intervals that depend on the cases alone, not on the order of their rows."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Estimate = dict[str, float | None]
"""A figure: `value`, and `low` and `high` of its 95% interval; None where undefined."""

RESAMPLES = 2000
"""Bootstrap resamples, and permutations, by default."""

LEVEL = 0.95
"""Coverage of the intervals."""

_AT_ONCE = 100  # resamples whose weights are in memory together


def seed_of(*columns: Iterable[object]) -> int:
    """Give a seed that follows from the content of columns (n,) and from nothing else."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update("\n".join(map(repr, column)).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return int.from_bytes(digest.digest()[:8], "big")


def resample(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """Give bootstrap weights (r, n), some resamples at a time: how often each case is taken."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        size = min(_AT_ONCE, resamples - start)
        rows = rng.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(rows.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def weighted_median(values: Array, weights: Array) -> Array:
    """Median of values (n,) under whole weights (r, n); NaN where all weights are zero.

    Example:
        >>> weighted_median(np.array([1.0, 2.0, 4.0]), np.array([[1, 1, 1], [1, 2, 3]])).tolist()
        [2.0, 3.0]
    """
    order = np.argsort(values)
    reached = np.cumsum(weights[:, order], axis=1)
    total = reached[:, -1:]
    ordered = values[order]
    lower = ordered[(reached >= total / 2).argmax(axis=1)]
    upper = ordered[(reached > total / 2).argmax(axis=1)]
    return np.where(total[:, 0] > 0, (lower + upper) / 2, np.nan)


def estimate(value: npt.ArrayLike, resampled: npt.ArrayLike) -> Estimate:
    """Give a figure with its percentile interval.

    Resamples in which the figure is undefined (NaN) are left out. If all others give the same
    value, as those of one case do, there is no interval: it would claim certainty.

    Args:
        value: The figure itself, one number.
        resampled: The same of each resample, (r,); none for no interval.

    Source: Efron, Annals of Statistics 1979, 7:1.
    """
    v, found = float(np.asarray(value)), np.asarray(resampled, float)
    found = found[~np.isnan(found)]
    low = high = None
    if not np.isnan(v) and found.size and np.ptp(found) > 1e-9:
        low, high = map(float, np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return {"value": None if np.isnan(v) else v, "low": low, "high": high}


def estimates(values: Mapping[str, Array], resampled: Mapping[str, Array]) -> dict[str, Estimate]:
    """Give several figures with their intervals, as `estimate` does."""
    return {name: estimate(value, resampled[name]) for name, value in values.items()}


def mean_estimate(values: npt.ArrayLike, resamples: int) -> Estimate:
    """Mean of values (n,), such as paired differences, with its interval; None without cases."""
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    if n == 0:
        return {"value": None, "low": None, "high": None}
    means = [weights @ ordered / n for weights in resample(n, resamples, seed_of(ordered.tolist()))]
    return estimate(ordered.mean(), np.concatenate([np.empty(0), *means]))
