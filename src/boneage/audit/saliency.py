"""Saliency maps against annotated regions: how much of a map lies in them, beside chance."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from boneage.errors import BoneAgeError, LabelError
from boneage.evaluation.bootstrap import mean_estimate
from boneage.evaluation.prediction_table import name_age_band
from boneage.evaluation.statistics import wilcoxon_p_value
from boneage.files import clean_id
from boneage.imaging.discovery import match_ids
from boneage.imaging.radiograph import Radiograph
from boneage.inference.batch import ImageRecord, map_images, predict_record
from boneage.inference.prediction import Prediction
from boneage.inference.predictor import Predictor
from boneage.tables.columns import read_csv, to_numbers

Array = npt.NDArray[np.float32]

GRID = 96
"""Side of the grid on which maps and regions are laid over each other."""

SHIFTS = 100
"""Random placements of the regions that each image is compared with."""

ALL = "all regions"
RIGHT_MONTHS = 12.0
"""Largest error of a prediction that counts as right here."""

_BOX = ("xmin", "ymin", "xmax", "ymax")
_PLATE = "plate:"


@dataclass(frozen=True)
class Region:
    """A part of an image.

    Attributes:
        name: What it is, such as a bone's name; several regions of an image may have one name.
        mask: (GRID, GRID), the proportion of each cell that the region covers.
    """

    name: str
    mask: Array


def read_regions(path: Path) -> dict[str, list[Region]]:
    """Read the annotated regions of images.

    Args:
        path: A CSV with `id, width, height, region, xmin, ymin, xmax, ymax` in pixels of an image
            that is `width` by `height`. If there is a column `reader`, the first reader of each
            image counts. Or the folder of masks that `boneage phantom --masks` writes, of which
            the open growth plates are taken.

    Returns:
        By image id.

    Raises:
        LabelError: Naming the line and the value, if a column is missing or there twice, an id
            is empty, or a box does not lie in its image.
    """
    if path.is_dir():
        return _read_masks(path)
    raw = read_csv(path, "a CSV of regions, or a folder of masks")
    header = list(raw.columns)
    for name in ("id", "width", "height", "region", *_BOX):
        if name not in header:
            raise LabelError(f"{path} has no column {name!r}; found: {', '.join(header)}.")
    for name in header:
        if name and header.count(name) > 1:
            raise LabelError(f"{path} has the column {name!r} twice. Keep one of them.")
    table = pd.DataFrame({"id": raw["id"].map(clean_id), "region": raw["region"]})
    for line in table.index[table["id"] == ""]:
        raise LabelError(f"{path} line {line}: the id is empty; expected a file's stem.")
    for name in ("width", "height", *_BOX):
        table[name] = to_numbers(raw[name])
    width, height = (table[side].where(table[side] < np.inf) for side in ("width", "height"))
    is_box = (
        (table["xmin"] >= 0) & (table["xmin"] < table["xmax"]) & (table["xmax"] <= width)
        & (table["ymin"] >= 0) & (table["ymin"] < table["ymax"]) & (table["ymax"] <= height)
    )  # fmt: skip
    for line in table.index[~is_box]:
        row = raw.loc[line].to_dict()
        box = ", ".join(row[end] for end in _BOX)
        raise LabelError(
            f"{path} line {line}: the box {box} does not lie in an image of "
            f"{row['width']}×{row['height']} pixels. Fix or remove the row."
        )
    if "reader" in raw:
        readers = raw["reader"].str.strip()
        table = table[readers == readers.groupby(table["id"]).transform("first")]
    regions: dict[str, list[Region]] = {}
    for row in table.to_dict("records"):
        columns = _cover(row["xmin"] / row["width"], row["xmax"] / row["width"])
        rows = _cover(row["ymin"] / row["height"], row["ymax"] / row["height"])
        region = Region(str(row["region"]).strip(), np.outer(rows, columns).astype(np.float32))
        regions.setdefault(str(row["id"]), []).append(region)
    return regions


def _cover(low: npt.ArrayLike, high: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Proportion of each of the grid's cells along one side that lies between two positions.

    Positions (n,) in [0, 1] give (n, GRID).
    """
    edges = np.arange(GRID + 1) / GRID
    ends = (np.asarray(end, dtype=np.float64)[..., None] for end in (low, high))
    return GRID * np.diff(np.clip(edges, *ends), axis=-1)


def _read_masks(folder: Path) -> dict[str, list[Region]]:
    regions = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as masks:
                regions[path.stem] = [
                    Region(name.removeprefix(_PLATE).rstrip("0123456789"), _to_grid(masks[name]))
                    for name in masks.files if name.startswith(_PLATE)
                ]  # fmt: skip
        except (ValueError, EOFError, TypeError, BadZipFile):
            raise LabelError(
                f"{path} holds no masks; expected a file of `boneage phantom --masks`."
            ) from None
    if not regions:
        raise LabelError(f"{folder} holds no masks; expected those of `boneage phantom --masks`.")
    return regions


def _to_grid(pixels: npt.NDArray[Any]) -> Array:
    """Reduce (H, W) to the grid by the mean over each cell, with pixels counted in part."""
    rows, columns = (_cover(np.arange(n) / n, np.arange(1, n + 1) / n) for n in pixels.shape)
    return (rows.T @ pixels.astype(np.float64) @ columns).astype(np.float32)


def find_hand(pixels: Array, regions: Sequence[Region]) -> npt.NDArray[np.bool_]:
    """Outline the hand, (GRID, GRID): the largest bright part of an image, and all its regions.

    Source: the threshold between bright and dark is that of Otsu, IEEE Trans. SMC 1979.
    """
    from scipy import ndimage

    grey = ndimage.gaussian_filter(_to_grid(pixels), 1.0)
    labels, n = ndimage.label(grey > _find_threshold(grey))
    hand = np.zeros((GRID, GRID), dtype=bool)
    if n:
        sizes = np.bincount(labels.ravel())[1:]
        hand = ndimage.binary_fill_holes(labels == 1 + sizes.argmax())
    for region in regions:
        hand |= region.mask > 0
    return hand


def _find_threshold(grey: Array) -> float:
    counts, edges = np.histogram(grey, bins=64)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = total / below - (total[-1] - total) / above
    return float(centres[np.nan_to_num(below * above * apart**2).argmax()])


def measure_map(
    saliency: npt.NDArray[np.floating],
    regions: Sequence[Region],
    hand: npt.NDArray[np.bool_],
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Measure how much of a map lies in regions, and in the same regions placed at random.

    Args:
        saliency: (h, w); negative values count as zero.
        regions: Of this image.
        hand: (GRID, GRID); each region is moved so that its middle lies in it.
        seed: Of the random placements.

    Returns:
        By region, and for all together: `area`, the proportion of the image that they cover;
        `energy`, the proportion of the map that lies in them; `hit`, 1 if the map's peak does (the
        pointing game; Zhang et al., IJCV 2018); `energy_shifted` and `hit_shifted`, the same on
        average over `SHIFTS` random placements.
    """
    evidence = Image.fromarray(saliency.astype(np.float32).clip(min=0.0))
    heat = np.asarray(evidence.resize((GRID, GRID), Image.Resampling.BILINEAR)).clip(min=0.0)
    heat = (heat / max(float(heat.sum()), 1e-12)).astype(np.float32)
    rng = np.random.default_rng(seed)
    places = np.argwhere(hand)
    names = list(dict.fromkeys(region.name for region in regions))
    by_name = {name: [r.mask for r in regions if r.name == name] for name in names}
    result = {}
    for name, masks in {ALL: [region.mask for region in regions], **by_name}.items():
        union = np.max(masks, axis=0)
        energy, hit = _measure(heat, union)
        shifted = [_measure(heat, _move(masks, places, rng)) for _ in range(SHIFTS)]
        energy_shifted, hit_shifted = np.mean(shifted, axis=0)
        result[name] = {
            "area": float(union.mean()),
            "energy": energy,
            "energy_shifted": float(energy_shifted),
            "hit": hit,
            "hit_shifted": float(hit_shifted),
        }
    return result


def _measure(heat: Array, mask: Array) -> tuple[float, float]:
    """Give the proportion of the map in the mask, and whether its peak lies there."""
    peak = np.unravel_index(heat.argmax(), heat.shape)
    return float((heat * mask).sum()), float(heat[peak] > 0 and mask[peak] > 0)


def _move(masks: Sequence[Array], places: npt.NDArray[np.intp], rng: np.random.Generator) -> Array:
    """Move each mask so that its middle lies at a random place; what leaves the image is lost."""
    result = np.zeros((GRID, GRID), dtype=np.float32)
    for mask in masks:
        rows, columns = np.nonzero(mask)
        patch = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        top, left = places[rng.integers(len(places))] - np.array(patch.shape) // 2
        into = result[max(top, 0) : top + patch.shape[0], max(left, 0) : left + patch.shape[1]]
        of = patch[max(-top, 0) :, max(-left, 0) :][: into.shape[0], : into.shape[1]]
        np.maximum(into, of, out=into)
    return result


def match_regions(
    predictor: Predictor,
    records: Sequence[ImageRecord],
    regions: Mapping[str, Sequence[Region]],
) -> dict[Path, Sequence[Region]]:
    """Find the regions of each image, by path; images without regions are left out.

    Raises:
        BoneAgeError: If the model gives no saliency map, or no image has a region.
    """
    if "age_map" not in predictor.contract.outputs:
        raise BoneAgeError(
            "this model gives no saliency map; there is nothing to measure. Leave --regions out."
        )
    found = match_ids([record.path for record in records], regions)
    if not found:
        raise BoneAgeError(
            f"none of the {len(records)} images has a region (first ids of regions: "
            f"{', '.join(list(regions)[:3])}; first images: "
            f"{', '.join(r.image_id for r in records[:3])}). Check that they belong together."
        )
    return {path: regions[image_id] for path, image_id in found.items()}


def measure_regions(
    record: ImageRecord, radiograph: Radiograph, prediction: Prediction, regions: Sequence[Region]
) -> list[dict[str, Any]]:
    """Measure one image's saliency map against its regions.

    Returns:
        A row a region, with the columns of `measure_images`; none without a prediction, a map, or
        a region that covers anything.
    """
    regions = [region for region in regions if region.mask.any()]
    saliency, months = prediction.saliency, prediction.predicted_months
    if not regions or saliency is None or months is None:
        return []
    years = np.nan if record.reference_years is None else record.reference_years
    known = {
        "image_id": record.image_id,
        "rows": saliency.shape[0],
        "columns": saliency.shape[1],
        "reference_years": years,
        "error_months": months - 12.0 * years,
    }
    # Each image has a seed of its own: with the same placements on every image, their chance
    # deviation would not average out.
    seed = zlib.crc32(record.image_id.encode("utf-8", "surrogatepass"))
    measured = measure_map(saliency, regions, find_hand(radiograph.pixels, regions), seed)
    return [{"region": name, **values, **known} for name, values in measured.items()]


def join_measures(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Join the rows of `measure_regions`.

    Raises:
        BoneAgeError: If there are none.
    """
    if not rows:
        raise BoneAgeError(
            "none of the images with regions has both a prediction and a region that covers "
            "anything; there is nothing to measure."
        )
    return pd.DataFrame(rows)


def measure_images(
    predictor: Predictor,
    records: Sequence[ImageRecord],
    regions: Mapping[str, Sequence[Region]],
    workers: int | None = None,
) -> pd.DataFrame:
    """Predict the images that have regions, and measure their saliency maps.

    Args:
        predictor: Best with `threads=1`.
        records: The images; those without regions and unreadable ones are left out.
        regions: By image id.
        workers: Threads; by default one a core.

    Returns:
        A row an image and region: `image_id, region, rows, columns` (the map's cells), those of
        `measure_map`, and `reference_years, error_months`, NaN where unknown.

    Raises:
        BoneAgeError: If the model gives no map, no image has a region, or none of those that have
            could be predicted.
    """
    of_image = match_regions(predictor, records, regions)

    def measure(record: ImageRecord) -> list[dict[str, Any]]:
        radiograph, prediction = predict_record(predictor, record)
        if radiograph is None:
            return []
        return measure_regions(record, radiograph, prediction, of_image[record.path])

    chosen = [record for record in records if record.path in of_image]
    found = map_images(measure, chosen, workers, progress="saliency")
    return join_measures([row for rows in found for row in rows])


def summarise_regions(table: pd.DataFrame, *, resamples: int) -> dict[str, Any]:
    """Compare the regions with the same regions at random places in the hand.

    Args:
        table: Of `join_measures`.
        resamples: Bootstrap resamples over images; 0 leaves intervals out.

    Returns:
        `n` images; `cells`, the rows and columns of the map; and `groups`: by region, and all
        regions by age band and by size of the error. Each group has `by, group, n, area`; `energy,
        energy_shifted, energy_difference, hit, hit_shifted, hit_difference` with intervals; and
        `wilcoxon_p` of the energy.
    """
    whole = table[table["region"] == ALL]
    bands = whole["reference_years"].map(name_age_band, na_action="ignore")
    is_right = np.where(whole["error_months"].abs() <= RIGHT_MONTHS, "within", "beyond")
    right = pd.Series([f"{word} {RIGHT_MONTHS:g} months" for word in is_right], index=whole.index)
    parts = [
        *(("region", str(name), rows) for name, rows in table.groupby("region", sort=False)),
        *(("age", str(name), rows) for name, rows in sorted(
            whole.groupby(bands), key=lambda part: part[1]["reference_years"].min())),
        *(("error", str(name), rows)
          for name, rows in whole.groupby(right.where(whole["error_months"].notna()))),
    ]  # fmt: skip
    return {
        "n": len(whole),
        "cells": [int(table["rows"].iloc[0]), int(table["columns"].iloc[0])],
        "groups": [
            {"by": by, "group": name, **_summarise(rows, resamples)} for by, name, rows in parts
        ],
    }


def _summarise(rows: pd.DataFrame, resamples: int) -> dict[str, Any]:
    figures = {
        name: mean_estimate(rows[name].to_numpy(float), resamples)
        for name in ("energy", "energy_shifted", "hit", "hit_shifted")
    }
    for kind in ("energy", "hit"):
        apart = (rows[kind] - rows[f"{kind}_shifted"]).to_numpy(float)
        figures[f"{kind}_difference"] = mean_estimate(apart, resamples)
    return {
        "n": len(rows),
        "area": float(rows["area"].mean()),
        **figures,
        "wilcoxon_p": wilcoxon_p_value((rows["energy"] - rows["energy_shifted"]).to_numpy(float)),
    }
