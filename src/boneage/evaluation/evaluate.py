"""Prediction table of a split -> report: accuracy, agreement, bias by sex, two ways to a stage.

The report of `boneage evaluate`. Its figures are those of `boneage audit`; see `Cases`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from boneage.evaluation.bootstrap import RESAMPLES, Mask
from boneage.evaluation.cases import (
    MONTHS,
    Cases,
    Figures,
    GroupFigures,
    calibration_error,
    stage_codes,
    to_months,
)
from boneage.evaluation.error_analysis import LONGEST_LIST, find_worst
from boneage.evaluation.metrics import confusion_matrix, mean_absolute_error, r2_score
from boneage.evaluation.prediction_table import (
    AGE_BANDS_YEARS,
    check_table,
    has_probabilities,
    name_age_band,
    save_table,
)
from boneage.files import save_text
from boneage.sex import parse_sex
from boneage.stages import ADOLESCENT_FROM_YEARS, STAGES
from boneage.tables.arrays import read_cases, read_stage, read_years

Report = dict[str, Any]

_SEXES = {"male": "M", "female": "F"}
_AGE = ("mae_years", "signed_error_years")
_REGRESSION = ("mae_years", "rmse_years", "signed_error_years", "r2", "within_6_months",
               "within_12_months", "within_18_months", "within_24_months")  # fmt: skip
_CLASSIFICATION = ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted", "qwk")
_INTERVALS = ("coverage", "interval_width_years")


def evaluate_table(
    table: pd.DataFrame, *, baseline_years: float | None = None, resamples: int = RESAMPLES
) -> Report:
    """Compute every figure of one split from its prediction table.

    Args:
        table: Of the schema in `prediction_table`. Where `predicted_low_years` and
            `predicted_high_years` are there, they are judged as well.
        baseline_years: Constant prediction to compare with, the median age of the training images.
        resamples: Bootstrap resamples for the intervals; 0 leaves the intervals out.

    Returns:
        Plain numbers ready for JSON. Ages in years, with months beside them; errors are
        predicted - reference; `<figure>_ci` is the 95% interval; None is an undefined figure.

    Raises:
        BoneAgeError: If the table is empty or a prediction is missing or not finite.
    """
    check_table(table)
    cases = Cases.of(table)
    has_age, has_stage = "ages" in cases.kinds, has_probabilities(cases.table)
    groups = _Groups(cases, resamples)
    everyone = groups.of("all")
    report: Report = {"split": str(table["split"].iloc[0]), "n": len(table)}
    if has_age:
        report["regression"] = groups.show(everyone, _REGRESSION)
        if baseline_years is not None:
            report["baseline"] = _baseline(table["reference_years"], baseline_years)
    report["classification"] = {
        **groups.show(everyone, _CLASSIFICATION), **_count_stages(cases.table)
    }  # fmt: skip
    report["approaches"] = _approaches(groups, has_age=has_age, has_stage=has_stage)
    report["gender_bias"] = {"classification": groups.compare_sexes(("accuracy",))}
    if has_age:
        report["gender_bias"]["regression"] = groups.compare_sexes(_AGE)
        report["by_stage"] = groups.list("stage", _AGE)
        report["by_age"] = groups.list("age", _AGE)
        r2 = everyone["r2"]["value"]
        for row, expected in zip(report["by_age"], _regress(cases.table, r2), strict=True):
            row["regression_to_mean_months"] = None if expected is None else MONTHS * expected
        report["by_predicted_age"] = groups.list("predicted age", _AGE)
        if "intervals" in cases.kinds:
            report["intervals"] = _intervals(cases, groups)
        worst = find_worst(cases.table, LONGEST_LIST)
        columns = ["image_id", "sex", "reference_years", "predicted_years", "error_years"]
        report["worst_cases"] = worst[columns].to_dict("records")
    if has_stage:
        error, bins = calibration_error(cases, resamples)
        report["stage_calibration"] = {**groups.show({"ece": error}, ("ece",)), "bins": bins}
    return _plain(report)


class _Groups:
    """The groups of a report by kind and name, and their figures as its JSON has them."""

    def __init__(self, cases: Cases, resamples: int) -> None:
        self._masks = _group(cases)
        self._keys = list(self._masks)
        self._figures = GroupFigures(cases, list(self._masks.values()), resamples)
        self._resamples = resamples

    def of(self, kind: str, name: str = "") -> Figures:
        """Figures of one group, in years."""
        return self._figures.of(self._keys.index((kind, name)))

    def count(self, kind: str, name: str = "") -> int:
        """Number of cases of one group."""
        return int(self._masks[kind, name].sum())

    def show(self, figures: Figures, names: Iterable[str]) -> Report:
        """Give figures as `<name>` and `<name>_ci`, those in years in months as well."""
        chosen = {name: figures[name] for name in names if name in figures}
        result: Report = {}
        for name, ends in (chosen | to_months(chosen)).items():
            result[name] = ends["value"]
            if self._resamples:
                result[f"{name}_ci"] = [ends["low"], ends["high"]]
        return result

    def list(self, kind: str, names: Sequence[str]) -> list[Report]:
        """Give the groups of a kind in order, one without cases as its number alone."""
        rows = []
        for name in (name for of_kind, name in self._keys if of_kind == kind):
            n = self.count(kind, name)
            rows.append(
                {"group": name, "n": n, **(self.show(self.of(kind, name), names) if n else {})}
            )
        return rows

    def compare_sexes(self, names: Sequence[str]) -> Report:
        """Give each sex's figures and the differences of their values, male - female."""
        result: Report = {
            row["group"]: {name: value for name, value in row.items() if name != "group"}
            for row in self.list("sex", names)
        }
        male, female = result["male"], result["female"]
        for name in names:
            is_known = name in male and name in female
            result[f"difference_{name}"] = male[name] - female[name] if is_known else None
        result["n_unknown"] = self.count("all") - male["n"] - female["n"]
        return result


def _group(cases: Cases) -> dict[tuple[str, str], Mask]:
    """Name the groups of a table as (kind, name), each with its members."""
    table = cases.table
    masks: dict[tuple[str, str], Mask] = {("all", ""): cases.everyone}

    def add(kind: str, name: str, mask: Any) -> None:
        masks[kind, name] = np.asarray(mask, dtype=bool)

    if "sex" in table:
        for name, sex in _SEXES.items():
            add("sex", name, table["sex"] == sex)
    if "reference_stage" in table:
        for stage in STAGES:
            add("stage", stage, table["reference_stage"] == stage)
    if "ages" not in cases.kinds:
        return masks
    for kind, column in (("age", "reference_years"), ("predicted age", "predicted_years")):
        for name, members in _band(table[column]).items():
            add(kind, name, members)
    add("off boundary", "", table["reference_years"] != ADOLESCENT_FROM_YEARS)
    if "intervals" in cases.kinds:
        thirds = np.array_split(_by_width(cases), 3)
        for name, rows in zip(("narrowest", "middle", "widest"), thirds, strict=True):
            if len(rows):
                add("width", f"{name} third", np.isin(np.arange(len(table)), rows))
        for sex in _SEXES.values():
            for stage in STAGES:
                mask = (table["sex"] == sex) & (table["reference_stage"] == stage)
                if mask.any():
                    add("sex and stage", f"{sex} {stage}", mask)
    return masks


def _band(years: pd.Series) -> dict[str, Mask]:
    """Name the bands of `AGE_BANDS_YEARS` that hold ages, each with its members."""
    names = years.clip(lower=0.0).map(name_age_band)
    found = {name: (names == name).to_numpy() for name in map(name_age_band, AGE_BANDS_YEARS[:-1])}
    return {name: members for name, members in found.items() if members.any()}


def _regress(table: pd.DataFrame, r2: float | None) -> list[float | None]:
    """Give the error in years that regression to the mean leads one to expect in each age band.

    None where R² is undefined, as for a single case.

    A prediction that explains the proportion R² of the variance lies nearer to the mean of all
    than the reference: by (1 - R²) of the distance on average.
    """
    reference = table["reference_years"]
    means = [reference[members].mean() for members in _band(reference).values()]
    return [None if r2 is None else (1.0 - r2) * (reference.mean() - mean) for mean in means]


def _by_width(cases: Cases) -> npt.NDArray[np.intp]:
    """Row numbers from the narrowest interval to the widest."""
    return np.argsort(cases.columns[:, cases.kinds["intervals"]][:, 1], kind="stable")


def _baseline(reference: pd.Series, constant: float) -> Report:
    predicted = np.full(len(reference), constant)
    mae = mean_absolute_error(reference, predicted)
    return {
        "constant_years": constant,
        "mae_years": mae,
        "mae_months": mae * MONTHS,
        "r2": r2_score(reference, predicted),
    }


def _count_stages(table: pd.DataFrame) -> Report:
    codes = [stage_codes(table[f"{kind}_stage"]) for kind in ("reference", "predicted")]
    counts = confusion_matrix(codes[0], codes[1], len(STAGES)).astype(int)
    given, predicted = counts.sum(axis=1).tolist(), counts.sum(axis=0).tolist()
    return {
        "n_by_stage": dict(zip(STAGES, given, strict=True)),
        "confusion_matrix": counts.tolist(),
        "absent_stages": [s for s, n in zip(STAGES, given, strict=True) if n == 0],
        "never_predicted_stages": [s for s, n in zip(STAGES, predicted, strict=True) if n == 0],
    }


def _approaches(groups: _Groups, *, has_age: bool, has_stage: bool) -> Report:
    """Compare the stage head with thresholds on the predicted age; None where one is missing.

    A label of exactly 12 years lies on a threshold, where any error decides the stage, so the
    comparison is given without such labels as well.
    """

    def compare(figures: Figures) -> Report:
        renamed: Figures = {}
        if has_stage:
            renamed["direct_accuracy"] = figures["accuracy"]
        if has_age:
            renamed["threshold_accuracy"] = figures["threshold_accuracy"]
        if has_stage and has_age:
            renamed["difference"] = figures["difference"]
        return groups.show(renamed, renamed)

    result: Report = {"direct_accuracy": None, "threshold_accuracy": None}
    result |= compare(groups.of("all"))
    if has_age:
        n = groups.count("off boundary")
        rest = compare(groups.of("off boundary")) if n else {}
        result["without_boundary"] = {"n": n, **rest}
    else:
        result["without_boundary"] = {"n": groups.count("all"), **compare(groups.of("all"))}
    return result


def _intervals(cases: Cases, groups: _Groups) -> Report:
    """Coverage and width of the prediction intervals, overall and where it might fail."""

    def in_months(row: Report) -> Report:
        return {
            name.replace("interval_width", "mean_width"): value
            for name, value in row.items()
            if "_years" not in name
        }

    width = MONTHS * cases.columns[:, cases.kinds["intervals"]][:, 1]
    by_width = _by_width(cases)
    tenth = max(1, len(width) // 10)
    by_sex_and_stage = []
    for row in groups.list("sex and stage", _INTERVALS):
        sex, stage = row.pop("group").split()
        by_sex_and_stage.append({"sex": sex, "stage": stage, **in_months(row)})
    return {
        **in_months(groups.show(groups.of("all"), _INTERVALS)),
        "narrowest_tenth_months": width[by_width[:tenth]].mean(),
        "widest_tenth_months": width[by_width[-tenth:]].mean(),
        "by_width": [in_months(row) for row in groups.list("width", _INTERVALS)],
        "by_sex_and_stage": by_sex_and_stage,
    }


def gender_bias_regression(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, genders: Iterable[Any], *, resamples: int = 0
) -> Report:
    """MAE and signed error of ages in years by sex, and their difference.

    Args:
        y_true: Reference ages in years (n,): a list, array, Series or tensor.
        y_pred: Predicted ages in years (n,).
        genders: Sexes (n,) in the words of `parse_sex`: "M", "male" or 1, "F", "female" or 0, as
            in `sex_int`; None and NaN count as unknown. The +1, -1, 0 of a `BoneAgeDataset`
            item's `sex` mean something else.
        resamples: Bootstrap resamples for the interval of each sex's figures; 0 for none.

    Returns:
        `male` and `female`, each with `n`, `mae_years`, `signed_error_years` and the same in
        months; `difference_mae_years` and `difference_signed_error_years` (male - female),
        None unless both are there; `n_unknown`.

    Raises:
        BoneAgeError: If lengths differ, there is no case, or a value cannot be read.
    """
    reference, predicted, sexes = read_cases(
        y_true=(y_true, read_years), y_pred=(y_pred, read_years), genders=(genders, parse_sex)
    )
    table = pd.DataFrame({"reference_years": reference, "predicted_years": predicted})
    return _compare_sexes(table.assign(sex=sexes), _AGE, resamples)


def gender_bias_classification(
    y_true: npt.ArrayLike, y_pred: npt.ArrayLike, genders: Iterable[Any], *, resamples: int = 0
) -> Report:
    """Stage accuracy by sex, and its difference.

    Args:
        y_true: Reference stages (n,), codes or names: a list, array, Series or tensor.
        y_pred: Predicted stages (n,).
        genders: As for `gender_bias_regression`.
        resamples: As for `gender_bias_regression`.

    Returns:
        `male` and `female`, each with `n` and `accuracy`; `difference_accuracy` (male -
        female), None unless both are there; `n_unknown`.

    Raises:
        BoneAgeError: As for `gender_bias_regression`.
    """
    reference, predicted, sexes = read_cases(
        y_true=(y_true, read_stage), y_pred=(y_pred, read_stage), genders=(genders, parse_sex)
    )
    names = np.array(STAGES, dtype=object)
    table = pd.DataFrame({"reference_stage": names[reference], "predicted_stage": names[predicted]})
    return _compare_sexes(table.assign(sex=sexes), ("accuracy",), resamples)


def _compare_sexes(table: pd.DataFrame, names: Sequence[str], resamples: int) -> Report:
    return _plain(_Groups(Cases.of(table), resamples).compare_sexes(names))


def _plain(value: Any) -> Any:
    """Turn numpy numbers into Python's and NaN into None, all the way down."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def save_evaluation(output: Path, table: pd.DataFrame, report: Report) -> None:
    """Write `predictions_<split>.csv` and `metrics_<split>.json`, each whole or not at all."""
    split = report["split"]
    save_table(output / f"predictions_{split}.csv", table)
    save_text(output / f"metrics_{split}.json", json.dumps(report, indent=2) + "\n")
