"""Label CSVs in any RSNA dialect -> one checked table, its rows matched with their films."""

import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from boneage.errors import LabelError
from boneage.files import IMAGE_SUFFIXES, cut_suffix
from boneage.stages import stage_from_years

logger = logging.getLogger(__name__)

MONTHS_MAX = 240
"""Largest bone age accepted, in months; the Greulich-Pyle atlas ends at 228."""

KAGGLE_NAME = "boneage-training-dataset"

# Headers are compared without case, blanks and punctuation: "Bone Age (months)" is "boneagemonths".
_COLUMNS = {
    "image_id": ("id", "imageid", "caseid"),
    "months": ("boneage", "boneagemonths", "groundtruthboneagemonths"),
    "male": ("male",),
    "sex": ("sex", "gender"),
}
_ACCEPTED = "id (or Image ID, Case ID); boneage (or bone_age, Bone Age (months)); sex or male"
_SEX = {"m": "M", "male": "M", "f": "F", "female": "F"}
_MALE = {"true": "M", "1": "M", "1.0": "M", "false": "F", "0": "F", "0.0": "F"}
_UNKNOWN_SEX = {"", "u", "unknown", "o", "other", "nan", "none", "null"}


def read_labels(
    path: Path,
    *,
    unknown_sex: Literal["error", "drop", "keep"] = "error",
    require_age: bool = True,
    group_column: str | None = None,
) -> pd.DataFrame:
    """Read one label table, its columns found by name.

    Accepts every header in circulation for the RSNA 2017 data: `id,boneage,male` ·
    `id,male,boneage` · `Image ID,male,Bone Age (months)` · `Case ID,Sex[,Ground truth bone
    age (months)]` · `id,bone_age,sex` · `id,bone_age,male` with 0/1.

    Args:
        path: CSV with a header line.
        unknown_sex: What to do with a row whose sex is empty, U or O.
        require_age: Whether a table without a bone-age column, or a row without an age, is an
            error.
        group_column: Further column to keep, as `group`.

    Returns:
        One row an image, sorted by id: `image_id` (str, the file's stem), `sex` ("M", "F" or
        None), `sex_int` (1 male, 0 female), where the table has ages `months` and `age_years`
        (months / 12), and where each row must have one `stage` (0, 1, 2).

    Raises:
        LabelError: Naming the line and the value, if a column is missing or doubled, an id
            comes twice, an age is no number in (0, 240], or a sex is unreadable.
    """
    raw = read_csv(path)
    columns = _find_columns(path, list(raw.columns), require_age)
    if raw.empty:
        raise LabelError(f"{path} has a header but no rows; expected one row an image.")
    table = pd.DataFrame({"image_id": read_ids(path, raw[columns["image_id"]])})
    if "months" in columns:
        table["months"] = _read_months(path, raw[columns["months"]], require_age)
        table["age_years"] = table["months"] / 12.0
        if require_age:
            table["stage"] = stage_from_years(table["age_years"])
    table["sex"] = _read_sex(path, raw, columns, unknown_sex)
    table["sex_int"] = table["sex"].map({"M": 1, "F": 0}).astype("Int64")
    if group_column is not None:
        if group_column not in raw.columns:
            found = ", ".join(raw.columns)
            raise LabelError(f"{path} has no column {group_column!r} to group by; found: {found}.")
        table["group"] = raw[group_column].str.strip()
        for line in table.index[table["group"] == ""]:
            raise LabelError(f"{path} line {line}: {group_column} is empty; expected a group id.")
    if unknown_sex == "drop":
        unknown = table["sex"].isna()
        if unknown.any():
            logger.warning(
                "%s: left out %s", path, count_ids(table.loc[unknown, "image_id"], "sex")
            )
        table = table[~unknown]
        if table.empty:
            raise LabelError(f"{path} has no row with a known sex; expected M or F.")
    order = sorted(range(len(table)), key=[natural_order(i) for i in table["image_id"]].__getitem__)
    return table.iloc[order].reset_index(drop=True)


def read_known(path: Path) -> dict[str, tuple[str | None, float | None]]:
    """Read the sex ("M", "F" or None) and the age in years, where known, by image id."""
    labels = read_labels(path, unknown_sex="keep", require_age=False)
    ages = labels["age_years"] if "age_years" in labels else [None] * len(labels)
    return {
        image_id: (sex, None if years is None or math.isnan(years) else float(years))
        for image_id, sex, years in zip(labels["image_id"], labels["sex"], ages, strict=True)
    }


def read_further(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read further columns of a label table as text, under `image_id`; those it lacks are left."""
    raw = read_csv(path)
    ids = read_ids(path, raw[_find_columns(path, list(raw.columns), False)["image_id"]])
    return raw[[name for name in dict.fromkeys(columns) if name in raw]].assign(image_id=ids)


def read_csv(path: Path, expected: str = "a label CSV") -> pd.DataFrame:
    """Read a CSV as text, each row under its line number in the file.

    Raises:
        LabelError: If it is missing, unreadable, or a row has more fields than the header.
    """
    try:
        # Without a header, pandas neither renames a doubled column nor takes the first for an
        # index when rows have more fields than the header.
        lines = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            header=None,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        raise LabelError(f"{path} does not exist; expected {expected}.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise LabelError(f"{path} is not a readable CSV: {reason}") from None
    except OSError as error:
        raise LabelError(f"{path}: {error.strerror}; expected {expected}.") from None
    rows = lines.iloc[1:].set_axis([name.strip() for name in lines.iloc[0]], axis=1)
    rows.index = pd.RangeIndex(2, len(rows) + 2)
    return rows[(rows != "").any(axis=1)]


def count_ids(ids: pd.Series, lacking: str) -> str:
    """Say how many rows lack something, and which are the first of them."""
    shown = ", ".join(ids.head(5)) + (", …" if len(ids) > 5 else "")
    return f"{len(ids)} rows without {lacking}: {shown}"


def natural_order(image_id: str) -> tuple[int, int, str]:
    """Key to sort ids by: numbers by their value, then words."""
    return (0, int(image_id), image_id) if image_id.isdecimal() else (1, 0, image_id)


def _find_columns(path: Path, header: list[str], require_age: bool) -> dict[str, str]:
    """Map our column names to the table's own."""
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in header}
    found: dict[str, str] = {}
    for ours, accepted in _COLUMNS.items():
        matches = [name for name in header if plain[name] in accepted]
        if len(matches) > 1:
            raise LabelError(
                f"{path} has {len(matches)} columns that could be {ours}: "
                f"{', '.join(matches)}. Keep one of them."
            )
        if matches:
            found[ours] = matches[0]
    missing = [ours for ours in ("image_id", "months") if ours not in found]
    if not require_age and "months" in missing:
        missing.remove("months")
    if "sex" not in found and "male" not in found:
        missing.append("sex")
    if missing:
        raise LabelError(
            f"{path} lacks a column for {' and '.join(missing)}; found: "
            f"{', '.join(header)}; accepted: {_ACCEPTED}."
        )
    return found


def read_ids(path: Path, values: pd.Series) -> pd.Series:
    """Give the ids of a column, a file's suffix cut off; raises where one is empty or doubled."""
    ids = values.str.strip().map(cut_suffix)
    for line in ids.index[ids == ""]:
        raise LabelError(f"{path} line {line}: the image id is empty; expected a file's stem.")
    for line in ids.index[ids.duplicated()]:
        first = ids.index[ids == ids[line]][0]
        raise LabelError(
            f"{path} line {line}: id {ids[line]!r} was given on line {first} already. Keep one row."
        )
    return ids


def _read_months(path: Path, values: pd.Series, require_age: bool) -> pd.Series:
    text = values.str.strip()
    months = pd.to_numeric(text, errors="coerce").astype(float)
    is_missing = (text == "") & (not require_age)
    is_age = months.between(0, MONTHS_MAX, inclusive="right")
    for line in months.index[~(is_age | is_missing)]:
        raise LabelError(
            f"{path} line {line}: {values.name} is {values[line]!r}; expected months, a number "
            f"above 0 and at most {MONTHS_MAX}. Fix or remove the row."
        )
    return months


def _read_sex(
    path: Path, raw: pd.DataFrame, columns: Mapping[str, str], unknown_sex: str
) -> pd.Series:
    answers = []
    for ours, meanings in (("sex", _SEX), ("male", _MALE)):
        if ours not in columns:
            continue
        name = columns[ours]
        text = raw[name].str.strip().str.lower()
        sex = text.map(meanings)
        unread = sex.isna() & (unknown_sex == "error" or ~text.isin(list(_UNKNOWN_SEX)))
        for line in sex.index[unread]:
            expected = "M or F" if ours == "sex" else "True or False, 1 or 0"
            is_unknown = text[line] in _UNKNOWN_SEX
            remedy = "Fix it, or pass --drop-unknown-sex" if is_unknown else "Fix it"
            if unknown_sex == "keep":
                expected += ", or U or nothing where it is unknown"
            raise LabelError(
                f"{path} line {line}: {name} is {raw.at[line, name]!r}; expected {expected}. "
                f"{remedy}."
            )
        answers.append(sex)
    if len(answers) == 2:
        both = answers[0].notna() & answers[1].notna()
        for line in raw.index[both & (answers[0] != answers[1])]:
            raise LabelError(
                f"{path} line {line}: {columns['sex']} says {answers[0][line]} but "
                f"{columns['male']} says {answers[1][line]}. Make them agree."
            )
    sex = answers[0] if len(answers) == 1 else answers[0].fillna(answers[1])
    return sex.astype(object).where(sex.notna(), None)


def find_labels(data: Path) -> Path:
    """Find the label CSV of a raw folder: Kaggle's name, or the only CSV there.

    Raises:
        LabelError: If the folder is missing, or holds no CSV or several.
    """
    if not data.is_dir():
        raise LabelError(
            f"{data} is not a folder; expected the raw films. Draw a synthetic cohort with "
            f"`boneage phantom {data}`, or fetch RSNA's with `boneage download`."
        )
    kaggle = data / f"{KAGGLE_NAME}.csv"
    if kaggle.is_file():
        return kaggle
    tables = sorted(t for t in data.glob("*.csv") if not t.name.startswith("."))
    if len(tables) != 1:
        found = ", ".join(t.name for t in tables) or "none"
        raise LabelError(f"{data} should hold one label CSV; found: {found}. Pass --labels FILE.")
    return tables[0]


def find_images(data: Path, *, required: bool = True) -> dict[str, Path]:
    """Find the films of a raw folder: Kaggle's nested folder, once or twice, or the folder itself.

    Returns:
        Path by image id (the file's stem), from the first of those folders with any films.

    Raises:
        LabelError: If two files share an id, or there is no film though one is required.
    """
    for folder in (data / KAGGLE_NAME / KAGGLE_NAME, data / KAGGLE_NAME, data / "images", data):
        images: dict[str, Path] = {}
        for path in sorted(folder.glob("*")):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            if path.stem in images:
                raise LabelError(
                    f"{folder} holds two films with id {path.stem!r}: {images[path.stem].name} "
                    f"and {path.name}. Keep one."
                )
            images[path.stem] = path
        if images:
            return images
    if not required:
        return {}
    raise LabelError(f"{data} holds no films; expected {', '.join(IMAGE_SUFFIXES)} files.")


def match_images(labels: pd.DataFrame, images: Mapping[str, Path]) -> pd.DataFrame:
    """Add each row's film as `path`; rows without one are left out and counted in a warning.

    Raises:
        LabelError: If no row has a film.
    """
    has_film = labels["image_id"].isin(list(images))
    if not has_film.any():
        raise LabelError(
            f"none of the {len(labels)} labelled ids has a film (first ids: "
            f"{', '.join(labels['image_id'].head(3))}; first films: "
            f"{', '.join(list(images)[:3])}). Check that --data and --labels belong together."
        )
    if not has_film.all():
        logger.warning("left out %s", count_ids(labels.loc[~has_film, "image_id"], "a film"))
    samples = labels[has_film].reset_index(drop=True)
    samples["path"] = pd.Series([images[i] for i in samples["image_id"]], dtype=object)
    return samples


def data_sha256(samples: pd.DataFrame) -> str:
    """Fingerprint the labels in use: sha256 of the sorted lines `id,months,sex`."""
    rows = zip(samples["image_id"], samples["months"], samples["sex"], strict=True)
    lines = sorted(f"{image_id},{months:g},{sex}\n" for image_id, months, sex in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
