from dataclasses import replace
from pathlib import Path

import pytest

from boneage.cli.text import Counts, describe_calibration, describe_prediction, format_age
from boneage.errors import ImageError
from boneage.inference.prediction import Prediction, unreadable
from boneage.inference.quality import Reason, ReasonCode, Severity
from builders import make_calibration

WHOLE = Prediction(
    "7", Path("images/7.png"), "F", 10.46, 9.0, 12.04, 125.52, "Child", 0.75, 0.24, 0.01
)
WARNINGS = tuple(Reason(ReasonCode.INVERTED, Severity.WARN, message) for message in ("one", "two"))
NOTE = Reason(ReasonCode.STAGE_CONTRADICTS_AGE, Severity.INFO, "age and stage differ")
BARE = Prediction("7", Path("images/7.png"), predicted_stage="Adult")


@pytest.mark.parametrize(
    ("years", "text"),
    [
        (10.46, "10 years 6 months"),
        (1.0, "1 year 0 months"),
        (0.08, "0 years 1 month"),
        (10.999, "11 years 0 months"),
    ],
)
def test_an_age_is_told_in_whole_years_and_months(years: float, text: str) -> None:
    assert format_age(years) == text


def test_one_image_is_told_in_full() -> None:
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


def test_what_the_model_does_not_say_is_left_out() -> None:
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


def test_images_are_counted_by_what_became_of_them() -> None:
    counts = Counts()
    assert counts.summarise(None).startswith("0 images: none left to answer. Research use only")
    broken = unreadable(Path("7.png"), ImageError("7.png does not exist."))
    for prediction in (broken, WHOLE, WHOLE, replace(WHOLE, reasons=WARNINGS)):
        counts.add(prediction)
    assert counts.has_errors
    assert counts.summarise(None).startswith("4 images: 2 ok, 1 warn, 1 error. Research")
    counts.kept, counts.changed, counts.rest = 3, 2, ["1 other file left out"]
    text = counts.summarise(Path("out.csv"))
    assert (
        "; 3 answered before; 2 predicted again, since the file has changed; 1 other file left "
        "out; in out.csv. Research"
    ) in text
    one = Counts(not_in_table=1, without_image=2)
    one.add(WHOLE)
    assert not one.has_errors
    assert one.summarise(None).startswith(
        "1 image: 1 ok; 1 not in the table; 2 of the table's rows without an"
    )


def test_a_calibration_is_told_beside_the_model_s_own() -> None:
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


def test_a_note_is_no_warning_in_words() -> None:
    noted = replace(WHOLE, reasons=(NOTE,))
    assert "\n  note       age and stage differ\n" in describe_prediction(noted, in_full=True)
    assert describe_prediction(noted, in_full=False).endswith("[note: age and stage differ]")
    both = replace(noted, reasons=(WARNINGS[0], NOTE))
    text = describe_prediction(both, in_full=True)
    assert "\n  warn       one\n  note       age and stage differ\n" in text
