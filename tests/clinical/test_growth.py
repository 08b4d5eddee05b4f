import numpy as np
import pandas as pd
import pytest

from boneage.clinical.growth import BRUSH_MONTHS, classify, classify_both, look_up, sd_score


@pytest.mark.parametrize(
    ("sex", "age", "mean", "sd"),
    [("M", 3, 3.01, 0.69), ("M", 204, 206.21, 13.05), ("F", 3, 3.02, 0.72),
     ("F", 192, 189.44, 7.31), ("M", 120, 125.68, 9.79), ("F", 60, 66.21, 11.65)],
)  # fmt: skip
def test_at_its_rows_and_ends_the_table_is_reproduced(
    sex: str, age: float, mean: float, sd: float
) -> None:
    found = look_up([age], [sex])
    assert (found.mean_months[0], found.sd_months[0]) == pytest.approx((mean, sd))


def test_between_rows_the_table_is_interpolated_linearly() -> None:
    found = look_up([126.0, 63.0], ["M", "F"])
    assert found.mean_months == pytest.approx([(125.68 + 137.32) / 2, 0.75 * 66.21 + 0.25 * 78.50])
    assert found.sd_months == pytest.approx([(9.79 + 10.09) / 2, 0.75 * 11.65 + 0.25 * 10.23])


@pytest.mark.parametrize(
    ("sex", "age"),
    [("M", 2.9), ("M", 204.1), ("F", 2.9), ("F", 192.1), ("F", np.nan), (None, 120), ("U", 120)],
)
def test_outside_the_tables_there_is_no_reference_and_no_class(sex: str | None, age: float) -> None:
    found = look_up([age], np.array([sex], dtype=object))
    assert np.isnan([found.mean_months[0], found.sd_months[0]]).all()
    assert classify(sd_score([120.0], found)).tolist() == [""]


def test_the_score_is_above_zero_for_an_older_bone_age_than_the_mean_at_that_age() -> None:
    at = look_up([120.0, 120.0, 120.0], ["M", "M", "M"])
    scores = sd_score([125.68 + 9.79, 125.68, 120.0], at)
    assert scores == pytest.approx([1.0, 0.0, -5.68 / 9.79])


def test_beyond_two_standard_deviations_maturation_is_delayed_or_advanced() -> None:
    scores = [-2.01, -2.0, 0.0, 2.0, 2.01, np.nan]
    assert classify(scores).tolist() == ["delayed", "normal", "normal", "normal", "advanced", ""]


def test_reader_and_model_are_classified_at_the_same_chronological_age() -> None:
    # Boys of 120 months: 125.68 (9.79), so normal is 106.1 to 145.26; girls of 60: 66.21 (11.65),
    # so 42.91 to 89.51.
    table = pd.DataFrame(
        [("M", 120.0, 106.0, 107.0), ("M", 120.0, 120.0, 146.0), ("F", 60.0, 89.0, 42.0),
         (None, 120.0, 120.0, 120.0), ("M", np.nan, 120.0, 120.0), ("F", 193.0, 190.0, 190.0)],
        columns=["sex", "chronological_age_years", "reference_years", "predicted_years"],
    ).astype({"sex": object})  # fmt: skip
    ages = list(table.columns[1:])
    table[ages] /= 12.0
    found = classify_both(table)
    assert found is not None
    assert found[0].tolist() == ["delayed", "normal", "normal", "", "", ""]
    assert found[1].tolist() == ["normal", "advanced", "delayed", "", "", ""]
    assert classify_both(table.drop(columns="chronological_age_years")) is None


@pytest.mark.parametrize("sex", ["M", "F"])
def test_ages_and_means_rise_and_spreads_are_above_zero(sex: str) -> None:
    ages, means, deviations = np.array(BRUSH_MONTHS[sex]).T
    assert (np.diff(ages) > 0).all()
    assert (np.diff(means) > 0).all()
    assert (deviations > 0).all()
    assert np.abs(means - ages).max() <= 6.5
