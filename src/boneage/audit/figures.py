"""Prediction tables -> the evidence that a reviewer asks for, as plain numbers.

The figures are those of `boneage evaluate`, see `Cases`, with ages in months.
"""

import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from boneage.clinical.growth import ADVANCED, DELAYED, NORMAL, Classes, Names, classify_both
from boneage.errors import BoneAgeError
from boneage.evaluation.bootstrap import RESAMPLES, Array, Estimate, Mask, mean_estimate
from boneage.evaluation.cases import (
    MONTHS,
    Cases,
    Figures,
    GroupFigures,
    calibration_error,
    to_months,
)
from boneage.evaluation.error_analysis import (
    find_shared,
    list_potential_label_errors,
    list_uncertain,
    list_worst,
)
from boneage.evaluation.prediction_table import (
    Predictions,
    has_intervals,
    has_probabilities,
    name_age_band,
)
from boneage.evaluation.statistics import holm, mcnemar, permutation_p_values, wilson
from boneage.stages import STAGES, stage_from_years

SMALL_GROUP = 50
"""Groups of fewer cases are shown, and marked: their figures say little."""

COMPARED = ("mae_years", "signed_error_years", "coverage")
"""Figures whose differences between groups are given; coverage where there are intervals."""

NOISE_FLOOR_MONTHS = (5.6, 5.8)
"""MAE of a perfect prediction against one clinical reading, as the RSNA training labels are.

Source: derived from the spread of repeated readings, Halabi et al., Radiology 2019.
"""

NOT_ASSESSABLE = {
    "race or ethnicity": ("race", "ethnicity"),
    "scanner or site": ("site", "scanner", "manufacturer", "hospital"),
    "diagnosis": ("diagnosis",),
}
"""Groups that a fair evaluation would look at, and the columns that would tell them."""

_OF_APPROACHES = ("threshold_accuracy", "difference")
"""Figures of all cases that the report gives under `approaches`."""


def audit(predictions: Sequence[Predictions], *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Compute everything that the report shows.

    The first table is the one audited; further ones are compared with it on the cases that both
    predict.

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
        (potential label errors) and `shared`; `robustness` and `regions`, empty here, see
        `audit_images`. None is an undefined figure.

    Raises:
        BoneAgeError: If tables to be compared share no case, or differ in its reference.
    """
    first = predictions[0]
    cases = Cases.of(first.table.join(first.groups.add_prefix(_FURTHER)))
    table = cases.table
    further = table[[name for name in table if str(name).startswith(_FURTHER)]]
    names, masks = _make_groups(table, further.rename(columns=lambda n: n.removeprefix(_FURTHER)))
    groups = GroupFigures(cases, masks, resamples)
    classes = classify_both(table)
    figures = [_show_group(groups, i, mask, classes) for i, mask in enumerate(masks)]
    everyone, tests = figures[0], _test(cases, masks[1:], resamples)
    return {
        "boneage_version": version("boneage"),
        "name": first.name,
        "n": len(table),
        "n_unanswered": first.n_unanswered,
        "n_without_reference": first.n_without_reference,
        "draws": resamples,
        "accuracy": everyone,
        "baselines": _baselines(table, resamples),
        "noise_floor_months": list(NOISE_FLOOR_MONTHS),
        "stages": {
            "source": "given" if first.has_stage else "threshold on the age",
            "names": list(STAGES),
            "confusion_matrix": groups.sums(0)[cases.kinds["stages"]].reshape(3, 3).astype(int)
            .tolist(),
        },
        "calibration": _calibration(cases, resamples),
        "groups": _compare_groups(groups, names, masks, figures, tests),
        "male_minus_female": _compare_sexes(groups, names),
        "not_assessable": [
            what for what, words in NOT_ASSESSABLE.items()
            if not any(_words(str(column)) & set(words) for column in first.groups)
        ],
        "clinical": _clinical(classes, everyone),
        "comparison": _compare(predictions, resamples),
        "approaches": _approaches(cases, groups) if first.has_stage else None,
        "difficult": list_worst(table),
        "uncertain": list_uncertain(table),
        "suspects": list_potential_label_errors(table),
        "shared": find_shared(table, names[1:], masks[1:]),
        "robustness": None,
        "regions": None,
    }  # fmt: skip


_FURTHER = "group: "  # tells a column to group by from one of the schema


def _as_published(figures: Figures) -> Figures:
    """Give figures in months under the names that `audit.json` has for them."""
    renamed = {name.replace("signed_error", "bias"): ends for name, ends in figures.items()}
    return to_months(renamed)


def _show_group(groups: GroupFigures, i: int, mask: Mask, classes: Classes | None) -> Figures:
    found = groups.of(i)
    result = _as_published({k: v for k, v in found.items() if k not in _OF_APPROACHES})
    if classes is not None:
        result["clinical_change"] = _proportion_changed(*classes, mask)
    return result


def _make_groups(
    table: pd.DataFrame, further: pd.DataFrame
) -> tuple[list[tuple[str, str]], list[Mask]]:
    """Everyone first, then each group as (kind, name) with its members."""
    sexes = [{"M": "male", "F": "female"}.get(sex, "unknown") for sex in table["sex"]]
    bands = [name_age_band(years) for years in table["reference_years"]]
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
    groups: GroupFigures,
    names: Sequence[tuple[str, str]],
    masks: Sequence[Mask],
    figures: Sequence[Figures],
    tests: Mapping[str, Sequence[float]],
) -> list[dict[str, Any]]:
    """Each group's figures, and how those of `COMPARED` differ from those of all other cases."""
    rows: list[dict[str, Any]] = []
    for i, (kind, name) in enumerate(names[1:], start=1):
        n = int(masks[i].sum())
        rows.append(
            {
                "by": kind,
                "group": name,
                "n": n,
                "is_small": n < SMALL_GROUP,
                "figures": figures[i],
                "difference": _as_published(groups.difference(i, None, COMPARED)),
                **{test: _plain(p_values[i - 1]) for test, p_values in tests.items()},
            }
        )
    return rows


def _test(cases: Cases, masks: Sequence[Mask], permutations: int) -> dict[str, list[float]]:
    """p-values of each measure, a value a group, and the same corrected for the groups' number.

    Opposite biases of the same size leave absolute errors alike: the signed errors are tested by
    themselves, against their standard error, as a group may also spread more without any bias.
    """

    def test(values: Array, *, studentised: bool = False) -> list[float]:
        return permutation_p_values(
            values, masks, permutations, cases.seed, studentised=studentised
        )

    found = {
        "p": test(np.abs(cases.errors)),
        "bias_p": test(cases.errors, studentised=True),
        "coverage_p": [math.nan] * len(masks),
    }
    if has_intervals(cases.table):
        found["coverage_p"] = test(cases.columns[:, cases.kinds["intervals"]][:, 0])
    tests: dict[str, list[float]] = {}
    for name, p_values in found.items():
        tests |= {name: p_values, f"{name}_corrected": holm(p_values)}
    return tests


def _compare_sexes(groups: GroupFigures, names: Sequence[tuple[str, str]]) -> Figures | None:
    """Boys less girls, whatever the cases of unknown sex; None if either sex is not there."""
    sexes = [("sex", "male"), ("sex", "female")]
    if not set(sexes) <= set(names):
        return None
    boys, girls = map(names.index, sexes)
    return _as_published(groups.difference(boys, girls, COMPARED))


def _baselines(table: pd.DataFrame, resamples: int) -> Figures:
    """MAE without looking at an image: always the median reference, of all or of the same sex."""
    reference = table["reference_years"]
    by_sex = reference.groupby(table["sex"].fillna("unknown")).transform("median")
    return to_months(
        {
            f"{name}_mae_years": mean_estimate((reference - constant).abs(), resamples)
            for name, constant in (("constant_median", reference.median()), ("sex_median", by_sex))
        }
    )


def _calibration(cases: Cases, resamples: int) -> dict[str, Any] | None:
    if not has_probabilities(cases.table):
        return None
    error, bins = calibration_error(cases, resamples)
    return {
        "ece": error,
        "bins": [
            {**row, "accuracy": wilson(round(row["n"] * row["accuracy"]), int(row["n"]))}
            for row in bins
        ],
    }


def _proportion_changed(reader: Names, model: Names, mask: Mask) -> Estimate:
    """Proportion of the cases in the reference tables whose class the error changes."""
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
    """Each further table against the first, on the cases that both predict."""
    first = predictions[0]
    rows = []
    for other in predictions[1:]:
        both = first.table.merge(other.table, on="image_id", suffixes=("_a", "_b"))
        if both.empty:
            raise BoneAgeError(f"{first.name} and {other.name} share no image_id to compare on.")
        apart = MONTHS * (both["reference_years_a"] - both["reference_years_b"]).abs() > 0.1
        if apart.any():
            raise BoneAgeError(
                f"{first.name} and {other.name} have different references for "
                f"{both['image_id'][apart].iloc[0]}; they cannot be compared."
            )
        sizes = [
            MONTHS * (both[f"predicted_years_{s}"] - both["reference_years_a"]).abs()
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
                "mae_difference_months": mean_estimate(sizes[0] - sizes[1], resamples),
                "stage_accuracy": _of_both(hits, resamples),
                **mcnemar(hits[0], hits[1]),
            }
        )
    return rows


def _of_both(values: Sequence[pd.Series | Mask], resamples: int) -> Figures:
    """Mean of each of two."""
    return {
        which: mean_estimate(value.astype(float), resamples)
        for which, value in zip(("first", "second"), values, strict=True)
    }


def _approaches(cases: Cases, groups: GroupFigures) -> dict[str, Any]:
    """Stages given against thresholds on the age, on the same cases."""
    everyone, table = groups.of(0), cases.table
    direct = (table["predicted_stage"] == table["reference_stage"]).to_numpy(bool)
    by_age = np.array(STAGES)[stage_from_years(table["predicted_years"])]
    return {
        "direct_accuracy": everyone["accuracy"],
        "threshold_accuracy": everyone["threshold_accuracy"],
        "accuracy_difference": everyone["difference"],
        **mcnemar(direct, by_age == table["reference_stage"].to_numpy()),
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
