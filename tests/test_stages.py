import numpy as np
import pytest

from boneage.stages import STAGES, stage_from_years


@pytest.mark.parametrize(
    ("months", "stage"),
    [(1, "Child"), (143, "Child"), (144, "Adolescent"), (216, "Adolescent"), (217, "Adult"),
     (240, "Adult")],
)  # fmt: skip
def test_whole_months_fall_on_the_side_the_thresholds_name(months: int, stage: str) -> None:
    assert STAGES[stage_from_years(months / 12)] == stage


@pytest.mark.parametrize(
    ("years", "code"),
    [(np.nextafter(12.0, 0.0), 0), (12.0, 1), (18.0, 1), (np.nextafter(18.0, 99.0), 2),
     (-3.0, 0), (-np.inf, 0), (99.0, 2), (np.inf, 2)],
)  # fmt: skip
def test_the_thresholds_are_exact_to_the_last_bit_and_the_outer_stages_have_no_end(
    years: float, code: int
) -> None:
    assert stage_from_years(years) == code


def test_codes_are_integers_in_the_shape_of_the_ages() -> None:
    codes = stage_from_years([[5.0, 13.0, 19.0], [18.0, 12.0, 11.0]])
    np.testing.assert_array_equal(codes, [[0, 1, 2], [1, 1, 0]])
    assert codes.dtype == np.int64


def test_an_age_that_is_nan_has_no_stage() -> None:
    with pytest.raises(ValueError, match="an age is NaN and has no stage"):
        stage_from_years([5.0, float("nan")])
