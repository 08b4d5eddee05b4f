"""Acquisition characteristics: exposure, contrast, hand size, tilt and frame of each image."""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from boneage.audit.saliency import find_hand

ACQUISITION = ("exposure", "contrast", "hand size", "tilt", "frame")
"""The characteristics, each of which forms groups of the report."""

_THIRDS = {
    "exposure": ("1 of 3, darkest", "2 of 3", "3 of 3, brightest"),
    "contrast": ("1 of 3, flattest", "2 of 3", "3 of 3, hardest"),
    "hand size": ("1 of 3, smallest", "2 of 3", "3 of 3, largest"),
}
_TILTS = ((5.0, "0 to 5°"), (15.0, "5 to 15°"), (math.inf, "15 to 90°"))
_FLAT = 2.0 / 255.0
_FRAMED_ABOVE = 0.1


def measure_acquisition(pixels: npt.NDArray[np.float32]) -> dict[str, float]:
    """Measure the acquisition characteristics of one image.

    Args:
        pixels: (H, W), in [0, 1] with bone bright.

    Returns:
        By `ACQUISITION`: the median grey value of the hand; the range of the image's grey values
        between percentiles 5 and 95; the proportion of the image that the hand covers; the angle
        in degrees of the hand's long axis to the vertical; and the proportion of the image that
        rows and columns of one grey value take at its sides.
    """
    hand = find_hand(pixels, [])
    rows, columns = np.nonzero(hand)
    grid = Image.fromarray(pixels).resize(hand.shape[::-1], Image.Resampling.BOX)
    low, high = np.percentile(pixels, [5, 95])
    height, width = pixels.shape
    # The grid is square, the image need not be: the axis is that of the hand on the image.
    spread = np.cov(np.stack([columns * width, rows * height])) if rows.size > 2 else np.eye(2)
    axis = np.linalg.eigh(spread)[1][:, 1]
    varied = [np.flatnonzero(np.ptp(pixels, axis=axis) > _FLAT) for axis in (0, 1)]
    inside = math.prod((v[-1] - v[0] + 1) if v.size else 0 for v in varied)
    return {
        "exposure": float(np.median(np.asarray(grid)[hand])) if hand.any() else 0.0,
        "contrast": float(high - low),
        "hand size": float(hand.mean()),
        "tilt": math.degrees(math.atan2(abs(axis[0]), abs(axis[1]))),
        "frame": 1.0 - inside / pixels.size,
    }


def group_acquisition(measures: pd.DataFrame) -> pd.DataFrame:
    """Put images into groups by their acquisition characteristics.

    Exposure, contrast and hand size make thirds of these images. An image has a frame if that
    takes more than a tenth of it.

    Args:
        measures: `image_id`, and the values of `measure_acquisition`; a row an image.

    Returns:
        The same columns and rows, with the names of the groups.
    """
    groups = measures[["image_id"]].copy()
    for name, words in _THIRDS.items():
        values = measures[name].to_numpy(float)
        limits = np.quantile(values, [1 / 3, 2 / 3]) if values.size else [0.0, 0.0]
        groups[name] = np.array(words)[np.searchsorted(limits, values)]
    groups["tilt"] = [next(word for limit, word in _TILTS if t < limit) for t in measures["tilt"]]
    is_framed = measures["frame"] > _FRAMED_ABOVE
    groups["frame"] = np.where(is_framed, "with a frame", "without a frame")
    return groups
