from typing import Any

import pandas as pd
import pytest

from boneage.cli.summary import summarise
from boneage.evaluation.evaluate import Report, evaluate_table
from boneage.stages import PROBABILITIES, STAGES, stage_from_years

NAN = float("nan")


def _report(
    *,
    has_age: bool = True,
    has_stage: bool = True,
    sex: tuple[str | None, ...] = ("M", "F", "M", "F"),
    resamples: int = 20,
    **options: Any,
) -> Report:
    """Four children: one error of +2 years (24 months), one of -1; one stage wrong by age."""
    reference, predicted = [5.0, 11.0, 12.0, 17.0], [5.0, 13.0, 12.0, 16.0]
    table = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "d"],
            "split": "test",
            "sex": pd.Series(sex, dtype=object),
            "reference_years": reference,
            "predicted_years": predicted if has_age else NAN,
            "reference_stage": [STAGES[s] for s in stage_from_years(reference)],
            "predicted_stage": ["Child", "Child", "Child", "Adolescent"],
            **dict.fromkeys(PROBABILITIES, 0.5 if has_stage else NAN),
        }
    )
    return evaluate_table(table, resamples=resamples, **options)


def test_the_first_line_names_split_and_number_of_cases() -> None:
    first = summarise(_report()).splitlines()[0]
    assert first == "test split, n = 4 (intervals: 95%, bootstrap)"


def test_a_summary_without_intervals_reads_like_this() -> None:
    text = summarise(_report(resamples=0, baseline_years=11.0))
    assert text.splitlines()[1:] == [
        "  MAE            0.750 years = 9.00 months",
        "  RMSE           1.118 years = 13.42 months",
        "  signed error   0.250 years = 3.00 months",
        "  R²             0.931",
        "  baseline       MAE 39.00 months, R² -0.003 by always answering 11.00 years, the "
        "training median",
        "  accuracy       0.7500",
        "  precision      0.8333 (weighted)",
        "  recall         0.7500 (weighted)",
        "  F1             0.7333 (weighted)",
        "  QWK            0.5000",
        "  n by stage     Child 2, Adolescent 2, Adult 0",
        "  note           no case of: Adult",
        "  note           never answered: Adult",
        "  stage accuracy 0.7500 by the stage head",
        "                 0.7500 by thresholds on the age",
        "                 without labels of exactly 12 years (n = 3): 1.0000 and 0.6667",
        "  male           n = 2, accuracy 0.5000, MAE 0.00, signed error +0.00 months",
        "  female         n = 2, accuracy 1.0000, MAE 18.00, signed error +6.00 months",
    ]


def test_intervals_stand_behind_their_figures_in_the_same_unit() -> None:
    report = _report()
    report["regression"] |= {"mae_years_ci": [0.5, 1.25], "mae_months_ci": [6.0, 15.0]}
    text = summarise(report)
    assert "MAE            0.750 [0.500, 1.250] years = 9.00 [6.00, 15.00] months" in text


@pytest.mark.parametrize(
    ("section", "name", "line"),
    [
        ("regression", "r2", "  R²             undefined"),
        ("classification", "qwk", "  QWK            undefined"),
    ],
)
def test_an_undefined_figure_is_called_so(section: str, name: str, line: str) -> None:
    report = _report()
    report[section] |= {name: None, f"{name}_ci": [None, None]}
    assert line in summarise(report).splitlines()


def test_an_undefined_interval_is_left_out() -> None:
    report = _report()
    report["regression"]["r2_ci"] = [None, None]
    assert "  R²             0.931" in summarise(report).splitlines()


def test_a_model_without_age_head_has_no_line_on_ages() -> None:
    text = summarise(_report(has_age=False, baseline_years=11.0))
    assert "months" not in text
    assert "thresholds" not in text
    assert "  male           n = 2, accuracy 0.5000" in text.splitlines()


def test_a_model_without_stage_head_is_not_compared_with_one() -> None:
    text = summarise(_report(has_stage=False))
    assert "stage head" not in text
    assert "MAE" in text


def test_there_is_no_line_on_the_baseline_without_one() -> None:
    assert "baseline" not in summarise(_report())


def test_a_table_of_nothing_but_labels_of_12_years_says_nothing_of_others() -> None:
    report = _report()
    report["approaches"]["without_boundary"] = {"n": 0}
    assert "without labels" not in summarise(report)


def test_a_sex_without_cases_has_no_line() -> None:
    text = summarise(_report(sex=("M", "M", None, "M")))
    assert "female" not in text
    assert "male           n = 3" in text


def test_cases_of_unknown_sex_are_counted() -> None:
    lines = summarise(_report(sex=("M", None, "F", None))).splitlines()
    assert any("unknown" in line and "2" in line for line in lines)


def test_stages_that_are_all_there_and_answered_need_no_note() -> None:
    report = _report()
    report["classification"] |= {"absent_stages": [], "never_predicted_stages": []}
    assert "note" not in summarise(report)
