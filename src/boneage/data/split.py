"""A checked table -> its training, validation and test parts, by a seed or from a file."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from boneage.data.labels import natural_order
from boneage.errors import LabelError
from boneage.stages import STAGES
from boneage.tables.columns import count_ids, read_csv, read_ids

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

FEW_OF_STAGE = 10
"""A part with fewer images of a stage is reported as small."""


def split_samples(samples: pd.DataFrame, seed: int = 0) -> pd.Series:
    """Assign each row to train, val or test: 70/15/15, stratified by stage.

    As in the seed report, scikit-learn's `train_test_split` is applied twice: 70% and 30%, then
    the 30% in halves. Rows are taken in the order of their ids, so the order of the CSV does not
    matter. If `samples` has a `group` column, groups are split instead of rows, each under its
    most frequent stage. A stage with a single image or group cannot be in two parts; it is
    stratified together with the nearest stage, with a warning.

    Returns:
        "train", "val" or "test" for each row.

    Raises:
        LabelError: If there are too few rows or groups to fill three parts.
    """
    unit_name = "group" if "group" in samples else "image_id"
    stage_by_unit = samples.groupby(unit_name)["stage"].agg(lambda stages: stages.mode().iloc[0])
    units = sorted(stage_by_unit.index, key=natural_order)
    stages = stage_by_unit.loc[units].to_numpy()
    try:
        train, rest = _cut(np.array(units), stages, 0.30, seed)
        position = {unit: i for i, unit in enumerate(units)}
        val, test = _cut(rest, stages[[position[u] for u in rest]], 0.50, seed)
    except ValueError as error:
        raise LabelError(
            f"{len(units)} images or groups are too few to split 70/15/15 by stage ({error}). "
            "Add images, or pass a split of your own as --split."
        ) from None
    part = dict.fromkeys(train, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    return samples[unit_name].map(part)


def describe_small_parts(samples: pd.DataFrame) -> list[str]:
    """Say which parts of a split hold too few images of a stage; nothing where they hold enough.

    Args:
        samples: With `split` and `stage`.
    """
    found = []
    for part in SPLITS:
        stages = samples.loc[samples["split"] == part, "stage"]
        few = [f"{(stages == code).sum()} {name}" for code, name in enumerate(STAGES)
               if (stages == code).sum() < FEW_OF_STAGE]  # fmt: skip
        if few:
            found.append(f"the {part} part has {', '.join(few)}: too few to learn or judge by")
    return found


def read_part(output: Path, part: str, split_fingerprint: str) -> set[str]:
    """Read which images are in one part of a finished run's split.

    Args:
        output: Folder of the run, with its `split.csv`.
        part: "val" or "test".
        split_fingerprint: Of the split that the model was trained with, as its file says.

    Returns:
        Their ids.

    Raises:
        LabelError: If there is no such split, or the model was trained with another.
    """
    path = output / "split.csv"
    raw = read_csv(path, "the split of a training run; pass its folder as --output")
    _require_columns(path, raw)
    if split_sha256(raw["image_id"], raw["split"]) != split_fingerprint:
        raise LabelError(
            f"{path} is not the split that the model was trained with. Pass the folder of its run "
            "as --output, and its export as --model."
        )
    return set(raw.loc[raw["split"] == part, "image_id"])


def read_split(path: Path, samples: pd.DataFrame) -> pd.Series:
    """Read the part of each row from a CSV with the columns `image_id` and `split`.

    Rows of other images are ignored and counted, so the split of a larger set can be used for a
    part of it.

    Returns:
        "train", "val" or "test" for each row of `samples`.

    Raises:
        LabelError: If a column is missing or doubled, an id comes twice, a part has another name
            or no image, an image has no part, or a group is in several.
    """
    raw = read_csv(path, "a CSV of image_id and split")
    _require_columns(path, raw)
    raw["image_id"] = read_ids(path, raw["image_id"])
    is_here = raw["image_id"].isin(list(samples["image_id"]))
    if not is_here.all():
        others = raw.loc[~is_here, "image_id"]
        logger.info("%s: %s", path, count_ids(others, "a labelled image here"))
    raw = raw[is_here]
    parts = raw["split"].str.strip()
    for line in parts.index[~parts.isin(SPLITS)]:
        raise LabelError(
            f"{path} line {line}: split is {raw.at[line, 'split']!r}; expected "
            f"{', '.join(SPLITS)}. Fix or remove the row."
        )
    found = samples["image_id"].map(dict(zip(raw["image_id"], parts, strict=True)))
    if found.isna().any():
        lacking = count_ids(samples.loc[found.isna(), "image_id"], "a part")
        raise LabelError(f"{path}: {lacking}. Add them, or leave the images out of the labels.")
    empty = [part for part in SPLITS if part not in set(found)]
    if empty:
        raise LabelError(f"{path} puts none of these images in {' or '.join(empty)}. Add some.")
    if "group" in samples:
        for group, of_group in found.groupby(samples["group"]):
            used = sorted(set(of_group))
            if len(used) > 1:
                raise LabelError(
                    f"{path} puts the images of {group} in {' and '.join(used)}. Keep a group in "
                    "one part."
                )
    return found


def _require_columns(path: Path, raw: pd.DataFrame) -> None:
    for name in ("image_id", "split"):
        if list(raw.columns).count(name) != 1:
            raise LabelError(
                f"{path} needs one column {name}; found: {', '.join(raw.columns)}. It should have "
                f"image_id and split ({', '.join(SPLITS)})."
            )


def _cut(
    units: np.ndarray, stages: np.ndarray, second_proportion: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    strata = stages.copy()
    for stage in np.unique(stages):
        others = np.setdiff1d(strata, stage)
        if (strata == stage).sum() == 1 and len(others):
            nearest = min(others, key=lambda other: abs(other - stage))
            logger.warning(
                "a single %s image or group cannot be in two parts of the split; stratified as %s",
                STAGES[stage],
                STAGES[nearest],
            )
            strata[strata == stage] = nearest
    first, second = train_test_split(
        units,
        test_size=second_proportion,
        random_state=seed,
        stratify=strata,
    )
    return first, second


def split_sha256(image_ids: pd.Series, parts: pd.Series) -> str:
    """Compute the fingerprint of a split: sha256 of its sorted lines `id,part`."""
    lines = sorted(f"{image_id},{part}\n" for image_id, part in zip(image_ids, parts, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
