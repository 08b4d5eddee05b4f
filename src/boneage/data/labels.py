"""Label CSVs with any of the RSNA headers -> one checked table, its rows matched with images."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from boneage.errors import BoneAgeError, LabelError
from boneage.files import IMAGE_SUFFIXES
from boneage.imaging.discovery import discover, match_ids, name_images
from boneage.stages import stage_from_years
from boneage.tables.columns import (
    ACCEPTED_COLUMNS,
    count_ids,
    find_columns,
    read_ages,
    read_csv,
    read_ids,
    read_sexes,
)

logger = logging.getLogger(__name__)

MONTHS_MAX = 240
"""Largest bone age accepted, in months; the Greulich-Pyle atlas ends at 228."""

KAGGLE_NAME = "boneage-training-dataset"


def read_labels(
    path: Path,
    *,
    unknown_sex: Literal["error", "drop", "keep"] = "error",
    require_age: bool = True,
    group_column: str | None = None,
) -> pd.DataFrame:
    """Read one label table; its columns are found by their names.

    Every header in use for the RSNA 2017 data is accepted: `id,boneage,male` ·
    `id,male,boneage` · `Image ID,male,Bone Age (months)` · `Case ID,Sex[,Ground truth bone
    age (months)]` · `id,bone_age,sex` · `id,bone_age,male` with 0/1.

    Args:
        path: CSV with a header line.
        unknown_sex: What to do with a row whose sex is empty, U or O.
        require_age: Whether a table without a bone-age column, or a row without an age, is an
            error.
        group_column: Further column to read, as `group`.

    Returns:
        One row an image, sorted by id: `image_id` (str, the file's stem), `sex` ("M", "F" or
        None) and `sex_int` (1 male, 0 female). If the table has ages, also `months` and
        `age_years` (months / 12); if each row must have one, also `stage` (0, 1, 2).

    Raises:
        LabelError: Naming the line and the value, if a column is missing or doubled, an id
            comes twice, an age is not a number in (0, 240], or a sex cannot be read.
    """
    raw = read_csv(path)
    columns = _find_columns(path, list(raw.columns), require_age)
    if raw.empty:
        raise LabelError(
            f"{path} has a header but no rows; expected one row per image. Add rows, or pass "
            "another file as --labels."
        )
    table = pd.DataFrame({"image_id": read_ids(path, raw[columns["image_id"]])})
    if "months" in columns or "years" in columns:
        table["months"] = read_ages(
            path,
            raw,
            months=columns.get("months"),
            years=columns.get("years"),
            at_most=MONTHS_MAX,
            is_required=require_age,
        )
        table["age_years"] = table["months"] / 12.0
        if require_age:
            table["stage"] = stage_from_years(table["age_years"])
    table["sex"] = read_sexes(path, raw, columns, refuse_unknown=unknown_sex == "error")
    table["sex_int"] = table["sex"].map({"M": 1, "F": 0}).astype("Int64")
    if group_column is not None:
        if group_column not in raw.columns:
            found = ", ".join(raw.columns)
            raise LabelError(
                f"{path} has no column {group_column!r} to group by; found: {found}. Pass one of "
                "those as --group-column."
            )
        if list(raw.columns).count(group_column) > 1:
            raise LabelError(f"{path} has the column {group_column!r} twice. Keep one of them.")
        table["group"] = raw[group_column].str.strip()
        for line in table.index[table["group"] == ""]:
            raise LabelError(
                f"{path} line {line}: {group_column} is empty; expected a group id. Add one."
            )
    if unknown_sex == "drop":
        unknown = table["sex"].isna()
        if unknown.any():
            logger.warning(
                "%s: left out %s", path, count_ids(table.loc[unknown, "image_id"], "sex")
            )
        table = table[~unknown]
        if table.empty:
            raise LabelError(
                f"{path} has no row with a known sex; expected M or F. Correct the sexes."
            )
    order = sorted(range(len(table)), key=[natural_order(i) for i in table["image_id"]].__getitem__)
    return table.iloc[order].reset_index(drop=True)


def read_known(path: Path) -> dict[str, tuple[str | None, float | None]]:
    """Read sex ("M", "F" or None) and age in years (None if unknown) by image id."""
    labels = read_labels(path, unknown_sex="keep", require_age=False)
    ages = labels["age_years"] if "age_years" in labels else [None] * len(labels)
    return {
        image_id: (sex, None if years is None or math.isnan(years) else float(years))
        for image_id, sex, years in zip(labels["image_id"], labels["sex"], ages, strict=True)
    }


def read_further(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read further columns of a label table as text, with `image_id`; missing ones are skipped."""
    raw = read_csv(path)
    ids = read_ids(path, raw[_find_columns(path, list(raw.columns), False)["image_id"]])
    return raw[[name for name in dict.fromkeys(columns) if name in raw]].assign(image_id=ids)


def natural_order(image_id: str) -> tuple[int, int, str]:
    """Give the key to sort ids by: numbers by their value, then other names."""
    return (0, int(image_id), image_id) if image_id.isdecimal() else (1, 0, image_id)


def _find_columns(path: Path, header: list[str], require_age: bool) -> dict[str, str]:
    """Map our column names to the table's."""
    found = find_columns(path, header)
    missing = [] if "image_id" in found else ["image_id"]
    if require_age and not {"months", "years"} & set(found):
        missing.append("months")
    if not {"sex", "male"} & set(found):
        missing.append("sex")
    if missing:
        raise LabelError(
            f"{path} lacks a column for {' and '.join(missing)}; found: "
            f"{', '.join(header)}; accepted: {ACCEPTED_COLUMNS}."
        )
    return found


def find_labels(data: Path) -> Path:
    """Find the label CSV of a raw folder: Kaggle's name, or the only CSV there.

    Raises:
        LabelError: If the folder is missing, or holds no CSV or several.
    """
    if not data.is_dir():
        raise LabelError(
            f"{data} is not a folder; expected the raw images. Make a synthetic cohort with "
            f"`boneage phantom {data}`, or download RSNA's images with `boneage download`."
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
    """Find the images of a raw folder: in Kaggle's nested folders, or in the folder itself.

    If none of these holds an image, all folders below are searched, such as one per patient.

    Returns:
        Path by image id: the file's stem, with folders before it where stems alone are not unique.

    Raises:
        LabelError: If two files share an id, or there is no image though one is required.
    """
    for folder in (data / KAGGLE_NAME / KAGGLE_NAME, data / KAGGLE_NAME, data / "images", data):
        images: dict[str, Path] = {}
        for path in sorted(folder.glob("*")):
            if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
                continue
            if path.stem in images:
                raise LabelError(
                    f"{folder} holds two images with id {path.stem!r}: {images[path.stem].name} "
                    f"and {path.name}. Keep one."
                )
            images[path.stem] = path
        if images:
            return images
    try:
        below = discover([data]).images if data.is_dir() else []
    except BoneAgeError:
        below = []
    if below or not required:
        return {image_id: path for path, image_id in name_images(below).items()}
    raise LabelError(
        f"{data} holds no images; expected {', '.join(IMAGE_SUFFIXES)} files. Pass the folder of "
        "the images as --data."
    )


def pair_images(labels: pd.DataFrame, images: Mapping[str, Path]) -> dict[str, Path]:
    """Find the image of each labelled id; images without a row are counted in a warning.

    Raises:
        LabelError: If one id fits several images.
    """
    found = {i: path for path, i in match_ids(images.values(), labels["image_id"]).items()}
    if 0 < len(found) < len(images):
        logger.warning("left out %d images without a row", len(images) - len(found))
    return found


def match_images(labels: pd.DataFrame, images: Mapping[str, Path]) -> pd.DataFrame:
    """Add each row's image as `path`; rows and images without a counterpart are left out.

    Both are counted in warnings.

    Args:
        labels: Of `read_labels`.
        images: Of `find_images`.

    Raises:
        LabelError: If no row has an image, or one fits several.
    """
    return join_images(labels, pair_images(labels, images), list(images))


def join_images(
    labels: pd.DataFrame, found: Mapping[str, Path], names: Sequence[str] = ()
) -> pd.DataFrame:
    """Add the images found as `path`; rows without one are left out and counted in a warning.

    Args:
        labels: Of `read_labels`.
        found: Path by labelled id.
        names: Ids of all images, for the message if no row has one.

    Raises:
        LabelError: If no row has an image.
    """
    has_image = labels["image_id"].isin(list(found))
    if not has_image.any():
        raise LabelError(
            f"none of the {len(labels)} labelled ids has an image (first ids: "
            f"{', '.join(labels['image_id'].head(3))}; first images: "
            f"{', '.join(names[:3])}). Check that --data and --labels belong together."
        )
    if not has_image.all():
        logger.warning("left out %s", count_ids(labels.loc[~has_image, "image_id"], "an image"))
    samples = labels[has_image].reset_index(drop=True)
    samples["path"] = pd.Series([found[i] for i in samples["image_id"]], dtype=object)
    return samples


def data_sha256(samples: pd.DataFrame) -> str:
    """Compute the fingerprint of labels: sha256 of the sorted lines `id,months,sex`."""
    rows = zip(samples["image_id"], samples["months"], samples["sex"], strict=True)
    lines = sorted(f"{image_id},{months:g},{sex}\n" for image_id, months, sex in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
