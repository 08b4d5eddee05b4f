"""The three developmental stages and their thresholds, the same for labels and predictions."""

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
