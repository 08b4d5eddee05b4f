"""Prediction tables -> the evidence that a reviewer asks for, as plain numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from boneage.agreement import (
    DRAWS,
    Array,
    Ends,
    Mask,
    age_columns,
    age_figures,
    holm,
    mcnemar,
    paired_mean,
    permutation_p_values,
    resample,
    stage_columns,
    stage_figures,
    weighted_median,
    wilson,
    with_intervals,
)
from boneage.cases import find_shared, find_suspects, find_uncertain, find_worst
from boneage.errors import BoneAgeError
from boneage.metrics import expected_calibration_error, reliability_bins, reliability_place
from boneage.reference import ADVANCED, DELAYED, NORMAL, Classes, Names, classify_both
from boneage.stages import PROBABILITIES, STAGES, stage_from_years
from boneage.tables import INTERVAL, Predictions, name_age_band

Figures = dict[str, Ends]

SMALL_GROUP = 50
"""Groups of fewer cases are shown, and marked: their figures say little."""

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


def audit(predictions: Sequence[Predictions], *, draws: int = DRAWS) -> dict[str, Any]:
    """Compute everything that the report shows.

    The first table is the one audited; further ones are compared with it on the cases that both
    answer.

    Args:
        predictions: One table or more.
        draws: Bootstrap draws and permutations; 0 leaves intervals and p-values out.

    Returns:
        Plain values ready for JSON, figures as `{value, low, high}`: `n`; `accuracy`; `baselines`;
        `groups`, with differences and p-values; `stages`; `calibration`; `clinical`;
        `comparison`; `difficult`, `uncertain`, `suspects` and `shared`; `robustness` and
        `regions`, empty here, see `audit_films`. None is an undefined figure.

    Raises:
        BoneAgeError: If tables to be compared share no case, or differ in its reference.
    """
    first = predictions[0]
    table = first.table
    columns = _make_columns(table)
    names, masks = _make_groups(table, first.groups)
    values, drawn, medians = _bootstrap(columns, masks, draws, np.abs(_errors(table)))
    classes = classify_both(table)
    figures = []
    for mask, v, d, m in zip(masks, values, drawn, medians, strict=True):
        median = np.median(np.abs(_errors(table))[mask])
        row = with_intervals(
            columns.figures(v) | {"median_error_months": median},
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
        "draws": draws,
        "accuracy": figures[0],
        "baselines": _baselines(table, draws),
        "noise_floor_months": list(NOISE_FLOOR_MONTHS),
        "stages": {
            "source": "given" if first.has_stage else "threshold on the age",
            "names": list(STAGES),
            "confusion_matrix": values[0][columns.stages].reshape(3, 3).astype(int).tolist(),
        },
        "calibration": _calibration(table, draws),
        "groups": _compare_groups(table, columns, names, masks, figures, values, drawn, draws),
        "not_assessable": [
            what for what, words in NOT_ASSESSABLE.items()
            if not any(_words(str(column)) & set(words) for column in first.groups)
        ],
        "clinical": _clinical(classes, figures[0]),
        "comparison": _compare(predictions, draws),
        "approaches": _approaches(first, draws),
        "difficult": find_worst(table),
        "uncertain": find_uncertain(table),
        "suspects": find_suspects(table),
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


def _bootstrap(
    columns: _Columns, masks: Sequence[Mask], draws: int, sizes: Array
) -> tuple[Array, Array, Array]:
    """Sums of the columns for each group, (g, k); their draws, (g, d, k); median errors, (g, d)."""
    n, k = columns.cases.shape
    wide = np.concatenate([columns.cases * mask[:, None] for mask in masks], axis=1)
    drawn = np.empty((draws, len(masks), k))
    medians = np.empty((len(masks), draws))
    done = 0
    for weights in resample(n, draws):
        rows = slice(done, done := done + len(weights))
        drawn[rows] = (weights.astype(np.float64) @ wide).reshape(-1, len(masks), k)
        for i, mask in enumerate(masks):
            medians[i, rows] = weighted_median(sizes[mask], weights[:, mask])
    return wide.sum(axis=0).reshape(len(masks), k), drawn.transpose(1, 0, 2), medians


def _compare_groups(
    table: pd.DataFrame,
    columns: _Columns,
    names: Sequence[tuple[str, str]],
    masks: Sequence[Mask],
    figures: Sequence[Figures],
    values: Array,
    drawn: Array,
    draws: int,
) -> list[dict[str, Any]]:
    """Each group's figures, and how its MAE and bias differ from those of all other cases."""
    p_values = permutation_p_values(np.abs(_errors(table)), masks[1:], draws)
    corrected = holm(p_values)
    rows: list[dict[str, Any]] = []
    for i, (kind, name) in enumerate(names[1:], start=1):
        inside, outside = (
            (columns.figures(values[i]), columns.figures(drawn[i])),
            (columns.figures(values[0] - values[i]), columns.figures(drawn[0] - drawn[i])),
        )
        apart = with_intervals(
            {f: inside[0][f] - outside[0][f] for f in ("mae_months", "bias_months")},
            {f: inside[1][f] - outside[1][f] for f in ("mae_months", "bias_months")},
        )
        n = int(masks[i].sum())
        rows.append(
            {
                "by": kind,
                "group": name,
                "n": n,
                "is_small": n < SMALL_GROUP,
                "figures": figures[i],
                "difference": apart,
                "p": _plain(p_values[i - 1]),
                "p_corrected": _plain(corrected[i - 1]),
            }
        )
    return rows


def _baselines(table: pd.DataFrame, draws: int) -> Figures:
    """MAE of answers that need no film: the median of these references, and that of each sex."""
    reference = table["reference_months"]
    by_sex = reference.groupby(table["sex"].fillna("unknown")).transform("median")
    return {
        f"{name}_mae_months": paired_mean((reference - answer).abs().to_numpy(float), draws)
        for name, answer in (("constant_median", reference.median()), ("sex_median", by_sex))
    }


def _calibration(table: pd.DataFrame, draws: int) -> dict[str, Any] | None:
    if not all(name in table for name in PROBABILITIES):
        return None
    chances = table[list(PROBABILITIES)].to_numpy(float)
    highest = chances.max(axis=1)
    is_right = (table["reference_stage"] == chances.argmax(axis=1)).to_numpy(bool)
    place = reliability_place(highest)
    # Each case's share in the distance of its bin, so that a draw's error is a weighted sum.
    apart = (highest - is_right)[:, None] * (place[:, None] == np.unique(place))
    drawn = [np.abs(weights @ apart).sum(axis=1) for weights in resample(len(table), draws)]
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


def _compare(predictions: Sequence[Predictions], draws: int) -> list[dict[str, Any]]:
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
                "mae_months": _of_both(sizes, draws),
                "mae_difference_months": paired_mean(sizes[0] - sizes[1], draws),
                "stage_accuracy": _of_both(hits, draws),
                **mcnemar(hits[0], hits[1]),
            }
        )
    return rows


def _of_both(values: Sequence[Array | Mask], draws: int) -> Figures:
    """Mean of each of two."""
    return {
        which: paired_mean(value.astype(float), draws)
        for which, value in zip(("first", "second"), values, strict=True)
    }


def _approaches(first: Predictions, draws: int) -> dict[str, Any] | None:
    """Stages given against thresholds on the age, on the same cases."""
    if not first.has_stage:
        return None
    table = first.table
    truth = table["reference_stage"].to_numpy()
    direct = (table["predicted_stage"].to_numpy() == truth).astype(float)
    by_age = stage_from_years(table["predicted_months"].to_numpy(float) / 12.0)
    threshold = (by_age == truth).astype(float)
    return {
        "direct_accuracy": paired_mean(direct, draws),
        "threshold_accuracy": paired_mean(threshold, draws),
        "accuracy_difference": paired_mean(direct - threshold, draws),
        **mcnemar(direct > 0, threshold > 0),
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give a row of a result as the columns of a CSV.

    A figure becomes `mae_months`, `mae_months_low`, `mae_months_high`; what lies in `figures` is
    named by itself, what lies elsewhere by the way there, as in `difference_mae_months`.

    Example:
        >>> flatten({"n": 3, "clinical": {"clean": {"value": 0.5, "low": None, "high": None}}})
        {'n': 3, 'clinical_clean': 0.5, 'clinical_clean_low': None, 'clinical_clean_high': None}
    """
    columns: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            before = "" if name == "figures" else name
            for inner, held in flatten(value).items():
                columns["_".join(w for w in (before, "" if inner == "value" else inner) if w)] = (
                    held
                )
        else:
            columns[name] = value
    return columns
