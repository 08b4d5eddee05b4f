"""The cases of a prediction table, as columns whose sums give every figure.

A figure is a function of the sums of a few columns (1, reference, prediction, their squares,
whether an error is small, ...). So its value, its bootstrap resamples and the same for every group
of cases are one matrix product, and 12,611 cases take seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from boneage.evaluation.bootstrap import (
    Array,
    Estimate,
    Mask,
    estimate,
    estimates,
    resample,
    seed_of,
    weighted_median,
)
from boneage.evaluation.metrics import (
    classification_figures,
    expected_calibration_error,
    reliability_bins,
    reliability_place,
)
from boneage.evaluation.prediction_table import INTERVAL, has_ages, has_intervals
from boneage.stages import PROBABILITIES, STAGES, stage_from_years

Figures = dict[str, Estimate]

MONTHS = 12.0
"""Months in a year."""

WITHIN_MONTHS = (6, 12, 18, 24)
"""Sizes of error whose proportions are given."""

LIMITS_OF_AGREEMENT = 1.96
"""Standard deviations of the errors from their mean to the limits of agreement."""

_CONTENT = ("image_id", "reference_years", "predicted_years", "reference_stage", "predicted_stage")
"""Columns from which the seed of the bootstrap follows."""

_BASE = ("n", "r", "p", "rr", "pp", "rp", "dd", "abs")
_ROUNDING = 1e-10
"""Proportion of a sum of squares below which a spread is rounding: an SD of 0.001 months."""


@dataclass(frozen=True)
class Cases:
    """The cases of a prediction table, in an order that does not depend on that of its rows.

    Attributes:
        table: Sorted by `image_id`, or by all its columns where it has none.
        columns: (n, k).
        seed: Of the bootstrap; follows from the table's content.
        kinds: Where each kind of column lies: `ages`, `stages`, `threshold`, `intervals`, as far
            as the table has them.
    """

    table: pd.DataFrame
    columns: Array
    seed: int
    kinds: Mapping[str, slice] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Cases":
        """Take the cases of a checked prediction table, see `prediction_table`."""
        by = ["image_id"] if "image_id" in table else list(table.columns)
        ordered = table.sort_values(by, kind="stable", ignore_index=True)
        parts: dict[str, Array] = {}
        if has_ages(ordered):
            parts["ages"] = _age_columns(ordered["reference_years"], ordered["predicted_years"])
        if "predicted_stage" in ordered:
            truth = stage_codes(ordered["reference_stage"])
            parts["stages"] = _stage_columns(truth, stage_codes(ordered["predicted_stage"]))
            if has_ages(ordered):
                by_age = stage_from_years(ordered["predicted_years"])
                parts["threshold"] = (by_age == truth).astype(float)[:, None]
        if has_intervals(ordered):
            low, high = (ordered[name].to_numpy(float) for name in INTERVAL)
            reference = ordered["reference_years"].to_numpy(float)
            covered = (low <= reference) & (reference <= high)
            parts["intervals"] = np.stack([covered, high - low], axis=1)
        count = np.ones((len(ordered), 1))
        ends = np.cumsum([1, *(part.shape[1] for part in parts.values())])
        kinds = {
            name: slice(int(start), int(end))
            for name, start, end in zip(parts, ends, ends[1:], strict=False)
        }
        seed = seed_of(*(ordered[name].tolist() for name in _CONTENT if name in ordered))
        return cls(ordered, np.concatenate([count, *parts.values()], axis=1), seed, kinds)

    @property
    def everyone(self) -> Mask:
        """Mask of all cases."""
        return np.ones(len(self.table), dtype=bool)

    @property
    def errors(self) -> Array:
        """Predicted - reference age in years, (n,)."""
        return (self.table["predicted_years"] - self.table["reference_years"]).to_numpy(float)

    def figures(self, sums: Array) -> dict[str, Array]:
        """Give every figure from sums (..., k) of the columns, each (...); NaN where undefined."""
        n = sums[..., 0]
        result: dict[str, Array] = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            if "ages" in self.kinds:
                result |= _age_figures(sums[..., self.kinds["ages"]])
            if "stages" in self.kinds:
                result |= _stage_figures(sums[..., self.kinds["stages"]])
            if "threshold" in self.kinds:
                result["threshold_accuracy"] = sums[..., self.kinds["threshold"]][..., 0] / n
                result["difference"] = result["accuracy"] - result["threshold_accuracy"]
            if "intervals" in self.kinds:
                covered, width = np.moveaxis(sums[..., self.kinds["intervals"]], -1, 0)
                result |= {"coverage": covered / n, "interval_width_years": width / n}
        return result


class GroupFigures:
    """Figures of groups of the same cases, and differences between groups, with intervals.

    All groups share the resamples of the whole table, so that a difference has an interval too.

    Args:
        cases: The cases.
        masks: Members of each group, (n,) each.
        resamples: Bootstrap resamples; 0 for no intervals.
    """

    def __init__(self, cases: Cases, masks: Sequence[Mask], resamples: int) -> None:
        n, k = cases.columns.shape
        self._cases, self._masks = cases, masks
        members = [np.flatnonzero(mask) for mask in masks]
        wide = np.concatenate([cases.columns * mask[:, None] for mask in masks], axis=1)
        self._sizes = np.abs(cases.errors) if "ages" in cases.kinds else None
        self._sums = wide.sum(axis=0).reshape(len(masks), k)
        self._total = cases.columns.sum(axis=0)
        self._resampled = np.empty((resamples, len(masks), k))
        self._resampled_total = np.empty((resamples, k))
        self._medians = np.full((len(masks), resamples), np.nan)
        done = 0
        for weights in resample(n, resamples, cases.seed):
            rows = slice(done, done := done + len(weights))
            self._resampled[rows] = (weights @ wide).reshape(-1, len(masks), k)
            self._resampled_total[rows] = weights @ cases.columns
            if self._sizes is not None:
                for i, group in enumerate(members):
                    if group.size:
                        own = weights[:, group]
                        self._medians[i, rows] = weighted_median(self._sizes[group], own)

    def sums(self, i: int) -> Array:
        """Sums (k,) of the columns over group i."""
        return self._sums[i]

    def of(self, i: int) -> Figures:
        """Figures of group i; ages in years, `median_error_years` of their sizes among them."""
        values = self._cases.figures(self._sums[i])
        resampled = self._cases.figures(self._resampled[:, i])
        if self._sizes is not None and self._masks[i].any():
            values["median_error_years"] = np.median(self._sizes[self._masks[i]])
            resampled["median_error_years"] = self._medians[i]
        return estimates(values, resampled)

    def difference(self, i: int, j: int | None, names: Sequence[str]) -> Figures:
        """Figures of group i less those of group j, or of all cases outside i where j is None."""
        own = self._sums[i], self._resampled[:, i]
        if j is None:
            other = self._total - own[0], self._resampled_total - own[1]
        else:
            other = self._sums[j], self._resampled[:, j]
        first, second = ([self._cases.figures(sums) for sums in pair] for pair in (own, other))
        known = [name for name in names if name in first[0]]
        apart = [
            {name: a[name] - b[name] for name in known} for a, b in zip(first, second, strict=True)
        ]
        return estimates(*apart)


def to_months(figures: Figures) -> Figures:
    """Give figures in years in months, under names that say so; all others as they are."""
    return {
        name.replace("_years", "_months"): {
            end: None if value is None else MONTHS * value for end, value in ends.items()
        }
        if "_years" in name
        else ends
        for name, ends in figures.items()
    }


def calibration_error(cases: Cases, resamples: int) -> tuple[Estimate, list[dict[str, float]]]:
    """Expected calibration error of the highest stage probability, and its reliability bins."""
    probabilities = cases.table[list(PROBABILITIES)].to_numpy(float)
    highest = probabilities.max(axis=1)
    truth = stage_codes(cases.table["reference_stage"])
    is_right = probabilities.argmax(axis=1) == truth
    place = reliability_place(highest)
    # Each case's part in the distance of its bin, so that a resample's error is a weighted sum.
    apart = (highest - is_right)[:, None] * (place[:, None] == np.unique(place))
    resampled = [
        np.abs(weights @ apart).sum(axis=1) / len(apart)
        for weights in resample(len(apart), resamples, cases.seed)
    ]
    bins = reliability_bins(highest, is_right)
    error = estimate(expected_calibration_error(bins), np.concatenate([np.empty(0), *resampled]))
    return error, bins


def stage_codes(names: pd.Series) -> npt.NDArray[np.int64]:
    """Give the codes of stages that are written as words."""
    return np.array([STAGES.index(name) for name in names], dtype=np.int64)


def _age_columns(reference: pd.Series, predicted: pd.Series) -> Array:
    """Columns (n, k) whose sums give `_age_figures`."""
    r, p = reference.to_numpy(float), predicted.to_numpy(float)
    d, size = p - r, np.abs(p - r)
    # A hair more, so that an error of exactly the limit counts whatever its last bit.
    within = [(size <= limit / MONTHS + 1e-9).astype(float) for limit in WITHIN_MONTHS]
    return np.stack([np.ones_like(r), r, p, r * r, p * p, r * p, d * d, size, *within], axis=1)


def _age_figures(sums: Array) -> dict[str, Array]:
    """Errors and agreement of ages in years, from sums (..., k) of `_age_columns`.

    MAE, RMSE, R², proportions of small errors, signed error (predicted - reference), Bland-Altman
    limits of agreement (signed error -/+ 1.96 SD of the errors), Deming regression with equal
    variances, and ICC(2,1): two-way random effects, absolute agreement, one measurement.

    Source: Bland & Altman, Lancet 1986; Shrout & Fleiss, Psychological Bulletin 1979; Deming,
    Statistical Adjustment of Data, 1943.
    """
    n, r, p, rr, pp, rp, dd, size = np.moveaxis(sums[..., : len(_BASE)], -1, 0)
    within = np.moveaxis(sums[..., len(_BASE) :], -1, 0)
    bias = (p - r) / n
    # Sums of squares and products around the means.
    s_rr, s_pp, s_dd = (_spread(rr, r, n), _spread(pp, p, n), _spread(dd, p - r, n))
    s_rp = np.where((s_rr > 0) & (s_pp > 0), rp - r * p / n, 0.0)
    sd = np.where(n > 1, np.sqrt(s_dd / np.maximum(n - 1, 1)), np.nan)
    slope = _deming_slope(s_rr, s_pp, s_rp)
    # ICC(2,1) of two raters, its three mean squares written out.
    icc = 2 * s_rp / (s_rr + s_pp + (n - 1) * bias**2 - s_dd / n)
    figures = {
        "mae_years": size / n,
        "rmse_years": np.sqrt(dd / n),
        "signed_error_years": bias,
        "r2": 1 - dd / s_rr,
        "icc": icc,
        "sd_years": sd,
        "loa_low_years": bias - LIMITS_OF_AGREEMENT * sd,
        "loa_high_years": bias + LIMITS_OF_AGREEMENT * sd,
        "deming_slope": slope,
        "deming_intercept_years": (p - slope * r) / n,
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


def _stage_columns(reference: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> Array:
    """One column a cell of the confusion matrix, (n, 9); stage codes."""
    k = len(STAGES)
    return ((reference * k + predicted)[:, None] == np.arange(k * k)).astype(float)


def _stage_figures(sums: Array) -> dict[str, Array]:
    """Accuracy, weighted precision, recall and F1, and QWK from sums of `_stage_columns`."""
    k = len(STAGES)
    return classification_figures(sums.reshape(*sums.shape[:-1], k, k))
