"""The three developmental stages and their thresholds, the same for labels and answers."""

import numpy as np
import numpy.typing as npt

STAGES = ("Child", "Adolescent", "Adult")
"""Stage names by their integer code 0, 1, 2."""

PROBABILITIES = ("p_child", "p_adolescent", "p_adult")
"""Columns of the stages' probabilities, in the order of the codes."""

ADOLESCENT_FROM_YEARS = 12.0
"""First age, in years, that counts as Adolescent."""

ADULT_ABOVE_YEARS = 18.0
"""Last age, in years, that counts as Adolescent; anything above is Adult."""

CLEAR_OF_LIMIT_YEARS = 0.05
"""A little over half a month: an age so far from a limit is on its side in whole months too."""


def stage_from_years(years: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Give the stage code of each age.

    Child: below 12 years. Adolescent: 12 to 18 years, both ends included. Adult: above 18.

    Args:
        years: Ages in years, any shape, no NaN.

    Returns:
        Codes 0, 1, 2 in the shape of `years`; index `STAGES` with them.

    Raises:
        ValueError: If an age is NaN, which belongs to no stage.

    Example:
        >>> stage_from_years([11.99, 12.0, 18.0, 18.01]).tolist()
        [0, 1, 1, 2]
    """
    ages = np.asarray(years, dtype=np.float64)
    if np.isnan(ages).any():
        raise ValueError("an age is NaN and has no stage")
    return (ages >= ADOLESCENT_FROM_YEARS).astype(np.int64) + (ages > ADULT_ABOVE_YEARS)


def nearest_of_stage(years: npt.ArrayLike, stages: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Give the age of a stage that is nearest to each age.

    Below 12 and above 18 years it keeps off the limit by `CLEAR_OF_LIMIT_YEARS`.

    Args:
        years: Ages in years, (n,).
        stages: Codes, (n,).

    Example:
        >>> nearest_of_stage([11.9, 12.5, 12.5], [1, 1, 0]).tolist()
        [12.0, 12.5, 11.95]
    """
    lowest = np.array([-np.inf, ADOLESCENT_FROM_YEARS, ADULT_ABOVE_YEARS + CLEAR_OF_LIMIT_YEARS])
    highest = np.array([ADOLESCENT_FROM_YEARS - CLEAR_OF_LIMIT_YEARS, ADULT_ABOVE_YEARS, np.inf])
    codes = np.asarray(stages)
    return np.clip(np.asarray(years, dtype=np.float64), lowest[codes], highest[codes])
