import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch

from boneage.errors import BoneAgeError
from boneage.evaluation.evaluate import (
    Report,
    evaluate_table,
    gender_bias_classification,
    gender_bias_regression,
    save_evaluation,
)
from boneage.evaluation.prediction_table import COLUMNS as TABLE_COLUMNS, load_table
from boneage.stages import PROBABILITIES, STAGES, stage_from_years

NAN = float("nan")


pytestmark = pytest.mark.filterwarnings("error")
"""Undefined figures are None here, never warnings."""


def _names(codes: Iterable[int]) -> list[str]:
    return [STAGES[code] for code in codes]


def _table(
    reference: Sequence[float],
    predicted: Sequence[float] | None = None,
    stages: Sequence[int] | None = None,
    sex: Sequence[str | None] | None = None,
) -> pd.DataFrame:
    """A prediction table; without `stages` there is no stage head, without `predicted` no age."""
    n = len(reference)
    if stages is None:
        assert predicted is not None
        codes, probabilities = stage_from_years(predicted), np.full((n, 3), NAN)
    else:
        codes = np.asarray(stages)
        probabilities = np.full((n, 3), 0.125) + 0.625 * np.eye(3)[codes]
    columns: dict[str, Any] = {
        "image_id": [f"case{i}" for i in range(n)],
        "split": "val",
        "sex": np.array((["M", "F"] * n)[:n] if sex is None else sex, dtype=object),
        "reference_years": np.asarray(reference, dtype=float),
        "predicted_years": np.full(n, NAN) if predicted is None else np.asarray(predicted, float),
        "reference_stage": _names(stage_from_years(reference)),
        "predicted_stage": _names(codes),
        **dict(zip(PROBABILITIES, probabilities.T, strict=True)),
    }
    return pd.DataFrame(columns)


def _cohort(n: int = 90, seed: int = 0) -> pd.DataFrame:
    """Random predictions whose heads disagree with each other and the reference now and then."""
    rng = np.random.default_rng(seed)
    reference = rng.uniform(2.0, 20.0, n)
    predicted = reference + rng.normal(0.2, 1.5, n)
    stages = stage_from_years(reference + rng.normal(0.0, 2.0, n))
    return _table(reference.tolist(), predicted.tolist(), stages.tolist())


REGRESSION = ("mae_years", "rmse_years", "r2")
CLASSIFICATION = ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted", "qwk")


def test_every_figure_of_a_report_stands_within_its_interval() -> None:
    report = evaluate_table(_cohort(), resamples=300)
    assert (report["split"], report["n"]) == ("val", 90)
    assert set(report["gender_bias"]) == {"regression", "classification"}
    approaches = ("direct_accuracy", "threshold_accuracy", "difference")
    for section, names in (("regression", REGRESSION), ("classification", CLASSIFICATION),
                           ("approaches", approaches)):  # fmt: skip
        for name in names:
            interval = report[section][f"{name}_ci"]
            assert type(interval) is list
            assert interval[0] < report[section][name] < interval[1], name


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(_cohort(), id="both heads"),
        pytest.param(_table([5.0, 13.0, 19.0], [6.0, 12.0, 17.0]), id="age head"),
        pytest.param(_table([5.0, 13.0, 19.0], stages=[0, 1, 1]), id="stage head"),
        pytest.param(_table([5.0], [6.0], [0]), id="one case"),
    ],
)
def test_a_report_is_plain_json(table: pd.DataFrame) -> None:
    report = evaluate_table(table, baseline_years=10.0, resamples=20)
    assert {type(leaf) for leaf in _leaves(report)} <= {str, int, float, type(None)}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_same_table_gives_the_same_report_and_stays_as_it_was() -> None:
    table = _cohort()
    assert evaluate_table(table, resamples=50) == evaluate_table(_cohort(), resamples=50)
    pd.testing.assert_frame_equal(table, _cohort())


def test_by_default_an_interval_has_2000_resamples() -> None:
    table = _cohort(5)
    assert evaluate_table(table) == evaluate_table(table, resamples=2000)


def test_no_resamples_leave_the_intervals_out_and_all_else_as_it_is() -> None:
    def without_intervals(value: Any) -> Any:
        if isinstance(value, list):
            return [without_intervals(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {k: without_intervals(v) for k, v in value.items() if not k.endswith("_ci")}

    report = evaluate_table(_cohort(), resamples=20)
    assert evaluate_table(_cohort(), resamples=0) == without_intervals(report) != report


def test_figures_are_sklearns_of_the_whole_table() -> None:
    table = _cohort()
    report = evaluate_table(table, resamples=0)
    truth, predicted = table["reference_years"], table["predicted_years"]
    stages = [table[f"{name}_stage"].map(STAGES.index) for name in ("reference", "predicted")]
    found = report["regression"] | report["classification"]
    expected = {
        "mae_years": sklearn.metrics.mean_absolute_error(truth, predicted),
        "rmse_years": sklearn.metrics.root_mean_squared_error(truth, predicted),
        "r2": sklearn.metrics.r2_score(truth, predicted),
        "signed_error_years": (predicted - truth).mean(),
        "accuracy": sklearn.metrics.accuracy_score(*stages),
        "qwk": sklearn.metrics.cohen_kappa_score(*stages, weights="quadratic"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["confusion_matrix"] == sklearn.metrics.confusion_matrix(*stages).tolist()
    assert report["approaches"]["direct_accuracy"] == found["accuracy"]


def _pairs(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, years and months of every figure that is given in both."""
    if isinstance(value, list):
        for item in value:
            yield from _pairs(item)
    if isinstance(value, dict):
        for key, item in value.items():
            months = key.replace("_years", "_months")
            if months != key and months in value:
                yield key, item, value[months]
            yield from _pairs(item)


def test_months_are_twelve_times_the_years() -> None:
    report = evaluate_table(_cohort(), baseline_years=10.0, resamples=20)
    pairs = list(_pairs(report))
    for section in ("by_stage", "by_age"):
        assert {"mae_months", "signed_error_months"} <= set(report[section][0])
    assert {name for name, _, _ in pairs} >= {
        "mae_years", "mae_years_ci", "rmse_years_ci", "signed_error_years_ci", "signed_error_years",
    }  # fmt: skip
    for name, years, months in pairs:
        np.testing.assert_allclose(months, np.multiply(years, 12.0), rtol=1e-12, err_msg=name)


def test_the_baseline_predicts_one_age_for_all() -> None:
    table = _table([8.0, 10.0, 15.0], [8.0, 10.0, 15.0])
    assert evaluate_table(table, baseline_years=10.0, resamples=0)["baseline"] == {
        "constant_years": 10.0,
        "mae_years": pytest.approx(7 / 3),
        "mae_months": pytest.approx(28.0),
        "r2": pytest.approx(1.0 - 29 / 26),
    }


# Two labels of exactly 12 years: the thresholds miss both, the stage head one.
BOUNDARY = _table(
    reference=[11.0, 12.0, 12.0, 13.0, 17.0, 19.0],
    predicted=[11.5, 11.9, 11.0, 12.0, 18.5, 18.1],
    stages=[1, 1, 0, 1, 1, 1],
)


def test_the_stage_head_is_compared_with_thresholds_with_and_without_labels_of_12_years() -> None:
    figures = evaluate_table(BOUNDARY, resamples=0)["approaches"]
    assert figures["direct_accuracy"] == pytest.approx(3 / 6)
    assert figures["threshold_accuracy"] == pytest.approx(3 / 6)
    assert figures["difference"] == 0.0
    assert figures["without_boundary"] == {
        "n": 4, "direct_accuracy": pytest.approx(2 / 4),
        "threshold_accuracy": pytest.approx(3 / 4), "difference": pytest.approx(-1 / 4),
    }  # fmt: skip
    only = _table([12.0, 12.0], [11.0, 13.0], [1, 0])
    figures = evaluate_table(only, resamples=20)["approaches"]
    assert figures["without_boundary"] == {"n": 0}
    assert figures["threshold_accuracy"] == 0.5


def test_without_a_stage_head_stages_follow_from_thresholds_alone() -> None:
    report = evaluate_table(_table([5.0, 13.0, 19.0], [6.0, 11.0, 19.0]), resamples=20)
    figures = report["approaches"]
    assert figures["direct_accuracy"] is None
    assert figures["threshold_accuracy"] == pytest.approx(2 / 3)
    assert not {"difference", "stage_calibration", "baseline"} & {*figures, *report}
    assert report["classification"]["accuracy"] == pytest.approx(2 / 3)
    assert report["regression"]["mae_years"] == pytest.approx(1.0)


def test_a_model_without_age_head_has_no_figures_of_age() -> None:
    table = _table([5.0, 13.0, 19.0], stages=[0, 1, 1])
    report = evaluate_table(table, baseline_years=10.0, resamples=20)
    assert set(report) == {
        "split", "n", "classification", "approaches", "gender_bias", "stage_calibration",
    }  # fmt: skip
    assert report["approaches"]["direct_accuracy"] == pytest.approx(2 / 3)
    assert report["approaches"]["threshold_accuracy"] is None
    assert set(report["gender_bias"]) == {"classification"}


def test_a_stage_that_no_case_has_or_that_is_never_predicted_is_named() -> None:
    report = evaluate_table(_table([5.0, 7.0, 13.0], [5.0, 13.0, 13.0], [0, 1, 1]), resamples=20)
    figures = report["classification"]
    assert figures["n_by_stage"] == {"Child": 2, "Adolescent": 1, "Adult": 0}
    assert figures["absent_stages"] == ["Adult"]
    assert report["by_stage"][2] == {"group": "Adult", "n": 0}
    figures = evaluate_table(_table([5.0, 13.0, 19.0], stages=[1, 1, 1]))["classification"]
    assert figures["never_predicted_stages"] == ["Child", "Adult"]
    assert figures["absent_stages"] == []


def test_one_case_and_constant_predictions_have_what_figures_there_are() -> None:
    report = evaluate_table(_table([5.0], [6.0], [0]), resamples=20)
    assert report["n"] == 1
    assert report["regression"]["mae_years"] == 1.0
    assert report["regression"]["mae_years_ci"] == report["regression"]["r2_ci"] == [None, None]
    assert report["regression"]["r2"] is report["classification"]["qwk"] is None
    report = evaluate_table(_table([5.0, 13.0, 19.0], [13.0] * 3, [1, 1, 1]), resamples=20)
    assert report["classification"]["qwk"] == 0.0
    assert report["classification"]["precision_weighted"] == pytest.approx(1 / 9)
    assert report["regression"]["r2"] < 0.0


def test_an_empty_table_or_one_without_any_prediction_is_an_error() -> None:
    with pytest.raises(BoneAgeError, match="prediction table is empty; there is nothing to eval"):
        evaluate_table(_cohort().iloc[:0])
    nothing = dict.fromkeys(["predicted_years", *PROBABILITIES], NAN)
    with pytest.raises(BoneAgeError, match="not a finite number for 90 of 90"):
        evaluate_table(_cohort().assign(**nothing), resamples=0)


@pytest.mark.parametrize("value", [NAN, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["predicted_years", *PROBABILITIES])
def test_a_prediction_that_is_not_finite_is_an_error_with_count_and_ids(
    column: str, value: float
) -> None:
    table = _cohort()
    table.loc[[4, 7, 11, 80], column] = value
    message = (
        f"{column} is not a finite number for 4 of 90 images, the first case4, case7, case11. "
        "A model whose training diverged"
    )
    with pytest.raises(BoneAgeError, match=message):
        evaluate_table(table)


@pytest.mark.parametrize("column", ["reference_stage", "predicted_stage"])
@pytest.mark.parametrize("stage", [None, "adult"])
def test_a_stage_that_is_missing_or_misspelled_is_an_error(column: str, stage: str | None) -> None:
    table = _cohort()
    table[column] = table[column].astype(object)
    table.loc[4, column] = stage
    with pytest.raises(BoneAgeError, match="case4"):
        evaluate_table(table, resamples=0)


def test_each_stage_has_its_own_error() -> None:
    rows = evaluate_table(_table([5.0, 7.0, 13.0, 19.0], [6.0, 9.0, 10.0, 19.5]), resamples=0)
    found = [(r["group"], r["n"], r["mae_years"], r["signed_error_years"])
             for r in rows["by_stage"]]  # fmt: skip
    assert found == [("Child", 2, 1.5, 1.5), ("Adolescent", 1, 3.0, -3.0), ("Adult", 1, 0.5, 0.5)]


def test_groups_have_the_intervals_of_their_own_resampling() -> None:
    rng = np.random.default_rng(2)
    reference = rng.uniform(1.0, 11.9, 300)
    table = _table(list(reference), list(reference + rng.normal(0.3, 1.0, 300)))
    report = evaluate_table(table)
    size = (table["predicted_years"] - table["reference_years"]).abs()
    sexes = report["gender_bias"]["regression"]
    rows = [(sexes["male"], table["sex"] == "M"), (report["by_stage"][0], size >= 0)]
    for row, members in rows:
        spread = 1.96 * size[members].std() / np.sqrt(members.sum())
        expected = [row["mae_years"] - spread, row["mae_years"] + spread]
        assert row["mae_years_ci"] == pytest.approx(expected, abs=0.02)
        assert row["mae_months_ci"] == pytest.approx(np.multiply(12.0, row["mae_years_ci"]))
    low, high = report["gender_bias"]["classification"]["female"]["accuracy_ci"]
    assert low < report["gender_bias"]["classification"]["female"]["accuracy"] < high
    assert "mae_years_ci" not in evaluate_table(table, resamples=0)["by_age"][0]


def test_ages_are_grouped_in_the_bands_of_the_audit() -> None:
    table = _table([10.5, 3.0, 12.0, 2.0, 11.999, 0.5], [11.0, 3.5, 13.0, 2.5, 12.999, 1.0])
    rows = evaluate_table(table, resamples=0)["by_age"]
    groups = {"0 to under 6 years": 3, "9 to under 12 years": 2, "12 to under 15 years": 1}
    assert [(row["group"], row["n"]) for row in rows] == list(groups.items())
    assert rows[1]["mae_years"] == pytest.approx(0.75)


def test_ages_are_grouped_by_the_prediction_as_well() -> None:
    table = _table([10.5, 3.0, 12.0], [8.5, 3.5, 13.0])
    rows = evaluate_table(table, resamples=0)["by_predicted_age"]
    assert [(row["group"], row["signed_error_months"]) for row in rows] == [
        ("0 to under 6 years", 6.0), ("6 to under 9 years", -24.0), ("12 to under 15 years", 12.0),
    ]  # fmt: skip


def test_regression_to_the_mean_explains_the_errors_of_a_prediction_that_only_shrinks() -> None:
    reference = np.linspace(1.0, 17.0, 200)
    noise = np.random.default_rng(0).normal(0.0, 1.5, len(reference))
    r2 = reference.var() / (reference.var() + noise.var())  # of the best linear prediction
    predicted = reference.mean() + r2 * (reference - reference.mean() + noise)
    for row in evaluate_table(_table(reference.tolist(), predicted.tolist()), resamples=0)[
        "by_age"
    ]:
        assert row["regression_to_mean_months"] == pytest.approx(row["signed_error_months"], abs=4)


def test_the_worst_cases_come_worst_first_and_those_equally_bad_by_their_id() -> None:
    errors = np.array([0.1, -3.0, 0.5, 2.0, 1.0, -1.5, 0.2, 0.3, -0.4, 0.6, 0.7, 0.8])
    table = _table([10.0] * 12, (10.0 + errors).tolist())
    worst = evaluate_table(table, resamples=0)["worst_cases"]
    expected = sorted(errors, key=abs, reverse=True)
    assert [case["error_years"] for case in worst] == pytest.approx(expected)
    worst = evaluate_table(_table([10.0] * 40, [11.0] * 40), resamples=0)["worst_cases"]
    assert [case["image_id"] for case in worst] == sorted(f"case{i}" for i in range(40))[:20]


def test_a_worst_case_has_its_own_row() -> None:
    table = _table([10.0, 5.0, 9.0], [10.0, 8.0, 9.5], sex=["M", "F", None]).iloc[::-1]
    first, second, _ = evaluate_table(table, resamples=0)["worst_cases"]
    assert first == {"image_id": "case1", "sex": "F", "reference_years": 5.0,
                     "predicted_years": 8.0, "error_years": 3.0}  # fmt: skip
    assert (second["image_id"], second["sex"]) == ("case2", None)


TRUTH = [10.0, 10.0, 10.0, 10.0]
PREDICTED = [11.0, 13.0, 9.5, 9.0]
SPELLINGS = [
    pytest.param(genders, id=name)
    for name, genders in {
        "list of M and F": ["M", "M", "F", "F"],
        "list of 1 and 0": [1, 1, 0, 0],
        "floats": [1.0, 1.0, 0.0, 0.0],
        "is male": [True, True, False, False],
        "array of M and F": np.array(["M", "M", "F", "F"]),
        "array of 1 and 0": np.array([1, 1, 0, 0]),
        "series of M and F": pd.Series(["M", "M", "F", "F"], index=[7, 5, 3, 1]),
        "series of 1 and 0": pd.Series([1, 1, 0, 0], index=[7, 5, 3, 1], dtype="Int64"),
        "array of words": np.array(["male", "Male", "female", "FEMALE"]),
        "array of booleans": np.array([True, True, False, False]),
        "array of float32": np.array([1, 1, 0, 0], np.float32),
        "list of numpy numbers": [np.int64(1), np.bool_(True), np.float32(0), np.str_("f")],
        "tensor": torch.tensor([1, 1, 0, 0]),
        "tensor of floats": torch.tensor([1.0, 1.0, 0.0, 0.0]),
        "list of tensors": list(torch.tensor([True, True, False, False])),
        "generator": None,
    }.items()
]


@pytest.mark.parametrize("genders", SPELLINGS)
def test_bias_by_sex_has_error_sign_and_accuracy(genders: Any) -> None:
    def given() -> Any:
        return (sex for sex in "MMFF") if genders is None else genders

    assert gender_bias_regression(TRUTH, PREDICTED, given()) == {
        "male": {"n": 2, "mae_years": 2.0, "signed_error_years": 2.0,
                 "mae_months": 24.0, "signed_error_months": 24.0},
        "female": {"n": 2, "mae_years": 0.75, "signed_error_years": -0.75,
                   "mae_months": 9.0, "signed_error_months": -9.0},
        "difference_mae_years": 1.25,
        "difference_signed_error_years": 2.75,
        "n_unknown": 0,
    }  # fmt: skip
    assert gender_bias_classification([0, 1, 1, 2], [0, 1, 0, 2], given()) == {
        "male": {"n": 2, "accuracy": 1.0},
        "female": {"n": 2, "accuracy": 0.5},
        "difference_accuracy": 0.5,
        "n_unknown": 0,
    }


def test_series_are_paired_by_position_as_the_rows_of_one_table() -> None:
    table = pd.DataFrame({"truth": TRUTH, "predicted": PREDICTED, "sex": ["M", "M", "F", "F"]})
    shuffled = table.iloc[[3, 0, 2, 1]]
    result = gender_bias_regression(shuffled["truth"], shuffled["predicted"], shuffled["sex"])
    assert (result["male"]["mae_years"], result["female"]["mae_years"]) == (2.0, 0.75)


@pytest.mark.parametrize("unknown", [None, NAN, "U", "", "O"])
def test_an_unknown_sex_is_counted_apart(unknown: Any) -> None:
    result = gender_bias_regression(TRUTH, PREDICTED, ["M", unknown, "F", unknown])
    assert (result["male"]["n"], result["female"]["n"], result["n_unknown"]) == (1, 1, 2)
    assert result["female"]["mae_years"] == 0.5


@pytest.mark.parametrize(
    ("values", "dtype"), [([1, None, 0, None], "Int64"), (["M", None, "F", None], "string")]
)
def test_a_missing_sex_of_pandas_is_counted_apart(values: list[Any], dtype: Any) -> None:
    result = gender_bias_regression(TRUTH, PREDICTED, pd.Series(values, dtype=dtype))
    assert (result["male"]["n"], result["female"]["n"], result["n_unknown"]) == (1, 1, 2)


@pytest.mark.parametrize(
    "of",
    [
        np.array,
        lambda values: np.array(values, np.float32),
        lambda values: pd.Series(values, index=[7, 5, 3, 1]),
        lambda values: pd.Series(values, dtype="Float64"),
        torch.tensor,
        lambda values: torch.tensor(values, dtype=torch.bfloat16, requires_grad=True),
        lambda values: list(torch.tensor(values)),
        tuple,
        iter,
    ],
    ids=["array", "float32", "series", "nullable series", "tensor", "tensor of a network",
         "list of tensors", "tuple", "iterator"],
)  # fmt: skip
def test_ages_come_in_any_container(of: Callable[[list[float]], Any]) -> None:
    expected = gender_bias_regression(TRUTH, PREDICTED, ["M", "F", "F", "M"])
    assert gender_bias_regression(of(TRUTH), of(PREDICTED), ["M", "F", "F", "M"]) == expected


@pytest.mark.parametrize(
    "of",
    [
        _names,
        lambda codes: np.array(_names(codes)),
        lambda codes: pd.Series(_names(codes), index=[7, 5, 3, 1]),
        lambda codes: pd.Series(_names(codes), dtype="category"),
        lambda codes: [name.lower() for name in _names(codes)],
        lambda codes: np.array(codes, float),
        lambda codes: pd.Series(codes, dtype="Int64"),
        torch.tensor,
    ],
    ids=["names", "array of names", "series of names", "category", "small letters", "floats",
         "nullable series", "tensor"],
)  # fmt: skip
def test_stages_come_as_names_or_codes_in_any_container(of: Callable[[list[int]], Any]) -> None:
    for truth, predicted in ((of([0, 1, 1, 2]), [0, 1, 0, 2]), ([0, 1, 1, 2], of([0, 1, 0, 2]))):
        result = gender_bias_classification(truth, predicted, ["M", "M", "F", "F"])
        assert (result["male"]["accuracy"], result["female"]["accuracy"]) == (1.0, 0.5)


@pytest.mark.parametrize("word", ["X", "mann", 2, -1.0, "2"])
@pytest.mark.parametrize("bias", [gender_bias_regression, gender_bias_classification])
def test_a_sex_that_is_not_understood_is_refused(bias: Callable[..., Report], word: Any) -> None:
    with pytest.raises(BoneAgeError) as refused:
        bias([1, 1, 2], [1, 1, 1], ["M", "F", word])
    assert f"position 2 of genders is {word!r}; expected M or F" in str(refused.value)


@pytest.mark.parametrize("bias", [gender_bias_regression, gender_bias_classification])
def test_columns_of_different_length_or_none_are_refused(bias: Callable[..., Report]) -> None:
    for columns, message in (
        (([1, 1, 2], [1, 1], ["M", "F", "F"]), "y_true has 3, y_pred has 2, genders has 3 values;"),
        (([1, 1], [1, 1], ["M"]), "y_true has 2, y_pred has 2, genders has 1 values; expected"),
        (([], [], []), "y_true, y_pred, genders are empty; expected"),
        ((np.array([]),) * 3, "y_true, y_pred, genders are empty; expected"),
        ((pd.Series([], dtype=float),) * 3, "y_true, y_pred, genders are empty; expected"),
    ):
        with pytest.raises(BoneAgeError, match=message):
            bias(*columns)


@pytest.mark.parametrize("value", [NAN, None, pd.NA, float("inf"), "old", [10.0], "Child"])
def test_an_age_that_is_no_number_is_refused_with_its_place(value: Any) -> None:
    for name in ("y_true", "y_pred"):
        ages: dict[str, Any] = {"y_true": [10.0, 11.0], "y_pred": [10.0, 11.0]}
        ages[name] = [10.0, value]
        with pytest.raises(BoneAgeError) as refused:
            gender_bias_regression(**ages, genders=["M", "F"])
        expected = f"position 1 of {name} is {value!r}; expected an age, a finite number of years."
        assert str(refused.value) == expected


@pytest.mark.parametrize("value", [NAN, None, pd.NA, 3, -1, 0.5, 12.5, "Infant", [0.1, 0.7, 0.2]])
def test_a_stage_that_there_is_not_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(BoneAgeError) as refused:
        gender_bias_classification([0, 1], [0, value], ["M", "F"])
    message = str(refused.value)
    assert f"position 1 of y_pred is {value!r}; expected a stage, 0, 1, 2 or Child" in message
    assert "stage_from_years" in message


@pytest.mark.parametrize("odd", [None, 10.0, "Child", torch.tensor(1.0), {"a": 1}, pd.DataFrame()])
def test_what_is_no_column_is_refused(odd: Any) -> None:
    with pytest.raises(BoneAgeError, match=r"y_pred is a \w+; expected one value per case"):
        gender_bias_regression([10.0], odd, ["M"])


def test_an_error_at_a_value_is_one_short_line() -> None:
    with pytest.raises(BoneAgeError) as refused:
        gender_bias_regression([10.0], np.zeros((1, 5000)), ["M"])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("genders", "missing"),
    [(["M"] * 4, "female"), (["F"] * 4, "male"), (["M", None] * 2, "female")],
)
def test_one_sex_only_has_no_difference(genders: list[Any], missing: str) -> None:
    result = gender_bias_regression(TRUTH, PREDICTED, genders)
    assert result[missing] == {"n": 0}
    assert result["difference_mae_years"] is None
    assert result["difference_signed_error_years"] is None


def test_a_report_on_one_sex_only_is_complete() -> None:
    table = _table([5.0, 13.0], [6.0, 13.0], [0, 1], sex=["M", "M"])
    bias = evaluate_table(table, resamples=20)["gender_bias"]
    assert bias["classification"]["difference_accuracy"] is None
    assert bias["regression"]["male"]["n"] == 2


def test_a_report_counts_an_unknown_sex_apart() -> None:
    table = _table([5.0, 13.0, 7.0], [6.0, 13.0, 7.0], [0, 1, 0], sex=["M", None, "F"])
    bias = evaluate_table(table, resamples=0)["gender_bias"]
    for part in ("regression", "classification"):
        counts = (bias[part]["male"]["n"], bias[part]["female"]["n"], bias[part]["n_unknown"])
        assert counts == (1, 1, 1), part


@pytest.fixture
def evaluation() -> tuple[pd.DataFrame, Report]:
    table = _cohort()
    table["sex"] = table["sex"].where(table.index != 3, None)
    return table, evaluate_table(table, resamples=20)


def test_an_evaluation_is_saved_as_a_table_of_the_agreed_columns_and_its_figures(
    tmp_path: Path, evaluation: tuple[pd.DataFrame, Report]
) -> None:
    table, report = evaluation
    wider = table.assign(path="x")[["path", *TABLE_COLUMNS[::-1]]]
    save_evaluation(tmp_path / "new" / "folder", wider, report)
    figures, saved = sorted((tmp_path / "new" / "folder").iterdir())
    assert (figures.name, saved.name) == ("metrics_val.json", "predictions_val.csv")
    assert json.loads(figures.read_text()) == report
    assert saved.read_text().splitlines()[0] == (
        "image_id,split,sex,reference_years,predicted_years,reference_stage,predicted_stage,"
        "p_child,p_adolescent,p_adult"
    )


def test_a_saved_table_reads_back_equal_to_the_last_digit_and_gives_the_same_report(
    tmp_path: Path, evaluation: tuple[pd.DataFrame, Report]
) -> None:
    table, report = evaluation
    save_evaluation(tmp_path, table, report)
    back = load_table(tmp_path / "predictions_val.csv")
    pd.testing.assert_frame_equal(back, table, check_exact=True, check_dtype=False)
    assert evaluate_table(back, resamples=20) == report


@pytest.mark.parametrize("ids", [["007", "07", "7"], ["1e5", "1e6", "2.0"], ["site.3", "a", "b"],
                                 ["NA", "null", "nan"]])  # fmt: skip
def test_ids_are_read_back_as_they_were_written(tmp_path: Path, ids: list[str]) -> None:
    table = _cohort(3).assign(image_id=ids)
    save_evaluation(tmp_path, table, evaluate_table(table, resamples=0))
    assert load_table(tmp_path / "predictions_val.csv")["image_id"].tolist() == ids


def _with_intervals(n: int = 90) -> pd.DataFrame:
    """A cohort with intervals of 1 to 4 years to either side, the wider the later in the table."""
    half = np.linspace(1.0, 4.0, n)
    table = _cohort(n)
    return table.assign(
        predicted_low_years=table["predicted_years"] - half,
        predicted_high_years=table["predicted_years"] + half,
    )


def test_intervals_are_judged_overall_and_by_width_sex_and_stage() -> None:
    table = _with_intervals()
    report = evaluate_table(table, resamples=200)["intervals"]
    error = (table["predicted_years"] - table["reference_years"]).abs()
    is_covered = error <= np.linspace(1.0, 4.0, 90)
    assert report["coverage"] == pytest.approx(is_covered.mean())
    assert report["mean_width_months"] == pytest.approx(2 * 2.5 * 12)
    low, high = report["coverage_ci"]
    assert low <= report["coverage"] <= high
    assert report["narrowest_tenth_months"] < 36 < 84 < report["widest_tenth_months"]
    thirds = report["by_width"]
    assert [row["group"].split()[0] for row in thirds] == ["narrowest", "middle", "widest"]
    for third, rows in zip(thirds, (slice(0, 30), slice(30, 60), slice(60, 90)), strict=True):
        assert third["n"] == 30
        assert third["coverage"] == pytest.approx(is_covered[rows].mean())
    cells = {(row["sex"], row["stage"]): row for row in report["by_sex_and_stage"]}
    assert sum(row["n"] for row in cells.values()) == 90
    boys = (table["sex"] == "M") & (table["reference_stage"] == "Child")
    assert cells["M", "Child"]["coverage"] == pytest.approx(is_covered[boys].mean())
    json.dumps(report)


def test_groups_without_images_are_left_out_of_the_intervals() -> None:
    table = _with_intervals(2).assign(sex="F", reference_stage="Child")
    report = evaluate_table(table, resamples=0)["intervals"]
    assert [row["n"] for row in report["by_width"]] == [1, 1]
    assert [(r["sex"], r["stage"], r["n"]) for r in report["by_sex_and_stage"]] == [
        ("F", "Child", 2)
    ]
    assert "coverage_ci" not in report


def test_without_intervals_in_every_row_none_are_judged() -> None:
    assert "intervals" not in evaluate_table(_cohort(), resamples=0)
    table = _with_intervals()
    table.loc[3, "predicted_low_years"] = NAN
    assert "intervals" not in evaluate_table(table, resamples=0)


def test_the_probability_of_the_predicted_stage_is_compared_with_its_accuracy() -> None:
    table = _cohort()
    report = evaluate_table(table, resamples=0)["stage_calibration"]
    accuracy = (table["predicted_stage"] == table["reference_stage"]).mean()
    assert report["bins"] == [{"n": 90, "confidence": 0.75, "accuracy": pytest.approx(accuracy)}]
    assert report["ece"] == pytest.approx(abs(0.75 - accuracy))
    assert type(report["ece"]) is float
