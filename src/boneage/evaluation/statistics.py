"""Agreement of two measurements of age, every figure from sums over cases.

A figure is a function of the sums of a few columns (1, reference, prediction, their squares,
whether an error is small, ...). So its value, its 2,000 bootstrap resamples and the same for every
group of cases are one matrix product, and 12,611 cases take seconds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from boneage.evaluation.metrics import classification_figures
from boneage.stages import STAGES

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Ends = dict[str, float | None]
"""A figure: its value, and the low and high end of its 95% interval; None where undefined."""

RESAMPLES = 2000
"""Bootstrap resamples and permutations by default."""

SIGNIFICANT = 0.05
"""Corrected p-value below which a difference is called significant."""

WITHIN_MONTHS = (6, 12, 18, 24)
LIMITS_OF_AGREEMENT = 1.96
_RESAMPLES_AT_ONCE = 100
_BASE = ("n", "r", "p", "rr", "pp", "rp", "dd", "abs")
_ROUNDING = 1e-10
"""Share of a sum of squares below which a spread is rounding: an SD of 0.001 months at 10 years."""


def age_columns(reference: npt.ArrayLike, predicted: npt.ArrayLike) -> Array:
    """Columns (n, k) whose sums give `age_figures`; ages in months."""
    r, p = np.asarray(reference, float), np.asarray(predicted, float)
    d, size = p - r, np.abs(p - r)
    # A hair more, so that an error of exactly the limit counts whatever its last bit.
    within = [(size <= limit + 1e-9).astype(float) for limit in WITHIN_MONTHS]
    return np.stack([np.ones_like(r), r, p, r * r, p * p, r * p, d * d, size, *within], axis=1)


def age_figures(sums: Array) -> dict[str, Array]:
    """Errors and agreement of ages in months, from sums (..., k) of `age_columns`.

    MAE, RMSE, R², shares of small errors, bias (predicted - reference), Bland-Altman limits of
    agreement (bias -/+ 1.96 SD of the errors), Deming regression with equal variances, and
    ICC(2,1): two-way random effects, absolute agreement, one measurement. NaN where undefined.

    Source: Bland & Altman, Lancet 1986; Shrout & Fleiss, Psychological Bulletin 1979; Deming,
    Statistical Adjustment of Data, 1943.
    """
    n, r, p, rr, pp, rp, dd, size = np.moveaxis(sums[..., : len(_BASE)], -1, 0)
    within = np.moveaxis(sums[..., len(_BASE) : len(_BASE) + len(WITHIN_MONTHS)], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = (p - r) / n
        # Sums of squares and products around the means.
        s_rr, s_pp, s_dd = (_spread(rr, r, n), _spread(pp, p, n), _spread(dd, p - r, n))
        s_rp = np.where((s_rr > 0) & (s_pp > 0), rp - r * p / n, 0.0)
        sd = np.where(n > 1, np.sqrt(s_dd / np.maximum(n - 1, 1)), np.nan)
        slope = _deming_slope(s_rr, s_pp, s_rp)
        # ICC(2,1) of two raters, its three mean squares written out.
        icc = 2 * s_rp / (s_rr + s_pp + (n - 1) * bias**2 - s_dd / n)
        figures = {
            "mae_months": size / n,
            "bias_months": bias,
            "rmse_months": np.sqrt(dd / n),
            "r2": 1 - dd / s_rr,
            "icc": icc,
            "sd_months": sd,
            "loa_low_months": bias - LIMITS_OF_AGREEMENT * sd,
            "loa_high_months": bias + LIMITS_OF_AGREEMENT * sd,
            "deming_slope": slope,
            "deming_intercept_months": (p - slope * r) / n,
            **{f"within_{m}_months": w / n for m, w in zip(WITHIN_MONTHS, within, strict=True)},
        }
    return {name: np.where(np.isfinite(v), v, np.nan) for name, v in figures.items()}


def _spread(squares: Array, total: Array, n: Array) -> Array:
    """Sum of squares around the mean, exactly zero where there is no spread."""
    spread = squares - total * total / n
    return np.where(spread > _ROUNDING * squares, spread, 0.0)


def _deming_slope(s_rr: Array, s_pp: Array, s_rp: Array) -> Array:
    """Slope of the principal axis, in the form that does not cancel."""
    apart = s_pp - s_rr
    root = np.sqrt(apart**2 + 4 * s_rp**2)
    return np.where(apart < 0, 2 * s_rp / (root - apart), (apart + root) / (2 * s_rp))


def stage_columns(reference: npt.ArrayLike, predicted: npt.ArrayLike) -> Array:
    """One column a cell of the confusion matrix, (n, 9); stage codes."""
    k = len(STAGES)
    cell = np.asarray(reference) * k + np.asarray(predicted)
    return (cell[:, None] == np.arange(k * k)).astype(float)


def stage_figures(sums: Array) -> dict[str, Array]:
    """Accuracy, weighted precision, recall and F1, and QWK from sums of `stage_columns`."""
    k = len(STAGES)
    with np.errstate(divide="ignore", invalid="ignore"):
        return classification_figures(sums.reshape(*sums.shape[:-1], k, k))


def resample(n: int, resamples: int, seed: int = 0) -> Iterator[Array]:
    """Give bootstrap weights, some draws at a time: how often each case is drawn, (d, n)."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, resamples - start)
        rows = rng.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(rows.ravel(), minlength=size * n).reshape(size, n).astype(np.float32)


def weighted_median(values: Array, weights: Array) -> Array:
    """Median of values (n,) under whole weights (d, n); NaN where all weights are zero.

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


def bootstrap_groups(
    cases: Array, masks: Sequence[Mask], resamples: int, sizes: Array
) -> tuple[Array, Array, Array]:
    """Sums of the columns of each group, the same resampled, and its resampled median errors.

    Args:
        cases: Columns, (n, k).
        masks: Members of each of g groups, (n,) each.
        resamples: Bootstrap resamples over all cases, d.
        sizes: Size of each case's error, (n,), in any unit.

    Returns:
        Sums (g, k), their draws (g, d, k), and the medians of `sizes` (g, d), NaN where a draw
        holds no case of the group.
    """
    n, k = cases.shape
    wide = np.concatenate([cases * mask[:, None] for mask in masks], axis=1)
    drawn = np.empty((resamples, len(masks), k))
    medians = np.empty((len(masks), resamples))
    done = 0
    for weights in resample(n, resamples):
        rows = slice(done, done := done + len(weights))
        drawn[rows] = (weights.astype(np.float64) @ wide).reshape(-1, len(masks), k)
        for i, mask in enumerate(masks):
            medians[i, rows] = weighted_median(sizes[mask], weights[:, mask])
    return wide.sum(axis=0).reshape(len(masks), k), drawn.transpose(1, 0, 2), medians


def permutation_p_values(
    size: Array,
    groups: Sequence[Mask],
    permutations: int = 2000,
    seed: int = 0,
    *,
    studentised: bool = False,
) -> list[float]:
    """Two-sided p-value of each group's mean differing from that of the cases outside it.

    The same shuffles serve every group, and every call with the same seed and number of cases;
    NaN for a group that holds no case, or all, and without shuffles.

    Args:
        size: Value of each case, (n,), such as its error, the size of it, or 0 and 1.
        groups: Membership, (n,) each.
        permutations: Shuffles.
        seed: Of the shuffling.
        studentised: Compare differences in units of their standard error (Welch's t) rather than
            as they are. A small group whose values only spread more then keeps its level of
            false alarms, where the plain difference would often be called significant.

    Returns:
        A p-value a group, from 1 / (permutations + 1) to 1.

    Source: Chung & Romano, Annals of Statistics 2013, for the studentised test.
    """
    n = len(size)
    counts = np.array([int(group.sum()) for group in groups])
    is_testable = (counts > 0) & (counts < n) & (permutations > 0)
    m = np.where(is_testable, counts, 1)
    values = _standardise(size) if studentised else size
    columns = np.stack([values, values * values] if studentised else [values])
    total = columns.sum(axis=1)
    statistic = _welch_t if studentised else _mean_difference

    def measure(inside: Array) -> Array:
        return statistic(inside, total[:, None] - inside, m, np.maximum(n - m, 1))

    seen = measure(np.stack([columns[:, group].sum(axis=1) for group in groups], axis=1))
    rng = np.random.default_rng(seed)
    at_least = np.zeros(len(groups))
    for _ in range(permutations):
        inside = np.cumsum(columns[:, rng.permutation(n)], axis=1)[:, m - 1]
        at_least += measure(inside) >= seen - (1e-6 if studentised else 1e-9)  # than sums round
    found = (at_least + 1) / (permutations + 1)
    return [float(p) if ok else float("nan") for p, ok in zip(found, is_testable, strict=True)]


def _standardise(values: Array) -> Array:
    """Centre, and scale to an SD of 1; all zero where there is no spread but rounding."""
    apart = values - values.mean()
    return apart / apart.std() if np.ptp(values) > 1e-9 else np.zeros_like(apart)


def _mean_difference(inside: Array, outside: Array, m: Array, rest: Array) -> Array:
    """Size of the difference of means, from sums (1, g) over m and over the rest of the cases."""
    return np.abs(inside[0] / m - outside[0] / rest)


def _welch_t(inside: Array, outside: Array, m: Array, rest: Array) -> Array:
    """Size of Welch's t, from sums of standardised values and of their squares, (2, g) each."""
    error = np.zeros(len(m))
    for sums, count in ((inside, m), (outside, rest)):
        squares = np.maximum(sums[1] - sums[0] ** 2 / count, 0.0)
        error += squares / np.maximum(count - 1, 1) / count
    # A floor far below what data give, so that groups without any spread have a finite t.
    return _mean_difference(inside, outside, m, rest) / np.sqrt(np.maximum(error, 1e-9))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979); NaN stays and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = [i for i, p in enumerate(p_values) if not np.isnan(p)]
    result = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[i]))
        result[i] = largest
    return result


def mcnemar(first: Mask, second: Mask) -> dict[str, Any]:
    """Compare two that answered the same cases by those that only one of them got right."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return {
        "only_first_right": only_first,
        "only_second_right": only_second,
        "mcnemar_p": mcnemar_p_value(only_first, only_second),
    }


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test from the cases that only one of two got right.

    Source: McNemar, Psychometrika 1947.
    """
    from scipy.stats import binomtest

    n = only_first + only_second
    return 1.0 if n == 0 else float(binomtest(only_first, n, 0.5).pvalue)


def wilcoxon_p_value(difference: Array, least: float = 0.0) -> float:
    """Two-sided Wilcoxon signed-rank test of paired differences (n,); 1 if all are zero.

    Args:
        difference: In any unit.
        least: Size up to which a difference counts as zero.

    Source: Wilcoxon, Biometrics Bulletin 1945.
    """
    from scipy.stats import wilcoxon

    moved = difference[np.abs(difference) > least]
    return 1.0 if moved.size == 0 else float(wilcoxon(moved).pvalue)


def with_intervals(
    value: Mapping[str, Array], resamples: Mapping[str, Array], level: float = 0.95
) -> dict[str, dict[str, float | None]]:
    """Give each figure as value, low, high; None where it is undefined.

    Draws that are all the same, as of one case, give no interval: they say nothing.
    """
    tails = [(1 - level) / 2, (1 + level) / 2]
    result: dict[str, Ends] = {}
    for name, v in value.items():
        found = np.asarray(resamples[name], float)
        found = found[~np.isnan(found)]
        low = high = None
        if not np.isnan(v) and found.size and np.ptp(found) > 1e-9:
            low, high = map(float, np.quantile(found, tails))
        result[name] = {"value": None if np.isnan(v) else float(v), "low": low, "high": high}
    return result


def paired_mean(difference: Array, resamples: int) -> Ends:
    """Mean of paired differences (n,) with its bootstrap interval; None without cases."""
    n = len(difference)
    if n == 0:
        return {"value": None, "low": None, "high": None}
    means = [weights.astype(np.float64) @ difference / n for weights in resample(n, resamples)]
    drawn = np.concatenate([np.empty(0), *means])
    return with_intervals({"mean": difference.mean()}, {"mean": drawn})["mean"]


def wilson(k: int, n: int) -> Ends:
    """Share k of n with its 95% interval; None without cases.

    Source: Wilson, JASA 1927.
    """
    if n == 0:
        return {"value": None, "low": None, "high": None}
    z = 1.959964
    p, spread = k / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return {"value": p, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}
