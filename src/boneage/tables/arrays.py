"""Lists, arrays, Series or tensors of a notebook -> checked arrays of one value per case."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from boneage.errors import BoneAgeError
from boneage.stages import STAGES


def read_cases(**columns: tuple[Any, Callable[[Any], Any]]) -> list[np.ndarray]:
    """Read columns of one value per case, paired by position; a Series' index is ignored.

    Args:
        columns: For each name (used in errors) a list, array, Series or tensor, and the function
            that reads one of its values: `read_years`, `read_stage` or `parse_sex`.

    Returns:
        One array (n,) per column.

    Raises:
        BoneAgeError: If they are empty or differ in length, or a value cannot be read.
    """
    found = {name: _read_column(name, *column) for name, column in columns.items()}
    if len({len(values) for values in found.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in found.items())
        raise BoneAgeError(f"{lengths} values; expected the same number in each.")
    if not all(len(values) for values in found.values()):
        raise BoneAgeError(f"{', '.join(found)} are empty; expected at least one case.")
    return list(found.values())


def _read_column(name: str, column: Any, read: Callable[[Any], Any]) -> np.ndarray:
    # Plain Python values make numpy, pandas and torch all alike.
    values = column.tolist() if hasattr(column, "tolist") else column
    if isinstance(values, str | Mapping | pd.DataFrame) or not isinstance(values, Iterable):
        kind = type(column).__name__
        raise BoneAgeError(f"{name} is a {kind}; expected one value per case: a list or an array.")
    found = []
    for position, value in enumerate(values):
        try:
            found.append(read(value.tolist() if hasattr(value, "tolist") else value))
        except ValueError as error:
            raise BoneAgeError(f"position {position} of {name} is {error}.") from None
    return np.array(found)


def read_years(value: Any) -> float:
    """Read an age in years, finite; raises ValueError at anything else."""
    with suppress(TypeError, ValueError):
        if math.isfinite(years := float(value)):
            return years
    raise ValueError(f"{value!r:.60}; expected an age, a finite number of years")


def read_stage(value: Any) -> int:
    """Read a stage, its code or its name in any case; raises ValueError at anything else."""
    key = value.strip().lower() if isinstance(value, str) else value
    known = [*range(len(STAGES)), *(name.lower() for name in STAGES)]
    if isinstance(key, str | int | float) and key in known:
        return known.index(key) % len(STAGES)
    raise ValueError(
        f"{value!r:.60}; expected a stage, 0, 1, 2 or {', '.join(STAGES)} "
        "(`stage_from_years` gives the codes of ages)"
    )
