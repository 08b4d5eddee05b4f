"""Reference tables of skeletal maturation, and the standard deviation score of a bone age."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]
Names = npt.NDArray[np.str_]
Classes = tuple[Names, Names]

BRUSH_MONTHS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "M": (
        (3, 3.01, 0.69), (6, 6.09, 1.13), (9, 9.56, 1.43), (12, 12.74, 1.97), (18, 19.36, 3.52),
        (24, 25.97, 3.92), (30, 32.40, 4.52), (36, 38.21, 5.08), (42, 43.89, 5.40),
        (48, 49.04, 6.66), (54, 56.00, 8.36), (60, 62.43, 8.79), (72, 75.46, 9.17),
        (84, 88.20, 8.91), (96, 101.38, 9.10), (108, 113.90, 9.00), (120, 125.68, 9.79),
        (132, 137.32, 10.09), (144, 148.82, 10.38), (156, 158.39, 10.44), (168, 170.02, 10.72),
        (180, 182.72, 11.32), (192, 195.32, 12.86), (204, 206.21, 13.05),
    ),
    "F": (
        (3, 3.02, 0.72), (6, 6.04, 1.16), (9, 9.05, 1.36), (12, 12.04, 1.77), (18, 18.22, 3.49),
        (24, 24.16, 4.64), (30, 30.96, 5.37), (36, 36.63, 5.97), (42, 43.50, 7.48),
        (48, 50.14, 8.98), (54, 60.06, 10.73), (60, 66.21, 11.65), (72, 78.50, 10.23),
        (84, 89.30, 9.64), (96, 100.66, 10.23), (108, 113.86, 10.74), (120, 125.66, 11.73),
        (132, 137.86, 11.94), (144, 149.62, 10.24), (156, 162.28, 10.67), (168, 174.25, 11.30),
        (180, 183.62, 9.23), (192, 189.44, 7.31),
    ),
}  # fmt: skip
"""By sex: chronological age, mean bone age and its standard deviation, all in months.

Source: Brush Foundation study as tabulated in the Greulich-Pyle atlas, 2nd edition, 1959.
"""

DELAYED, NORMAL, ADVANCED = "delayed", "normal", "advanced"
LIMIT_SDS = 2.0
"""Standard deviations from the mean beyond which maturation is delayed or advanced."""


@dataclass(frozen=True)
class Reference:
    """Mean and standard deviation of bone age in months at given chronological ages.

    NaN outside the table, where no score can be given.
    """

    mean_months: Array
    sd_months: Array


def look_up(chronological_months: npt.ArrayLike, sexes: npt.ArrayLike) -> Reference:
    """Interpolate the Brush table linearly between its rows.

    Args:
        chronological_months: Ages, (n,).
        sexes: "M" or "F" for each age; any other value has no reference.
    """
    ages, names = np.asarray(chronological_months, float), np.asarray(sexes)
    mean, sd = np.full(ages.shape, np.nan), np.full(ages.shape, np.nan)
    for sex, rows in BRUSH_MONTHS.items():
        at, means, deviations = np.array(rows).T
        known = (names == sex) & (ages >= at[0]) & (ages <= at[-1])
        mean[known] = np.interp(ages[known], at, means)
        sd[known] = np.interp(ages[known], at, deviations)
    return Reference(mean, sd)


def sd_score(bone_age_months: npt.ArrayLike, reference: Reference) -> Array:
    """Standard deviation score: (bone age - mean at the chronological age) / SD.

    The Brush mean differs from the chronological age by up to 6.5 months, so this is not
    (bone age - chronological age) / SD.
    """
    return (np.asarray(bone_age_months, float) - reference.mean_months) / reference.sd_months


def classify(scores: npt.ArrayLike) -> Names:
    """Delayed, normal or advanced by the 2-SD rule; empty where there is no score."""
    values = np.asarray(scores, float)
    return np.select(
        [np.isnan(values), values < -LIMIT_SDS, values > LIMIT_SDS],
        ["", DELAYED, ADVANCED],
        NORMAL,
    )


def classify_both(table: pd.DataFrame) -> Classes | None:
    """Classify each case by its reference and by its prediction.

    Args:
        table: `sex`, `reference_years`, `predicted_years` and, where known,
            `chronological_age_years`.

    Returns:
        Two arrays (n,), empty text where there is no score; None without chronological ages.
    """
    if "chronological_age_years" not in table:
        return None
    months = 12.0 * table["chronological_age_years"]
    at = look_up(months, table["sex"].to_numpy(dtype=object))
    reader, model = (
        classify(sd_score(12.0 * table[f"{name}_years"], at)) for name in ("reference", "predicted")
    )
    return reader, model
