from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from boneage.cli.text import (
    Counts,
    describe_calibration,
    describe_prediction,
    format_age,
    summarise,
)
from boneage.errors import ImageError
from boneage.evaluation.evaluate import Report, evaluate_table
from boneage.inference.prediction import Prediction, unreadable
from boneage.inference.quality import Reason, ReasonCode, Severity
from boneage.stages import PROBABILITIES, STAGES, stage_from_years
from builders import make_calibration

NAN = float("nan")

WHOLE = Prediction(
    "7", Path("images/7.png"), "F", 10.46, 9.0, 12.04, 125.52, "Child", 0.75, 0.24, 0.01
)
WARNINGS = tuple(Reason(ReasonCode.INVERTED, Severity.WARN, message) for message in ("one", "two"))
NOTE = Reason(ReasonCode.STAGE_CONTRADICTS_AGE, Severity.INFO, "age and stage differ")
BARE = Prediction("7", Path("images/7.png"), predicted_stage="Adult")


@pytest.mark.parametrize(
    ("years", "text"),
    [(10.46, "10 years 6 months"), (1.0, "1 year 0 months"), (0.08, "0 years 1 month"),
     (10.999, "11 years 0 months")],
)  # fmt: skip
def test_an_age_is_given_in_whole_years_and_months(years: float, text: str) -> None:
    assert format_age(years) == text


def test_one_image_is_described_in_full() -> None:
    image = replace(WHOLE, reasons=WARNINGS).with_reference(12.0)
    assert describe_prediction(image, in_full=True).splitlines() == [
        "images/7.png",
        "  bone age   10 years 6 months",
        "  interval   9 years 0 months to 12 years 0 months (90% prediction interval)",
        "  stage      Child (probability 75%)",
        "  sex        female",
        "  reference  12 years 0 months, Adolescent",
        "  warn       one",
        "  warn       two",
        "  Research use only, not a medical device.",
    ]


def test_values_that_the_model_does_not_give_are_left_out() -> None:
    assert describe_prediction(BARE, in_full=True).splitlines() == [
        "images/7.png",
        "  stage      Adult",
        "  sex        unknown",
        "  Research use only, not a medical device.",
    ]
    assert describe_prediction(BARE, in_full=False) == "images/7.png: Adult, sex unknown"


def test_an_image_among_others_is_one_line() -> None:
    image = replace(WHOLE, reasons=WARNINGS)
    assert describe_prediction(image, in_full=False) == (
        "images/7.png: 10.5 years (9.0 to 12.0) Child, sex female [warn: one; two]"
    )


@pytest.mark.parametrize("in_full", [True, False])
def test_an_image_without_a_prediction_says_why(in_full: bool) -> None:
    too_small = Reason(ReasonCode.IMAGE_TOO_SMALL, Severity.REJECT, "it is tiny")
    tiny = Prediction("7", Path("7.png"), reasons=(too_small,))
    assert describe_prediction(tiny, in_full=in_full) == "7.png: reject: it is tiny"
    gone = unreadable(Path("7.png"), ImageError("7.png does not exist."))
    assert describe_prediction(gone, in_full=in_full) == "error: 7.png does not exist."


def test_images_are_counted_by_status() -> None:
    counts = Counts()
    assert counts.summarise(None).startswith("0 images: none left to predict. Research use only")
    broken = unreadable(Path("7.png"), ImageError("7.png does not exist."))
    for prediction in (broken, WHOLE, WHOLE, replace(WHOLE, reasons=WARNINGS)):
        counts.add(prediction)
    assert counts.has_errors
    assert counts.summarise(None).startswith("4 images: 2 ok, 1 warn, 1 error. Research")
    counts.kept, counts.changed, counts.rest = 3, 2, ["1 other file left out"]
    text = counts.summarise(Path("out.csv"))
    assert (
        "; 3 predicted before; 2 predicted again, because the file has changed; 1 other file left "
        "out; in out.csv. Research"
    ) in text
    rejected = Counts()
    for code in (ReasonCode.NOT_A_RADIOGRAPH, ReasonCode.TOO_FEW_GREYS, ReasonCode.TOO_FEW_GREYS):
        reason = Reason(code, Severity.REJECT, "so it is")
        rejected.add(Prediction("7", Path("7.png"), reasons=(reason,)))
    assert rejected.summarise(None).startswith(
        "3 images: 3 reject; rejected: 1 not_a_radiograph, 2 too_few_greys. Research"
    )
    one = Counts(not_in_table=1, without_image=2)
    one.add(WHOLE)
    assert not one.has_errors
    assert one.summarise(None).startswith(
        "1 image: 1 ok; 1 not in the table; 2 rows of the table without an"
    )


def test_a_calibration_is_described_beside_the_model_s_own() -> None:
    fitted = make_calibration("abc", bias_male_years=0.25, images=40)
    alone = describe_calibration(fitted, None)
    assert alone.splitlines()[:2] == ["40 images", "  bias, male         +3.00 months"]
    assert alone.splitlines()[-2] == "  temperature        2.00"
    assert alone.splitlines()[-1].startswith("  with 40 images, intervals meant to hold 90% of new")
    many = describe_calibration(replace(fitted, images=300), None)
    assert many.splitlines()[-1] == "  temperature        2.00"
    assert "+3.00 months (model's own -120.00)" in describe_calibration(
        fitted, make_calibration("abc")
    )


def test_a_note_is_not_called_a_warning() -> None:
    noted = replace(WHOLE, reasons=(NOTE,))
    assert "\n  note       age and stage differ\n" in describe_prediction(noted, in_full=True)
    assert describe_prediction(noted, in_full=False).endswith("[note: age and stage differ]")
    both = replace(noted, reasons=(WARNINGS[0], NOTE))
    text = describe_prediction(both, in_full=True)
    assert "\n  warn       one\n  note       age and stage differ\n" in text


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
        {"image_id": ["a", "b", "c", "d"], "split": "test", "sex": pd.Series(sex, dtype=object),
         "reference_years": reference, "predicted_years": predicted if has_age else NAN,
         "reference_stage": [STAGES[s] for s in stage_from_years(reference)],
         "predicted_stage": ["Child", "Child", "Child", "Adolescent"],
         **dict.fromkeys(PROBABILITIES, 0.5 if has_stage else NAN)}
    )  # fmt: skip
    return evaluate_table(table, resamples=resamples, **options)


def test_a_summary_without_intervals_reads_like_this() -> None:
    text = summarise(_report(resamples=0, baseline_years=11.0))
    assert text.splitlines()[1:] == [
        "  MAE            0.750 years = 9.00 months",
        "  RMSE           1.118 years = 13.42 months",
        "  signed error   0.250 years = 3.00 months",
        "  R²             0.931",
        "  baseline       MAE 39.00 months, R² -0.003 by always predicting 11.00 years, the "
        "training median",
        "  accuracy       0.7500",
        "  precision      0.8333 (weighted)",
        "  recall         0.7500 (weighted)",
        "  F1             0.7333 (weighted)",
        "  QWK            0.5000",
        "  n by stage     Child 2, Adolescent 2, Adult 0",
        "  note           no case of: Adult",
        "  note           never predicted: Adult",
        "  stage accuracy 0.7500 by the stage head",
        "                 0.7500 by thresholds on the age",
        "                 without labels of exactly 12 years (n = 3): 1.0000 and 0.6667",
        "  male           n = 2, accuracy 0.5000, MAE 0.00, signed error +0.00 months",
        "  female         n = 2, accuracy 1.0000, MAE 18.00, signed error +6.00 months",
    ]


def test_intervals_stand_behind_their_figures_in_the_same_unit_or_are_left_out() -> None:
    report = _report()
    report["regression"] |= {"mae_years_ci": [0.5, 1.25], "mae_months_ci": [6.0, 15.0]}
    report["regression"]["r2_ci"] = [None, None]
    lines = summarise(report).splitlines()
    assert lines[0] == "test split, n = 4 (intervals: 95%, bootstrap)"
    assert "  MAE            0.750 [0.500, 1.250] years = 9.00 [6.00, 15.00] months" in lines
    assert "  R²             0.931" in lines


def test_undefined_figures_are_called_so_and_what_is_not_there_has_no_line() -> None:
    report = _report()
    report["regression"] |= {"r2": None, "r2_ci": [None, None]}
    report["classification"] |= {
        "qwk": None, "qwk_ci": [None, None], "absent_stages": [], "never_predicted_stages": [],
    }  # fmt: skip
    report["approaches"]["without_boundary"] = {"n": 0}
    text = summarise(report)
    assert {"  R²             undefined", "  QWK            undefined"} <= set(text.splitlines())
    for absent in ("baseline", "without labels", "note"):
        assert absent not in text


def test_a_model_without_one_of_the_heads_has_no_line_on_it() -> None:
    text = summarise(_report(has_age=False, baseline_years=11.0))
    assert "months" not in text
    assert "thresholds" not in text
    assert "  male           n = 2, accuracy 0.5000" in text.splitlines()
    text = summarise(_report(has_stage=False))
    assert "stage head" not in text
    assert "MAE" in text


def test_a_sex_without_cases_has_no_line_and_cases_of_unknown_sex_are_counted() -> None:
    text = summarise(_report(sex=("M", "M", None, "M")))
    assert "female" not in text
    assert "male           n = 3" in text
    lines = summarise(_report(sex=("M", None, "F", None))).splitlines()
    assert any("unknown" in line and "2" in line for line in lines)
