"""The prediction table: its one schema, its one reader, and the check that every table passes.

One row an image. Ages are in years, a stage is a word, an error is predicted - reference.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from boneage.errors import BoneAgeError, LabelError
from boneage.files import save_text
from boneage.stages import PROBABILITIES, STAGES, stage_from_years
from boneage.tables.columns import (
    ACCEPTED_COLUMNS,
    find_columns,
    read_ages,
    read_csv,
    read_ids,
    read_numbers,
    read_sexes,
    to_numbers,
)

COLUMNS = (
    "image_id", "split", "sex", "reference_years", "predicted_years",
    "reference_stage", "predicted_stage", *PROBABILITIES,
)  # fmt: skip
"""Columns of the table of a split, in the order of its file.

`predicted_years` is empty if no age head was trained, the `p_` columns if no stage head was; the
predicted stage then follows from the age.
"""

INTERVAL = ("predicted_low_years", "predicted_high_years")
"""Ends of the prediction interval, where the model gives one."""

CHRONOLOGICAL = "chronological_age_years"

LARGEST_RATIO = 5.0
"""Ratio of the medians of predictions and references beyond which their units differ."""

MOST_GROUPS = 50
"""Most values of a column that names groups."""

AGE_BANDS_YEARS = (0.0, 6.0, 9.0, 12.0, 15.0, math.inf)
"""Limits of the age groups in which figures are given."""

# Ages must lie above these, in years. A model may predict a little less than nothing for an
# infant; an age of -1, or of -999, stands for a missing one.
_ABOVE_YEARS = {"reference": 0.0, "predicted": -1.0, "predicted_low": -5.0,
                "predicted_high": -5.0, "chronological_age": -0.001}  # fmt: skip
_PREDICTED, _NOT_PREDICTED = ("ok", "warn"), ("reject", "error")


@dataclass(frozen=True)
class Predictions:
    """A prediction table read from a file, checked.

    Attributes:
        name: For the report.
        table: One row a case: `image_id`, `sex` ("M", "F" or None), `reference_years`,
            `predicted_years`, `reference_stage`, `predicted_stage` and, where the file has them,
            `predicted_low_years`, `predicted_high_years`, the `p_` columns and
            `chronological_age_years`.
        groups: The further columns asked for, as text, a row a case.
        n_unanswered: Rows without a prediction, left out (status reject or error).
        n_without_reference: Rows with a prediction and no reference, left out.
        has_stage: Whether the file gave stages of its own; else they are thresholds on the age.
    """

    name: str
    table: pd.DataFrame
    groups: pd.DataFrame
    n_unanswered: int
    n_without_reference: int
    has_stage: bool


def has_ages(table: pd.DataFrame) -> bool:
    """Whether a checked table has predicted ages."""
    return "predicted_years" in table and bool(table["predicted_years"].notna().all())


def has_probabilities(table: pd.DataFrame) -> bool:
    """Whether a checked table has stage probabilities."""
    return set(PROBABILITIES) <= set(table) and bool(table["p_child"].notna().all())


def has_intervals(table: pd.DataFrame) -> bool:
    """Whether a checked table has prediction intervals."""
    return set(INTERVAL) <= set(table) and bool(table[list(INTERVAL)].notna().all(axis=None))


def check_table(table: pd.DataFrame) -> None:
    """Refuse a table of a split that does not have the schema.

    Raises:
        BoneAgeError: If it is empty, lacks a column, mixes splits, or a stage or a number is none.
    """
    if table.empty:
        raise BoneAgeError("the prediction table is empty; there is nothing to evaluate.")
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise BoneAgeError(f"the prediction table lacks the columns {', '.join(missing)}.")
    splits = table["split"].unique()
    if len(splits) > 1:
        raise BoneAgeError(
            f"the prediction table mixes the splits {', '.join(map(str, splits))}; expected one."
        )
    for name in ("reference_stage", "predicted_stage"):
        odd = table[~table[name].isin(list(STAGES))]
        if len(odd):
            raise BoneAgeError(
                f"{name} is {odd[name].iloc[0]!r} for {odd['image_id'].iloc[0]}; expected one of "
                f"{', '.join(STAGES)}."
            )
    outputs = ["predicted_years", *PROBABILITIES]
    has_no_head = bool(table[outputs].isna().all(axis=None))
    for name in ("reference_years", *outputs):
        column = table[name]
        if name in outputs and column.isna().all() and not has_no_head:
            continue
        bad = table.loc[~np.isfinite(column.astype(float)), "image_id"]
        if len(bad):
            raise BoneAgeError(
                f"{name} is not a finite number for {len(bad)} of {len(table)} images, the first "
                f"{', '.join(bad.astype(str).head(3))}. A model whose training diverged predicts "
                "so: lower its learning rate."
            )


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write the table of a split, whole or not at all."""
    save_text(path, table.to_csv(index=False, columns=list(COLUMNS), lineterminator="\n"))


def load_table(path: Path) -> pd.DataFrame:
    """Read a table that `save_table` wrote."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    numbers = ["reference_years", "predicted_years", *PROBABILITIES]
    return table.assign(**{name: to_numbers(table[name].fillna("")) for name in numbers})


def read_all(paths: Sequence[Path], by: Sequence[str] = ()) -> list[Predictions]:
    """Read tables to compare, under names that tell them apart; `by` is read from the first.

    Raises:
        LabelError: If one file is given twice, or as `read_predictions` does.
    """
    names = _name_apart(paths)
    return [read_predictions(path, () if i else by, name=name)
            for i, (path, name) in enumerate(zip(paths, names, strict=True))]  # fmt: skip


def _name_apart(paths: Sequence[Path]) -> list[str]:
    """Name files by their stems, or by as much of their paths as tells them apart."""
    names = [path.stem for path in paths]
    whole = [path.resolve() for path in paths]
    for path in whole:
        if whole.count(path) > 1:
            raise LabelError(f"{path} is given twice; expected tables that differ.")
    depth = 0
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in whole]
    return names


def read_predictions(
    path: Path,
    by: Sequence[str] = (),
    *,
    name: str | None = None,
    rows: pd.DataFrame | None = None,
) -> Predictions:
    """Read a CSV of predictions with their references.

    Needs `image_id`, `sex`, `reference_years` or `reference_months`, which may have any of the
    names that a label table's columns have, and `predicted_years` or `predicted_months`. Takes as
    well `predicted_low_…` and `predicted_high_…` in either unit,
    `p_child, p_adolescent, p_adult`, `reference_stage` and `predicted_stage`,
    `chronological_age_years` or `…_months`, `status`, and the columns named in `by`.

    Args:
        path: The CSV.
        by: Columns that name further groups.
        name: For the report, if not the file's stem.
        rows: Its rows as text under their line numbers, if they are at hand already.

    Raises:
        LabelError: Naming the column, the value and the line, if a column is missing or there
            twice, an id comes twice, a value is no number or cannot be true, or ages are not in
            the unit that their column says.
    """
    raw = read_csv(path, "a CSV of predictions") if rows is None else rows
    by = list(dict.fromkeys(by))
    columns = _check_header(path, list(raw.columns), by)
    if raw.empty:
        raise LabelError(f"{path} has a header but no rows; expected one row a case.")
    ages = {age: _read_age(path, raw, age, columns) for age in _ABOVE_YEARS}
    reference, predicted = ages["reference"], ages["predicted"]
    if reference.isna().all():
        raise LabelError(
            f"{path} has no reference age (reference_years or reference_months); without it there "
            f"is nothing to audit. Found: {', '.join(raw.columns)}."
        )
    if predicted.isna().all():
        raise LabelError(
            f"{path} has no prediction (predicted_years or predicted_months). Found: "
            f"{', '.join(raw.columns)}."
        )
    is_predicted = _find_predicted(path, raw, predicted)
    used = is_predicted & reference.notna()
    if not used.any():
        raise LabelError(
            f"{path} has no row with both a prediction and a reference; there is nothing to audit."
        )
    table = pd.DataFrame(
        {
            "image_id": read_ids(path, raw[columns["image_id"]]),
            "sex": read_sexes(path, raw, columns),
        }
    )
    table["reference_years"], table["predicted_years"] = reference, predicted
    ends = {name: ages[name.removesuffix("_years")] for name in INTERVAL}
    if _is_given(path, ends, used):
        table = table.assign(**ends)
        _check_order(path, table[used])
    if ages["chronological_age"].notna().any():
        table[CHRONOLOGICAL] = ages["chronological_age"]
    probabilities = {p: read_numbers(path, raw, p) for p in PROBABILITIES}
    if _is_given(path, probabilities, used):
        table = table.assign(**probabilities)
        _check_probabilities(path, table[used])
    raw, table = raw[used], table[used].copy()
    _check_ratio(path, table)
    has_stage = _add_stages(path, raw, table)
    groups = pd.DataFrame({column: _read_group(path, raw, column) for column in by})
    return Predictions(
        name=path.stem if name is None else name,
        table=table.reset_index(drop=True),
        groups=groups.reset_index(drop=True),
        n_unanswered=int((~is_predicted).sum()),
        n_without_reference=int((is_predicted & ~used).sum()),
        has_stage=has_stage,
    )


def _check_header(path: Path, header: list[str], by: Sequence[str]) -> dict[str, str]:
    """Map the columns that label tables have as well, and refuse a header that lacks some."""
    for name in header:
        if name and header.count(name) > 1:
            raise LabelError(f"{path} has the column {name!r} twice. Keep one of them.")
    columns = find_columns(path, header, names_win=True)
    is_there = {"image_id": "image_id" in columns, "sex": bool({"sex", "male"} & set(columns))}
    for name in (*(name for name, there in is_there.items() if not there), *by):
        if name not in header:
            raise LabelError(
                f"{path} has no column {name!r}; found: {', '.join(header)}. Accepted besides "
                f"predicted_…: {ACCEPTED_COLUMNS}."
            )
    refuse_sex(by)
    return columns


def keep_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse a folder for a report in which one of its inputs lies, and might be overwritten.

    Raises:
        LabelError: Naming the file.
    """
    for path in inputs:
        if path.is_file() and path.resolve().parent == out.resolve():
            raise LabelError(f"{path} lies among the tables to be written. Pass another --out.")


def refuse_sex(by: Sequence[str]) -> None:
    """Refuse to group by sex once more."""
    if "sex" in by:
        raise LabelError("--by sex: every figure is given by sex already. Leave it out.")


def _read_age(path: Path, raw: pd.DataFrame, age: str, columns: Mapping[str, str]) -> pd.Series:
    """Read an age in whichever unit is there, in years; empty if there is neither."""
    months, years = f"{age}_months", f"{age}_years"
    if age == "reference":
        months, years = columns.get("months", months), columns.get("years", years)
    return read_ages(
        path,
        raw,
        months=months,
        years=years,
        above=12.0 * _ABOVE_YEARS[age],
        in_years=True,
        may_be_small=age == "predicted_low",
    )


def _find_predicted(path: Path, raw: pd.DataFrame, predicted: pd.Series) -> pd.Series:
    """Find the rows that hold a prediction; it may be missing only where a status says so."""
    is_predicted = pd.Series(True, index=raw.index)
    if "status" in raw:
        status = raw["status"].str.strip().str.lower()
        for line in status.index[~status.isin([*_PREDICTED, *_NOT_PREDICTED])]:
            raise LabelError(
                f"{path} line {line}: status is {raw.at[line, 'status']!r}; expected "
                f"{', '.join((*_PREDICTED, *_NOT_PREDICTED))}. Rename a column that means another."
            )
        is_predicted = status.isin(list(_PREDICTED))
    for line in predicted.index[predicted.isna() & is_predicted]:
        raise LabelError(
            f"{path} line {line} has no prediction. Fill it, or mark such rows in a column status "
            "as reject or error."
        )
    return is_predicted


def _is_given(path: Path, columns: Mapping[str, pd.Series], used: pd.Series) -> bool:
    """Whether columns that belong together are all there; half of them is an error."""
    missing = {name: column[used].isna() for name, column in columns.items()}
    if all(empty.all() for empty in missing.values()):
        return False
    for name, empty in missing.items():
        for line in empty.index[empty]:
            raise LabelError(
                f"{path} line {line}: {name} is empty, where {', '.join(columns)} are given for "
                "others. Fill all of them, or none."
            )
    return True


def _check_order(path: Path, table: pd.DataFrame) -> None:
    low, high = (table[name] for name in INTERVAL)
    for line in table.index[low > high]:
        raise LabelError(
            f"{path} line {line}: the interval from {low[line]:g} to {high[line]:g} years ends "
            "before it starts. Exchange its ends."
        )


def _check_probabilities(path: Path, table: pd.DataFrame) -> None:
    given = table[list(PROBABILITIES)]
    odd = (given < 0.0).any(axis=1) | ((given.sum(axis=1) - 1.0).abs() > 0.02)
    for line in table.index[odd]:
        raise LabelError(
            f"{path} line {line}: {', '.join(PROBABILITIES)} are "
            f"{', '.join(f'{p:g}' for p in given.loc[line])}; expected probabilities, sum 1."
        )


def _check_ratio(path: Path, table: pd.DataFrame) -> None:
    """Refuse predictions in one unit beside references in another."""
    ratio = table["predicted_years"].median() / table["reference_years"].median()
    if not 1 / LARGEST_RATIO < ratio < LARGEST_RATIO:
        raise LabelError(
            f"{path}: predictions are {ratio:.2g} times the references (medians). Check that each "
            "is in the unit that its column says."
        )


def _add_stages(path: Path, raw: pd.DataFrame, table: pd.DataFrame) -> bool:
    """Add the stages, given or else likeliest or else by age; tell whether they are the model's."""
    for kind in ("reference", "predicted"):
        table[f"{kind}_stage"] = _name_stages(stage_from_years(table[f"{kind}_years"]))
    reference = _read_stage(path, raw, "reference")
    if reference is not None:
        years = table["reference_years"]
        # Half a month of rounding is no contradiction.
        fits = [
            reference == _name_stages(stage_from_years(years + shift))
            for shift in (-0.05, 0.0, 0.05)
        ]
        for line in table.index[~np.any(fits, axis=0)]:
            raise LabelError(
                f"{path} line {line}: reference_stage is {reference[line]}, but the age "
                f"{years[line]:.4g} years. Leave the column out; stages follow from the age."
            )
        table["reference_stage"] = reference
    predicted = _read_stage(path, raw, "predicted")
    if predicted is None and PROBABILITIES[0] in table:
        likeliest = table[list(PROBABILITIES)].to_numpy().argmax(axis=1)
        predicted = pd.Series(_name_stages(likeliest), index=table.index)
    if predicted is not None:
        table["predicted_stage"] = predicted
    return predicted is not None


def _read_stage(path: Path, raw: pd.DataFrame, kind: str) -> pd.Series | None:
    column = f"{kind}_stage"
    names = {stage.lower(): stage for stage in STAGES}
    words = raw[column].str.strip().str.lower() if column in raw else None
    if words is None or (words == "").all():
        return None
    for line in words.index[~words.isin(list(names))]:
        raise LabelError(
            f"{path} line {line}: {column} is {raw.at[line, column]!r}; expected "
            f"{', '.join(STAGES)}."
        )
    return words.map(names)


def _name_stages(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    return np.array(STAGES, dtype=object)[codes]


def _read_group(path: Path, raw: pd.DataFrame, column: str) -> pd.Series:
    values = raw[column].str.strip().replace("", "not given")
    if values.nunique() > MOST_GROUPS:
        raise LabelError(
            f"{path}: {column} has {values.nunique()} values; expected at most {MOST_GROUPS} to "
            "name groups. Put them into wider classes."
        )
    return values


def name_age_band(years: float) -> str:
    """Name the band of `AGE_BANDS_YEARS` that an age lies in.

    Example:
        >>> name_age_band(6.0)
        '6 to under 9 years'
    """
    low, high = next(ends for ends in itertools.pairwise(AGE_BANDS_YEARS) if years < ends[1])
    return f"{low:g} years and over" if math.isinf(high) else f"{low:g} to under {high:g} years"
