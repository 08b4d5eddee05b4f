"""Tests of differences, their correction for number, and intervals of proportions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from boneage.evaluation.bootstrap import Array, Estimate, Mask

SIGNIFICANT = 0.05
"""Corrected p-value below which a difference is called significant."""


def permutation_p_values(
    size: Array,
    groups: Sequence[Mask],
    permutations: int,
    seed: int,
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
    """Compare two predictions of the same cases by those that only one of them got right."""
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


def wilson(k: int, n: int) -> Estimate:
    """Proportion k of n with its 95% interval; None without cases.

    Source: Wilson, JASA 1927.
    """
    if n == 0:
        return {"value": None, "low": None, "high": None}
    z = 1.959964
    p, spread = k / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return {"value": p, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}
