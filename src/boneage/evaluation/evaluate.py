"""Prediction table -> report: accuracy, agreement, bias by sex, comparison of approaches.

A prediction table has one row an image and the columns `TABLE_COLUMNS`. Nothing here sees a
model; every figure of a run comes from one such table.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from boneage.errors import BoneAgeError
from boneage.evaluation.metrics import (
    bootstrap_intervals,
    classification_figures,
    confusion_matrix,
    coverage_score,
    expected_calibration_error,
    mean_absolute_error,
    mean_signed_error,
    r2_score,
    regression_figures,
    reliability_bins,
)
from boneage.files import save_text
from boneage.sex import parse_sex
from boneage.stages import ADOLESCENT_FROM_YEARS, PROBABILITIES, STAGES, stage_from_years
from boneage.tables.arrays import read_cases, read_stage, read_years

TABLE_COLUMNS = (
    "image_id", "split", "sex", "reference_years", "predicted_years",
    "reference_stage", "predicted_stage", *PROBABILITIES,
)  # fmt: skip
INTERVAL = {"predicted_low_years", "predicted_high_years"}
AGE_BIN_YEARS = 2.0
WORST_CASES = 10
MONTHS = 12.0

Report = dict[str, Any]


def evaluate_table(
    table: pd.DataFrame, *, baseline_years: float | None = None, resamples: int = 2000
) -> Report:
    """Compute every figure of one split from its prediction table.

    Args:
        table: Columns `TABLE_COLUMNS`; `predicted_years` is empty if no age head was trained,
            the `p_` columns if no stage head was (stages then come from the age). Where
            `predicted_low_years` and `predicted_high_years` are there, they are judged as well.
        baseline_years: Constant answer to compare with, the median age of the training images.
        resamples: Bootstrap resamples for the intervals; 0 leaves the intervals out.

    Returns:
        Plain numbers ready for JSON. Ages in years, with months beside them; errors are
        predicted - reference; `<figure>_ci` is the 95% interval; None is an undefined figure.

    Raises:
        BoneAgeError: If the table is empty or a prediction is missing or not finite.
    """
    _check(table)
    codes = {name: i for i, name in enumerate(STAGES)}
    truth = table["reference_stage"].map(codes).to_numpy()
    report: Report = {"split": str(table["split"].iloc[0]), "n": len(table)}
    has_age = bool(table["predicted_years"].notna().all())
    has_stage = bool(table["p_child"].notna().all())
    if has_age:
        report["regression"] = _regression(table, resamples)
        if baseline_years is not None:
            report["baseline"] = _baseline(table["reference_years"], baseline_years)
    answer = table["predicted_stage"].map(codes).to_numpy()
    report["classification"] = _classification(truth, answer, resamples)
    report["approaches"] = _approaches(table, truth, answer, has_age, has_stage, resamples)
    report["gender_bias"] = {
        "classification": gender_bias_classification(
            truth, answer, table["sex"], resamples=resamples
        ),
    }
    if has_age:
        report["gender_bias"]["regression"] = gender_bias_regression(
            table["reference_years"], table["predicted_years"], table["sex"], resamples=resamples
        )
        report["by_stage"] = _by_group(table, table["reference_stage"], STAGES, resamples)
        report["by_age"] = _by_age(table, resamples)
        if set(table) >= INTERVAL and bool(table[list(INTERVAL)].notna().all(axis=None)):
            report["intervals"] = _intervals(table, resamples)
        report["worst_cases"] = _worst_cases(table)
    if has_stage:
        report["stage_calibration"] = _stage_calibration(table)
    return _plain(report)


def _check(table: pd.DataFrame) -> None:
    if table.empty:
        raise BoneAgeError("the prediction table is empty; there is nothing to evaluate.")
    missing = [name for name in TABLE_COLUMNS if name not in table]
    if missing:
        raise BoneAgeError(f"the prediction table lacks the columns {', '.join(missing)}.")
    splits = table["split"].unique()
    if len(splits) > 1:
        raise BoneAgeError(
            f"the prediction table mixes the splits {', '.join(map(str, splits))}; expected one."
        )
    for name in ("reference_stage", "predicted_stage"):
        odd = table[~table[name].isin(list(STAGES))]
        if len(odd):
            raise BoneAgeError(
                f"{name} is {odd[name].iloc[0]!r} for {odd['image_id'].iloc[0]}; expected one of "
                f"{', '.join(STAGES)}."
            )
    answers = ["predicted_years", *PROBABILITIES]
    has_no_head = bool(table[answers].isna().all(axis=None))
    for name in ("reference_years", *answers):
        column = table[name]
        if name in answers and column.isna().all() and not has_no_head:
            continue
        bad = table.loc[~np.isfinite(column.astype(float)), "image_id"]
        if len(bad):
            raise BoneAgeError(
                f"{name} is not a finite number for {len(bad)} of {len(table)} images, the first "
                f"{', '.join(bad.astype(str).head(3))}. A model whose training diverged answers "
                "so: lower its learning rate."
            )


def _regression(table: pd.DataFrame, resamples: int) -> Report:
    truth = table["reference_years"].to_numpy(float)
    answer = table["predicted_years"].to_numpy(float)
    return _with_months(
        _with_intervals(
            lambda rows: regression_figures(truth[rows], answer[rows]),
            np.arange(len(table)),
            resamples,
        )
    )


def _with_intervals(
    figures: Callable[[np.ndarray], Mapping[str, Any]], rows: np.ndarray, resamples: int
) -> Report:
    """Figures of these rows, and, if there are draws, the bootstrap interval of each."""
    result: Report = dict(figures(rows))
    if resamples:
        intervals = bootstrap_intervals(
            lambda drawn: figures(rows[drawn]), len(rows), resamples=resamples
        )
        result |= {f"{name}_ci": list(interval) for name, interval in intervals.items()}
    return result


def _with_months(figures: Report) -> Report:
    """Add every figure in years in months."""
    return figures | {
        name.replace("_years", "_months"): np.multiply(figures[name], MONTHS)
        for name in figures if "_years" in name
    }  # fmt: skip


def _baseline(reference: pd.Series, constant: float) -> Report:
    answers = np.full(len(reference), constant)
    mae = mean_absolute_error(reference, answers)
    return {
        "constant_years": constant,
        "mae_years": mae,
        "mae_months": mae * MONTHS,
        "r2": r2_score(reference, answers),
    }


def _classification(truth: np.ndarray, answer: np.ndarray, resamples: int) -> Report:
    k = len(STAGES)
    counts = confusion_matrix(truth, answer, k)
    figures = _with_intervals(
        lambda rows: classification_figures(confusion_matrix(truth[rows], answer[rows], k)),
        np.arange(len(truth)),
        resamples,
    )
    truths, answers = counts.sum(axis=1), counts.sum(axis=0)
    figures["n_by_stage"] = {s: int(n) for s, n in zip(STAGES, truths, strict=True)}
    figures["confusion_matrix"] = counts.astype(int).tolist()
    figures["absent_stages"] = [s for s, n in zip(STAGES, truths, strict=True) if n == 0]
    figures["never_predicted_stages"] = [s for s, n in zip(STAGES, answers, strict=True) if n == 0]
    return figures


def _approaches(
    table: pd.DataFrame,
    truth: np.ndarray,
    answer: np.ndarray,
    has_age: bool,
    has_stage: bool,
    resamples: int,
) -> Report:
    """Compare the stage head with thresholds on the predicted age; None where one is missing.

    The labels that lie exactly on 12 years are a coin's throw for a threshold, so the
    comparison is given without them as well.
    """
    hits: dict[str, np.ndarray] = {}
    if has_stage:
        hits["direct_accuracy"] = (answer == truth).astype(float)
    if has_age:
        by_threshold = stage_from_years(table["predicted_years"])
        hits["threshold_accuracy"] = (by_threshold == truth).astype(float)
    off_boundary = (table["reference_years"] != ADOLESCENT_FROM_YEARS).to_numpy()
    result: Report = {"direct_accuracy": None, "threshold_accuracy": None}
    result |= _accuracies(hits, resamples)
    result["without_boundary"] = {
        "n": int(off_boundary.sum()),
        **(_accuracies({k: h[off_boundary] for k, h in hits.items()}, resamples)
           if off_boundary.any() else {}),
    }  # fmt: skip
    return result


def _accuracies(hits: Mapping[str, np.ndarray], resamples: int) -> Report:
    def figures(rows: Any) -> dict[str, np.ndarray]:
        values = {name: hit[rows].mean(axis=-1) for name, hit in hits.items()}
        if len(values) == 2:
            values["difference"] = values["direct_accuracy"] - values["threshold_accuracy"]
        return values

    return _with_intervals(figures, np.arange(len(next(iter(hits.values())))), resamples)


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
        resamples: Bootstrap resamples for the interval of each sex's figures; 0 leaves them out.

    Returns:
        `male` and `female`, each with `n`, `mae_years`, `signed_error_years` and the same in
        months; `difference_mae_years` and `difference_signed_error_years` (male - female),
        None unless both are there; `n_unknown`.

    Raises:
        BoneAgeError: If lengths differ, there is no case, or a value cannot be read.
    """
    truth, answer, sexes = read_cases(
        y_true=(y_true, read_years), y_pred=(y_pred, read_years), genders=(genders, parse_sex)
    )
    return _by_sex(
        sexes,
        lambda rows: _age_figures(truth, answer, rows, resamples),
        ("mae_years", "signed_error_years"),
    )


def _age_figures(truth: np.ndarray, answer: np.ndarray, rows: np.ndarray, resamples: int) -> Report:
    """MAE and signed error of these rows, with intervals, in years and months."""

    def figures(rows: np.ndarray) -> Report:
        return {
            "mae_years": mean_absolute_error(truth[rows], answer[rows]),
            "signed_error_years": mean_signed_error(truth[rows], answer[rows]),
        }

    return _with_months(_with_intervals(figures, rows, resamples))


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
    truth, answer, sexes = read_cases(
        y_true=(y_true, read_stage), y_pred=(y_pred, read_stage), genders=(genders, parse_sex)
    )
    hit = truth == answer
    return _by_sex(
        sexes,
        lambda rows: _with_intervals(lambda r: {"accuracy": hit[r].mean(axis=-1)}, rows, resamples),
        ("accuracy",),
    )


def _by_sex(sexes: np.ndarray, figures: Any, compared: Sequence[str]) -> Report:
    result: Report = {}
    for name, sex in (("male", "M"), ("female", "F")):
        rows = np.flatnonzero(sexes == sex)
        result[name] = {"n": len(rows), **(figures(rows) if len(rows) else {})}
    male, female = result["male"], result["female"]
    for name in compared:
        both = name in male and name in female
        result[f"difference_{name}"] = male[name] - female[name] if both else None
    result["n_unknown"] = len(sexes) - male["n"] - female["n"]
    return result


def _intervals(table: pd.DataFrame, resamples: int) -> Report:
    """Coverage and width of the prediction intervals, overall and where it might fail."""
    reference = table["reference_years"].to_numpy(float)
    low, high = (table[f"predicted_{end}_years"].to_numpy(float) for end in ("low", "high"))
    width = (high - low) * MONTHS

    def figures(rows: np.ndarray) -> dict[str, Any]:
        return {
            "coverage": coverage_score(reference[rows], low[rows], high[rows]),
            "mean_width_months": width[rows].mean(axis=-1),
        }

    result = _with_intervals(figures, np.arange(len(table)), resamples)
    by_width = np.argsort(width, kind="stable")
    tenth = max(1, len(table) // 10)
    result["narrowest_tenth_months"] = width[by_width[:tenth]].mean()
    result["widest_tenth_months"] = width[by_width[-tenth:]].mean()
    thirds = zip(("narrowest", "middle", "widest"), np.array_split(by_width, 3), strict=True)
    result["by_width"] = [
        {"group": f"{name} third", "n": len(rows), **_with_intervals(figures, rows, resamples)}
        for name, rows in thirds
        if len(rows)
    ]
    sexes, stages = table["sex"].to_numpy(), table["reference_stage"].to_numpy()
    result["by_sex_and_stage"] = [
        {"sex": sex, "stage": stage, "n": len(rows), **_with_intervals(figures, rows, resamples)}
        for sex in ("M", "F")
        for stage in STAGES
        if len(rows := np.flatnonzero((sexes == sex) & (stages == stage)))
    ]
    return result


def _stage_calibration(table: pd.DataFrame) -> Report:
    """How far the probability of the stage answered is what it says."""
    chances = table[list(PROBABILITIES)].to_numpy(float).max(axis=1)
    is_right = table["predicted_stage"] == table["reference_stage"]
    bins = reliability_bins(chances, is_right)
    return {"ece": expected_calibration_error(bins), "bins": bins}


def _by_group(
    table: pd.DataFrame, groups: pd.Series, names: Sequence[str], resamples: int
) -> list[Report]:
    truth, answer = (table[f"{name}_years"].to_numpy(float) for name in ("reference", "predicted"))
    members = {name: np.flatnonzero(groups == name) for name in names}
    return [
        {"group": name, "n": len(rows),
         **(_age_figures(truth, answer, rows, resamples) if len(rows) else {})}
        for name, rows in members.items()
    ]  # fmt: skip


def _by_age(table: pd.DataFrame, resamples: int) -> list[Report]:
    lower = np.floor(table["reference_years"] / AGE_BIN_YEARS) * AGE_BIN_YEARS
    names = lower.map(lambda low: f"{low:g} to under {low + AGE_BIN_YEARS:g} years")
    order = names[lower.sort_values().index].unique()
    return _by_group(table, names, list(order), resamples)


def _worst_cases(table: pd.DataFrame) -> list[Report]:
    error = table["predicted_years"] - table["reference_years"]
    worst = error.abs().sort_values(ascending=False, kind="stable").index[:WORST_CASES]
    columns = ["image_id", "sex", "reference_years", "predicted_years"]
    return [{**table.loc[i, columns].to_dict(), "error_years": float(error[i])} for i in worst]


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
    save_text(
        output / f"predictions_{split}.csv",
        table.to_csv(index=False, columns=list(TABLE_COLUMNS), lineterminator="\n"),
    )
    save_text(output / f"metrics_{split}.json", json.dumps(report, indent=2) + "\n")


def load_table(path: Path) -> pd.DataFrame:
    """Read a prediction table that `save_evaluation` wrote."""
    return pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False, na_values=[""])
