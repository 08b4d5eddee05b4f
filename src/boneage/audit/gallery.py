"""Images of an audit, looked at: how each was taken, and pictures of the difficult ones."""

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from tqdm import tqdm

from boneage.audit.saliency import find_hand
from boneage.config import Invert
from boneage.errors import ImageError
from boneage.imaging.overlay import colour_image
from boneage.imaging.radiograph import read_radiograph
from boneage.inference.batch import ImageRecord
from boneage.inference.predictor import Predictor

ACQUISITION = ("exposure", "contrast", "hand size", "tilt", "frame")
"""Traits of how an image was taken, each a group of the report."""

_THIRDS = {
    "exposure": ("1 of 3, darkest", "2 of 3", "3 of 3, brightest"),
    "contrast": ("1 of 3, flattest", "2 of 3", "3 of 3, hardest"),
    "hand size": ("1 of 3, smallest", "2 of 3", "3 of 3, largest"),
}
_TILTS = ((5.0, "0 to 5°"), (15.0, "5 to 15°"), (math.inf, "15 to 90°"))
_FLAT = 2.0 / 255.0
_FRAMED_ABOVE = 0.1
_WORST, _UNCERTAIN, _NEIGHBOURS = 8, 4, 2
_HEIGHT = 240
_QUALITY = 80


def describe_acquisition(
    records: Sequence[ImageRecord], workers: int | None = None, invert: Invert = "auto"
) -> pd.DataFrame:
    """Say of each image how it was taken.

    Exposure is the median grey of the hand, contrast the range of the image's grey values between
    percentiles 5 and 95, hand size the share of the image that the hand covers: thirds of these
    images. Tilt is the angle of the hand's long axis to the vertical. An image has a frame if rows
    and columns of one grey value take more than a tenth of it at its sides.

    Args:
        records: The images; unreadable ones are left out.
        workers: Threads; by default one a core.
        invert: How images with dark bones are treated.

    Returns:
        `image_id` and `ACQUISITION`, as text, a row an image.
    """

    def measure(record: ImageRecord) -> dict[str, Any] | None:
        try:
            pixels = read_radiograph(record.path, invert).pixels
        except ImageError:
            return None
        return {"image_id": record.image_id, **_measure_look(pixels)}

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        progress = tqdm(pool.map(measure, records), total=len(records), desc="look", unit="image")
        rows = [row for row in progress if row is not None]
    measured = pd.DataFrame(rows, columns=["image_id", *ACQUISITION])
    table = measured[["image_id"]].copy()
    for name, words in _THIRDS.items():
        values = measured[name].to_numpy(float)
        limits = np.quantile(values, [1 / 3, 2 / 3]) if rows else [0.0, 0.0]
        table[name] = np.array(words)[np.searchsorted(limits, values)]
    table["tilt"] = [next(word for limit, word in _TILTS if t < limit) for t in measured["tilt"]]
    is_framed = measured["frame"] > _FRAMED_ABOVE
    table["frame"] = np.where(is_framed, "with a frame", "without a frame")
    return table


def _measure_look(pixels: npt.NDArray[np.float32]) -> dict[str, float]:
    hand = find_hand(pixels, [])
    rows, columns = np.nonzero(hand)
    grid = Image.fromarray(pixels).resize(hand.shape[::-1], Image.Resampling.BOX)
    low, high = np.percentile(pixels, [5, 95])
    height, width = pixels.shape
    # The grid is square; the hand's axis is measured on the image as it is.
    spread = np.cov(np.stack([columns * width, rows * height])) if rows.size > 2 else np.eye(2)
    axis = np.linalg.eigh(spread)[1][:, 1]
    wide = [np.flatnonzero(np.ptp(pixels, axis=axis) > _FLAT) for axis in (0, 1)]
    inside = math.prod((w[-1] - w[0] + 1) if w.size else 0 for w in wide)
    return {
        "exposure": float(np.median(np.asarray(grid)[hand])) if hand.any() else 0.0,
        "contrast": float(high - low),
        "hand size": float(hand.mean()),
        "tilt": math.degrees(math.atan2(abs(axis[0]), abs(axis[1]))),
        "frame": 1.0 - inside / pixels.size,
    }


@dataclass(frozen=True)
class Shown:
    """An image on the page.

    Attributes:
        image_id: Its id.
        picture: JPEG as base64.
        overlay: The same with the age map, or None.
        facts: Sex, reference, prediction and more, for the caption.
    """

    image_id: str
    picture: str
    overlay: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A difficult case: why it is shown, its image, and the nearest in age, of its sex if known."""

    why: str
    record: Shown
    neighbours: Sequence[Shown]


def make_gallery(
    predictor: Predictor,
    records: Sequence[ImageRecord],
    table: pd.DataFrame,
    worst: Sequence[Mapping[str, Any]],
    uncertain: Sequence[Mapping[str, Any]],
) -> list[Case]:
    """Draw the first of the worst and of the most uncertain cases, each beside its neighbours.

    Args:
        predictor: For the heat maps.
        records: Every audited image.
        table: The audited cases.
        worst: Cases by size of error.
        uncertain: Cases by width of interval.
    """
    by_id = {record.image_id: record for record in records}
    cases = table.set_index("image_id")
    chosen = {row["image_id"]: "large error" for row in worst[:_WORST]}
    for row in uncertain[:_UNCERTAIN]:
        chosen.setdefault(row["image_id"], "wide interval")

    def show(image_id: str) -> Shown:
        facts = {str(name): value for name, value in cases.loc[image_id].items()}
        return _show(predictor, by_id[image_id], facts)

    gallery = []
    for image_id, why in tqdm(chosen.items(), desc="gallery", unit="case"):
        row = cases.loc[image_id]
        is_alike = cases["sex"] == row["sex"] if row["sex"] in ("M", "F") else True
        others = cases[is_alike & (cases.index != image_id)]
        apart = (others["reference_months"] - row["reference_months"]).abs()
        nearest = apart.sort_values(kind="stable").index[:_NEIGHBOURS]
        gallery.append(Case(why, show(image_id), [show(str(other)) for other in nearest]))
    return gallery


def _show(predictor: Predictor, record: ImageRecord, facts: Mapping[str, Any]) -> Shown:
    radiograph = predictor.read(record.path)
    image = radiograph.to_image()
    image = image.resize((max(1, round(image.width * _HEIGHT / image.height)), _HEIGHT))
    age_map = predictor.answer(radiograph, record.sex).age_map
    overlay = None if age_map is None else _encode(colour_image(image, age_map))
    return Shown(record.image_id, _encode(image), overlay, facts)


def _encode(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=_QUALITY)
    return base64.b64encode(data.getvalue()).decode("ascii")
