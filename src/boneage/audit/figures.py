"""Prediction tables -> the evidence that a reviewer asks for, as plain numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from boneage.clinical.growth import ADVANCED, DELAYED, NORMAL, Classes, Names, classify_both
from boneage.errors import BoneAgeError
from boneage.evaluation.error_analysis import (
    find_potential_label_errors,
    find_shared,
    find_uncertain,
    find_worst,
)
from boneage.evaluation.metrics import (
    expected_calibration_error,
    reliability_bins,
    reliability_place,
)
from boneage.evaluation.prediction_table import INTERVAL, Predictions, name_age_band
from boneage.evaluation.statistics import (
    RESAMPLES,
    Array,
    Ends,
    Mask,
    age_columns,
    age_figures,
    bootstrap_groups,
    holm,
    mcnemar,
    paired_mean,
    permutation_p_values,
    resample,
    stage_columns,
    stage_figures,
    wilson,
    with_intervals,
)
from boneage.stages import PROBABILITIES, STAGES, stage_from_years

Figures = dict[str, Ends]

SMALL_GROUP = 50
"""Groups of fewer cases are shown, and marked: their figures say little."""

COMPARED = ("mae_months", "bias_months", "coverage")
"""Figures whose differences between groups are given; coverage where there are intervals."""

NOISE_FLOOR_MONTHS = (5.6, 5.8)
"""MAE of a perfect answer against one clinical reading, as the RSNA training labels are.

Source: derived from the spread of repeated readings, Halabi et al., Radiology 2019.
"""

NOT_ASSESSABLE = {
    "race or ethnicity": ("race", "ethnicity"),
    "scanner or site": ("site", "scanner", "manufacturer", "hospital"),
    "diagnosis": ("diagnosis",),
}
"""Groups that a fair evaluation would look at, and the columns that would tell them."""


@dataclass(frozen=True)
class _Columns:
    """Per-case columns (n, k) whose sums give every figure, and where each kind lies in them."""

    cases: Array
    ages: slice
    stages: slice
    intervals: slice | None

    def figures(self, sums: Array) -> dict[str, Array]:
        result = age_figures(sums[..., self.ages])
        result |= stage_figures(sums[..., self.stages])
        if self.intervals is not None:
            n = sums[..., 0]
            covered, width = np.moveaxis(sums[..., self.intervals], -1, 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                result |= {"coverage": covered / n, "interval_width_months": width / n}
        return result


def audit(predictions: Sequence[Predictions], *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Compute everything that the report shows.

    The first table is the one audited; further ones are compared with it on the cases that both
    answer.

    Args:
        predictions: One table or more.
        resamples: Bootstrap resamples and permutations; 0 leaves intervals and p-values out.

    Returns:
        Plain values ready for JSON, figures as `{value, low, high}`: `n`; `accuracy`; `baselines`;
        `groups`, each with its `figures`, their `difference` from those of all other cases
        (months; coverage as a proportion) and the p-values of the differences, plain and
        `_corrected`: `p` of the absolute error, `bias_p` of the signed error, `coverage_p`;
        `male_minus_female`, the same differences between the sexes, None without both;
        `stages`; `calibration`; `clinical`; `comparison`; `difficult`, `uncertain`, `suspects`
        and `shared`; `robustness` and `regions`, empty here, see `audit_images`. None is an
        undefined figure.

    Raises:
        BoneAgeError: If tables to be compared share no case, or differ in its reference.
    """
    first = predictions[0]
    table = first.table
    columns = _make_columns(table)
    names, masks = _make_groups(table, first.groups)
    sizes = np.abs(_errors(table))
    values, drawn, medians = bootstrap_groups(columns.cases, masks, resamples, sizes)
    tests = _test_groups(table, columns, masks[1:], resamples)
    classes = classify_both(table)
    figures = []
    for mask, v, d, m in zip(masks, values, drawn, medians, strict=True):
        row = with_intervals(
            columns.figures(v) | {"median_error_months": np.median(sizes[mask])},
            columns.figures(d) | {"median_error_months": m},
        )
        if classes is not None:
            row["clinical_change"] = _share_changed(*classes, mask)
        figures.append(row)
    return {
        "boneage_version": version("boneage"),
        "name": first.name,
        "n": len(table),
        "n_unanswered": first.n_unanswered,
        "n_without_reference": first.n_without_reference,
        "draws": resamples,
        "accuracy": figures[0],
        "baselines": _baselines(table, resamples),
        "noise_floor_months": list(NOISE_FLOOR_MONTHS),
        "stages": {
            "source": "given" if first.has_stage else "threshold on the age",
            "names": list(STAGES),
            "confusion_matrix": values[0][columns.stages].reshape(3, 3).astype(int).tolist(),
        },
        "calibration": _calibration(table, resamples),
        "groups": _compare_groups(columns, names, masks, figures, values, drawn, tests),
        "male_minus_female": _compare_sexes(columns, names, values, drawn),
        "not_assessable": [
            what for what, words in NOT_ASSESSABLE.items()
            if not any(_words(str(column)) & set(words) for column in first.groups)
        ],
        "clinical": _clinical(classes, figures[0]),
        "comparison": _compare(predictions, resamples),
        "approaches": _approaches(first, resamples),
        "difficult": find_worst(table),
        "uncertain": find_uncertain(table),
        "suspects": find_potential_label_errors(table),
        "shared": find_shared(table, names[1:], masks[1:]),
        "robustness": None,
        "regions": None,
    }  # fmt: skip


def _errors(table: pd.DataFrame) -> Array:
    return (table["predicted_months"] - table["reference_months"]).to_numpy(float)


def _make_columns(table: pd.DataFrame) -> _Columns:
    ages = age_columns(table["reference_months"], table["predicted_months"])
    stages = stage_columns(table["reference_stage"], table["predicted_stage"])
    parts = [ages, stages]
    k = ages.shape[1]
    intervals = None
    if all(f"{name}_months" in table for name in INTERVAL):
        low, high = (table[f"{name}_months"].to_numpy(float) for name in INTERVAL)
        reference = table["reference_months"].to_numpy(float)
        parts.append(np.stack([(low <= reference) & (reference <= high), high - low], axis=1))
        intervals = slice(k + stages.shape[1], k + stages.shape[1] + 2)
    return _Columns(
        np.concatenate(parts, axis=1), slice(0, k), slice(k, k + stages.shape[1]), intervals
    )


def _make_groups(
    table: pd.DataFrame, further: pd.DataFrame
) -> tuple[list[tuple[str, str]], list[Mask]]:
    """Everyone first, then each group as (kind, name) with its members."""
    sexes = [{"M": "male", "F": "female"}.get(sex, "unknown") for sex in table["sex"]]
    bands = [name_age_band(months / 12.0) for months in table["reference_months"]]
    both = [f"{sex}, {band}" for sex, band in zip(sexes, bands, strict=True)]
    kinds = [("sex", sexes), ("age", bands), ("sex and age", both)]
    kinds += [(str(name), further[name].tolist()) for name in further]
    names, masks = [("all", "all")], [np.ones(len(table), dtype=bool)]
    for kind, labels in kinds:
        members = np.array(labels, dtype=object)
        for label in sorted(set(labels), key=lambda text: (_first_number(text), text)):
            names.append((kind, label))
            masks.append(members == label)
    return names, masks


def _words(column: str) -> set[str]:
    """Words of a column's name, as of site_id, SiteName or "Scanner model"."""
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", column)}


def _first_number(text: str) -> int:
    found = re.search("[0-9]+", text)
    return int(found[0]) if found else -1


def _compare_groups(
    columns: _Columns,
    names: Sequence[tuple[str, str]],
    masks: Sequence[Mask],
    figures: Sequence[Figures],
    values: Array,
    drawn: Array,
    tests: Mapping[str, Sequence[float]],
) -> list[dict[str, Any]]:
    """Each group's figures, and how those of `COMPARED` differ from those of all other cases."""
    rows: list[dict[str, Any]] = []
    for i, (kind, name) in enumerate(names[1:], start=1):
        others = (values[0] - values[i], drawn[0] - drawn[i])
        n = int(masks[i].sum())
        rows.append(
            {
                "by": kind,
                "group": name,
                "n": n,
                "is_small": n < SMALL_GROUP,
                "figures": figures[i],
                "difference": _subtract(columns, (values[i], drawn[i]), others),
                **{test: _plain(p_values[i - 1]) for test, p_values in tests.items()},
            }
        )
    return rows


def _test_groups(
    table: pd.DataFrame, columns: _Columns, masks: Sequence[Mask], resamples: int
) -> dict[str, list[float]]:
    """p-values of each measure, a value a group, and the same corrected for the groups' number.

    Opposite biases of the same size leave absolute errors alike: the signed errors are tested by
    themselves, against their standard error, as a group may also spread more without any bias.
    """
    errors = _errors(table)
    found = {
        "p": permutation_p_values(np.abs(errors), masks, resamples),
        "bias_p": permutation_p_values(errors, masks, resamples, studentised=True),
        "coverage_p": [math.nan] * len(masks),
    }
    if columns.intervals is not None:
        covered = columns.cases[:, columns.intervals.start]
        found["coverage_p"] = permutation_p_values(covered, masks, resamples)
    tests: dict[str, list[float]] = {}
    for name, p_values in found.items():
        tests |= {name: p_values, f"{name}_corrected": holm(p_values)}
    return tests


def _subtract(
    columns: _Columns, first: tuple[Array, Array], second: tuple[Array, Array]
) -> Figures:
    """Figures of `COMPARED` of some cases less those of others, each as sums and their draws."""
    (a, a_drawn), (b, b_drawn) = (
        (columns.figures(sums), columns.figures(drawn)) for sums, drawn in (first, second)
    )
    names = [name for name in COMPARED if name in a]
    return with_intervals(
        {name: a[name] - b[name] for name in names},
        {name: a_drawn[name] - b_drawn[name] for name in names},
    )


def _compare_sexes(
    columns: _Columns, names: Sequence[tuple[str, str]], values: Array, drawn: Array
) -> Figures | None:
    """Boys less girls, whatever the cases of unknown sex; None if either sex is not there."""
    sexes = [("sex", "male"), ("sex", "female")]
    if not set(sexes) <= set(names):
        return None
    boys, girls = ((values[i], drawn[i]) for i in map(names.index, sexes))
    return _subtract(columns, boys, girls)


def _baselines(table: pd.DataFrame, resamples: int) -> Figures:
    """MAE of answers that need no image: the median of these references, and that of each sex."""
    reference = table["reference_months"]
    by_sex = reference.groupby(table["sex"].fillna("unknown")).transform("median")
    return {
        f"{name}_mae_months": paired_mean((reference - answer).abs().to_numpy(float), resamples)
        for name, answer in (("constant_median", reference.median()), ("sex_median", by_sex))
    }


def _calibration(table: pd.DataFrame, resamples: int) -> dict[str, Any] | None:
    if not all(name in table for name in PROBABILITIES):
        return None
    chances = table[list(PROBABILITIES)].to_numpy(float)
    highest = chances.max(axis=1)
    is_right = (table["reference_stage"] == chances.argmax(axis=1)).to_numpy(bool)
    place = reliability_place(highest)
    # Each case's share in the distance of its bin, so that a draw's error is a weighted sum.
    apart = (highest - is_right)[:, None] * (place[:, None] == np.unique(place))
    drawn = [np.abs(weights @ apart).sum(axis=1) for weights in resample(len(table), resamples)]
    bins = reliability_bins(highest, is_right)
    return {
        "ece": with_intervals(
            {"ece": np.array(expected_calibration_error(bins))},
            {"ece": np.concatenate([np.empty(0), *drawn]) / len(table)},
        )["ece"],
        "bins": [
            {**row, "accuracy": wilson(round(row["n"] * row["accuracy"]), int(row["n"]))}
            for row in bins
        ],
    }


def _share_changed(reader: Names, model: Names, mask: Mask) -> Ends:
    """Share of the cases in the reference tables whose class the error changes."""
    known = mask & (reader != "")
    return wilson(int((known & (reader != model)).sum()), int(known.sum()))


def _clinical(classes: Classes | None, overall: Figures) -> dict[str, Any]:
    """How often the error changes delayed, normal or advanced, if that can be told."""
    if classes is None:
        return {"is_assessable": False, "why": "the table has no chronological age"}
    reader, model = classes
    known = reader != ""
    if not known.any():
        return {
            "is_assessable": False,
            "why": "no case has a sex and a chronological age inside the reference tables "
            "(boys 3 to 204 months, girls 3 to 192)",
        }
    kinds = (DELAYED, NORMAL, ADVANCED)
    return {
        "is_assessable": True,
        "n": int(known.sum()),
        "n_outside_the_tables": int((~known).sum()),
        "changed": overall["clinical_change"],
        "classes": list(kinds),
        "confusion_matrix": [
            [int(((reader == row) & (model == column)).sum()) for column in kinds] for row in kinds
        ],
    }


def _compare(predictions: Sequence[Predictions], resamples: int) -> list[dict[str, Any]]:
    """Each further table against the first, on the cases that both answer."""
    first = predictions[0]
    rows = []
    for other in predictions[1:]:
        both = first.table.merge(other.table, on="image_id", suffixes=("_a", "_b"))
        if both.empty:
            raise BoneAgeError(f"{first.name} and {other.name} share no image_id to compare on.")
        apart = (both["reference_months_a"] - both["reference_months_b"]).abs() > 0.1
        if apart.any():
            raise BoneAgeError(
                f"{first.name} and {other.name} have different references for "
                f"{both['image_id'][apart].iloc[0]}; they cannot be compared."
            )
        sizes = [
            (both[f"predicted_months_{s}"] - both["reference_months_a"]).abs().to_numpy(float)
            for s in ("a", "b")
        ]
        hits = [
            (both[f"predicted_stage_{s}"] == both["reference_stage_a"]).to_numpy(bool)
            for s in ("a", "b")
        ]
        rows.append(
            {
                "first": first.name,
                "second": other.name,
                "n": len(both),
                "mae_months": _of_both(sizes, resamples),
                "mae_difference_months": paired_mean(sizes[0] - sizes[1], resamples),
                "stage_accuracy": _of_both(hits, resamples),
                **mcnemar(hits[0], hits[1]),
            }
        )
    return rows


def _of_both(values: Sequence[Array | Mask], resamples: int) -> Figures:
    """Mean of each of two."""
    return {
        which: paired_mean(value.astype(float), resamples)
        for which, value in zip(("first", "second"), values, strict=True)
    }


def _approaches(first: Predictions, resamples: int) -> dict[str, Any] | None:
    """Stages given against thresholds on the age, on the same cases."""
    if not first.has_stage:
        return None
    table = first.table
    truth = table["reference_stage"].to_numpy()
    direct = (table["predicted_stage"].to_numpy() == truth).astype(float)
    by_age = stage_from_years(table["predicted_months"].to_numpy(float) / 12.0)
    threshold = (by_age == truth).astype(float)
    return {
        "direct_accuracy": paired_mean(direct, resamples),
        "threshold_accuracy": paired_mean(threshold, resamples),
        "accuracy_difference": paired_mean(direct - threshold, resamples),
        **mcnemar(direct > 0, threshold > 0),
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
