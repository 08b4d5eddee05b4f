"""Annotated boxes of a hand's joints -> the landmarks of each image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from boneage.errors import LabelError
from boneage.files import clean_id
from boneage.imaging.geometry import JOINTS, Points
from boneage.tables.columns import read_csv, to_numbers

_BOX = ("xmin", "ymin", "xmax", "ymax")
_WRIST = {"Wrist": "carpus", "Radius": "radius", "Ulna": "ulna"}
_DIGITS = {"MCP": (1, 2, 3, 4, 5), "PIP": (1, 2, 3, 4, 5), "DIP": (2, 3, 4, 5)}


@dataclass(frozen=True)
class AnnotatedHand:
    """The joints of the hand on one image.

    Attributes:
        width, height: Size in pixels of the image that was annotated; a copy of it may be smaller
            or squeezed, so that coordinates are scaled along each axis by itself.
        joints: (17, 2), x and y of `JOINTS`.
    """

    width: float
    height: float
    joints: Points

    def scaled_to(self, width: float, height: float) -> Points:
        """Give the joints on a copy of the image of another size: (17, 2)."""
        scaled: Points = self.joints * (width / self.width, height / self.height)
        return scaled


def read_landmarks(path: Path) -> dict[str, AnnotatedHand]:
    """Read joints from boxes around them, whose centres they are.

    Args:
        path: A CSV with `id, width, height, region, xmin, ymin, xmax, ymax`, where a region is
            MCP, PIP, DIP, Wrist, Radius or Ulna, in any order of fingers. Where an image has
            several readers (column `reader`), the first one counts.

    Returns:
        By image id; an image whose boxes are not 17 is left out, as one joint cannot be told.

    Raises:
        LabelError: If a column is missing.
    """
    raw = read_csv(path, "a CSV of annotated boxes")
    missing = [n for n in ("id", "width", "height", "region", *_BOX) if n not in raw.columns]
    if missing:
        raise LabelError(f"{path} has no column {missing[0]!r}; found: {', '.join(raw.columns)}.")
    table = pd.DataFrame({"id": raw["id"].map(clean_id), "region": raw["region"].str.strip()})
    for name in ("width", "height", *_BOX):
        table[name] = to_numbers(raw[name])
    if "reader" in raw:
        table = table[raw["reader"] == raw["reader"].groupby(table["id"]).transform("first")]
    table["x"], table["y"] = (
        (table[f"{axis}min"] + table[f"{axis}max"]) / 2 for axis in ("x", "y")
    )
    hands = {}
    for image_id, rows in table.groupby("id", sort=False):
        centres = {
            str(region): boxes[["x", "y"]].to_numpy(dtype=np.float64)
            for region, boxes in rows.groupby("region")
        }
        joints = _name_joints(centres)
        if joints is not None:
            width, height = rows[["width", "height"]].iloc[0]
            hands[str(image_id)] = AnnotatedHand(float(width), float(height), joints)
    return hands


def _name_joints(centres: dict[str, npt.NDArray[np.float64]]) -> Points | None:
    """Tell the fingers apart by their angle about the carpus, from the radius's side on."""
    wanted = {region: len(digits) for region, digits in _DIGITS.items()} | dict.fromkeys(_WRIST, 1)
    if {region: len(boxes) for region, boxes in centres.items()} != wanted:
        return None
    named = {name: centres[region][0] for region, name in _WRIST.items()}
    up = centres["MCP"].mean(axis=0) - named["carpus"]
    side = np.array([-up[1], up[0]])  # a quarter turn, to the side on which the radius lies
    side *= np.sign(side @ (named["radius"] - named["ulna"]))
    for region, digits in _DIGITS.items():
        away = centres[region] - named["carpus"]
        from_thumb = np.argsort(-np.arctan2(away @ side, away @ up))
        for digit, place in zip(digits, from_thumb, strict=True):
            named[f"{region}{digit}"] = centres[region][place]
    return np.array([named[name] for name in JOINTS])
