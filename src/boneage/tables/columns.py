"""The one reader of CSV files, and of the ids, ages and sexes in their columns.

Every table that a user brings (labels, predictions, a split, regions) is read here: as text under
its line numbers, then each kind of value by the one function that knows its spellings.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from boneage.errors import LabelError
from boneage.files import clean_id
from boneage.sex import ACCEPTED, parse_sex

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}
"""Accepted separators of fields; the most frequent one in the header is used."""

OLDEST_YEARS = 25.0
"""A larger age in a column of years is taken for months; bone age ends at 19 years."""

YOUNGEST_YEARS = 21.0
"""A column of months whose values are mostly below this is taken for years."""

MOSTLY = 0.9
"""Proportion of rows that counts as "mostly" for `YOUNGEST_YEARS`."""

COLUMN_NAMES: Mapping[str, tuple[str, ...]] = {
    "image_id": ("imageid", "id", "caseid", "filename"),
    "months": ("referencemonths", "boneage", "boneagemonths", "groundtruthboneagemonths"),
    "years": ("referenceyears", "boneageyears"),
    "male": ("male",),
    "sex": ("sex", "gender", "patientsex"),
}
"""Headers of the columns that every table may have, without case, blanks and punctuation."""

ACCEPTED_COLUMNS = (
    "id (or Image ID, Case ID, filename); boneage (or bone_age, Bone Age (months), boneage_years); "
    "sex, gender or male"
)

_BLANK = ("", "nan", "none", "null", "na", "n/a")
_DECIMAL_COMMA = r"^([+-]?\d*),(\d+)$"


def read_csv(path: Path, expected: str = "a label CSV") -> pd.DataFrame:
    """Read a table as text, each row under its line number in the file.

    Fields are separated by commas, semicolons or tabs; the file is UTF-8, with or without a byte
    order mark, or UTF-16 with one, as spreadsheets write it. Blank lines are left out.

    Raises:
        LabelError: If it is missing, unreadable, or a row has more fields than the header.
    """
    text = _read_text(path, expected)
    lines = text.splitlines(keepends=True)
    before = next((i for i, line in enumerate(lines) if line.strip()), 0)
    directive = re.fullmatch(r"sep=(.)\s*", lines[before], re.IGNORECASE) if lines else None
    before += bool(directive)  # `sep=;`, which spreadsheets write above the header
    header = lines[before] if len(lines) > before else ""
    separator = directive[1] if directive else _find_separator(header)
    try:
        # With header=None, pandas does not rename a doubled column, and does not take the first
        # column as an index when rows have more fields than the header.
        table = pd.read_csv(
            io.StringIO("".join(lines[before:])),
            sep=separator,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            header=None,
            skip_blank_lines=False,
        ).fillna("")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().splitlines()[-1]
        name = SEPARATORS.get(separator, repr(separator))
        raise LabelError(
            f"{path} is not a readable CSV: {reason} (fields separated by {name}; accepted: "
            f"{', '.join(SEPARATORS.values())}; a field that holds the separator needs quotes)."
        ) from None
    rows = table.iloc[1:].set_axis([name.strip() for name in table.iloc[0]], axis=1)
    first = before + 2
    rows.index = pd.RangeIndex(first, len(rows) + first)
    return rows[(rows != "").any(axis=1)]


def _read_text(path: Path, expected: str) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LabelError(f"{path} does not exist; expected {expected}.") from None
    except OSError as error:
        raise LabelError(f"{path}: {error.strerror}; expected {expected}.") from None
    if data.startswith(b"PK\x03\x04"):
        raise LabelError(f"{path} is a workbook or an archive; save the sheet as CSV (UTF-8).")
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise LabelError(
            f"{path} is not a readable CSV: {error}. Save it as CSV in UTF-8."
        ) from None


def _find_separator(header: str) -> str:
    """Find the separator of a header's fields; a comma if there is only one field."""
    unquoted = re.sub(r'"[^"]*"', "", header)
    return max(SEPARATORS, key=unquoted.count)


def find_columns(path: Path, header: Sequence[str], *, names_win: bool = False) -> dict[str, str]:
    """Map `COLUMN_NAMES` to the headers of a table, as far as it has them.

    Args:
        path: The table, for the message.
        header: Its headers.
        names_win: Whether a column with our own name (`image_id`, `sex`, `reference_months`,
            `reference_years`) is taken even if other columns have an accepted name too.

    Raises:
        LabelError: If several columns could be one of ours.
    """
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in header}
    ours_exactly = {"months": "reference_months", "years": "reference_years"}
    found = {}
    for ours, accepted in COLUMN_NAMES.items():
        matches = [name for name in header if plain[name] in accepted]
        exact = ours_exactly.get(ours, ours)
        if names_win and exact in matches:
            matches = [exact]
        if len(matches) > 1:
            raise LabelError(
                f"{path} has {len(matches)} columns that could be {ours}: "
                f"{', '.join(matches)}. Keep one of them."
            )
        if matches:
            found[ours] = matches[0]
    return found


def read_ids(path: Path, values: pd.Series) -> pd.Series:
    """Give the ids of a column as `clean_id` does.

    Raises:
        LabelError: Naming the line, if an id is empty or given twice.
    """
    ids = values.map(clean_id)
    for line in ids.index[ids == ""]:
        raise LabelError(f"{path} line {line}: the image id is empty; expected a file's stem.")
    for line in ids.index[ids.duplicated()]:
        first = ids.index[ids == ids[line]][0]
        raise LabelError(
            f"{path} line {line}: id {ids[line]!r} was given on line {first} already. Keep one row."
        )
    return ids


def read_sexes(
    path: Path, raw: pd.DataFrame, columns: Mapping[str, str], *, refuse_unknown: bool = False
) -> pd.Series:
    """Read the sex of each row: "M", "F" or None.

    Args:
        path: The table, for the message.
        raw: Its rows, as text.
        columns: As `find_columns` gives them: `sex`, `male`, or both, which must agree.
        refuse_unknown: Whether an unknown sex is an error.

    Raises:
        LabelError: Naming the line and the word, if it is no sex or the two columns differ.
    """
    found = []
    for name in (columns[ours] for ours in ("sex", "male") if ours in columns):
        sexes = []
        for line, word in raw[name].items():
            try:
                sex = parse_sex(word)
            except ValueError:
                unknown = "" if refuse_unknown else ", or U or nothing where it is unknown"
                raise LabelError(
                    f"{path} line {line}: {name} is {word!r}; expected {ACCEPTED}{unknown}. Fix it."
                ) from None
            if sex is None and refuse_unknown:
                raise LabelError(
                    f"{path} line {line}: {name} is {word!r}; expected {ACCEPTED}. Fix it, or pass "
                    "--drop-unknown-sex."
                )
            sexes.append(sex)
        found.append(pd.Series(sexes, index=raw.index, dtype=object))
    if len(found) == 2:
        both = found[0].notna() & found[1].notna()
        for line in raw.index[both & (found[0] != found[1])]:
            raise LabelError(
                f"{path} line {line}: {columns['sex']} says {found[0][line]} but "
                f"{columns['male']} says {found[1][line]}. Make them agree."
            )
        return found[0].where(found[0].notna(), found[1])
    return found[0]


def read_numbers(path: Path, raw: pd.DataFrame, column: str | None) -> pd.Series:
    """Read a column of numbers; NaN where a field is blank, all NaN if the column is missing.

    A decimal comma is read as a decimal point.

    Raises:
        LabelError: Naming the line and the value, if it is no finite number.
    """
    if column is None or column not in raw:
        return pd.Series(np.nan, index=raw.index)
    is_blank = _is_blank(raw[column])
    values = to_numbers(raw[column].where(~is_blank, ""))
    for line in values.index[~is_blank & ~np.isfinite(values)]:
        raise LabelError(
            f"{path} line {line}: {column} is {raw.at[line, column]!r}; expected a number or "
            "nothing."
        )
    return values


def _is_blank(text: pd.Series) -> pd.Series:
    return text.str.strip().str.lower().isin(_BLANK)


def to_numbers(text: pd.Series) -> pd.Series:
    """Turn text into numbers, NaN where it is no number; a decimal comma is accepted."""
    with_points = text.str.strip().str.replace(_DECIMAL_COMMA, r"\1.\2", regex=True)
    return with_points.map(_to_number).astype(float)


def _to_number(text: str) -> float:
    """Read one number to the last digit, which some versions of pandas do not; NaN for none."""
    with suppress(ValueError):
        if "_" not in text:  # which Python takes for a separator of thousands
            return float(text)
    return math.nan


def read_ages(
    path: Path,
    raw: pd.DataFrame,
    *,
    months: str | None,
    years: str | None,
    above: float = 0.0,
    at_most: float = 12.0 * OLDEST_YEARS,
    is_required: bool = False,
    may_be_small: bool = False,
    in_years: bool = False,
) -> pd.Series:
    """Read a column of ages in months or in years; NaN where a row has no age.

    Args:
        path: The table, for the message.
        raw: Its rows, as text.
        months: Column of the age in months, if there is one.
        years: Column of the age in years, if there is one.
        above: Lower limit of an age, in months, itself excluded.
        at_most: Upper limit, in months, itself included.
        is_required: Whether a row without an age is an error.
        may_be_small: Whether to accept a column of months whose values look like years.
        in_years: Whether to give years instead of months.

    Returns:
        Ages in months, or in years if `in_years`.

    Raises:
        LabelError: Naming the line and the value, if it is no age within the limits, if the two
            columns differ, or if a column seems to be in the other unit.
    """
    of_years = _read_unit(path, raw, years, "years", above / 12.0, at_most / 12.0)
    of_months = _read_unit(path, raw, months, "months", above, at_most)
    apart = (12.0 * of_years - of_months).abs() > 0.1
    for line in apart.index[apart]:
        raise LabelError(
            f"{path} line {line}: {years} is {of_years[line]:g} and {months} "
            f"{of_months[line]:g}, which differ. Keep the column that is right."
        )
    # Each number is kept as it was read: converting there and back could change its last digit.
    found = of_years.fillna(of_months / 12.0) if in_years else (12.0 * of_years).fillna(of_months)
    for line in found.index[found.isna() & is_required]:
        raise LabelError(_no_age(path, line, months or str(years), "", "months", above, at_most))
    # Only a column of infants could have such months, and infants' ages can be given in years.
    is_low = of_months[of_years.isna()].dropna() < YOUNGEST_YEARS
    if is_low.mean() > MOSTLY and not may_be_small:
        n = f"{is_low.sum()} of {len(is_low)} rows"
        raise LabelError(
            f"{path}: {months} is below {YOUNGEST_YEARS:g} in {n}, which looks like years. "
            f"{_rename(months, 'months', 'years')}; if these are infants, divide it by 12 as well."
        )
    return found


def _read_unit(
    path: Path, raw: pd.DataFrame, column: str | None, unit: str, above: float, at_most: float
) -> pd.Series:
    """Read ages in one unit; NaN where a field is blank or the column is missing."""
    if column is None or column not in raw:
        return pd.Series(np.nan, index=raw.index)
    values = to_numbers(raw[column])
    if unit == "years":
        for line in values.index[np.isfinite(values) & (values > OLDEST_YEARS)]:
            raise LabelError(
                f"{path} line {line}: {column} is {values[line]:g}, which looks like months. "
                f"{_rename(column, 'years', 'months')}, or divide it by 12."
            )
    is_age = (values > above) & (values <= at_most)
    for line in values.index[~is_age & ~_is_blank(raw[column])]:
        value = str(raw.at[line, column])
        raise LabelError(_no_age(path, line, column, value, unit, above, at_most))
    return values.where(is_age)


def _no_age(
    path: Path, line: int, column: str, value: str, unit: str, above: float, at_most: float
) -> str:
    return (
        f"{path} line {line}: {column} is {value!r}; expected {unit}, a number above {above:g} and "
        f"at most {at_most:g}. Fix or remove the row."
    )


def _rename(column: str | None, then: str, now: str) -> str:
    name = str(column)
    new = name.replace(then, now) if then in name else f"boneage_{now}"
    return f"Rename the column to {new}"


def count_ids(ids: Iterable[str], lacking: str) -> str:
    """Say how many rows lack something, and name the first five."""
    found = list(ids)
    shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
    return f"{len(found)} rows without {lacking}: {shown}"
