"""The difficult cases of an audit: which are shown, why, and their pictures."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from boneage.imaging.overlay import colour_image
from boneage.imaging.radiograph import Radiograph
from boneage.inference.prediction import Prediction

_WORST, _UNCERTAIN, _NEIGHBOURS = 8, 4, 2
_HEIGHT = 240
_QUALITY = 80

REASONS = {
    "difficult": "large error",
    "uncertain": "wide interval",
    "suspects": "potential label error",
}
"""Lists of a result, and why a case is in them."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of an image, a few kilobytes, so that those of all images fit in memory.

    Attributes:
        jpeg: Grey, 240 pixels high.
        saliency: As in `Prediction`.
    """

    jpeg: bytes
    saliency: npt.NDArray[np.float32] | None

    @classmethod
    def of(cls, radiograph: Radiograph, prediction: Prediction) -> "Thumbnail":
        """Reduce a decoded image, and keep the map of its prediction."""
        image = radiograph.to_image()
        image = image.resize((max(1, round(image.width * _HEIGHT / image.height)), _HEIGHT))
        return cls(_encode(image), prediction.saliency)

    def colour(self) -> bytes | None:
        """Give the same picture with the saliency map in colour, or None without a map."""
        if self.saliency is None:
            return None
        return _encode(colour_image(Image.open(io.BytesIO(self.jpeg)), self.saliency))


@dataclass(frozen=True)
class Shown:
    """An image on the page.

    Attributes:
        image_id: Its id.
        picture: JPEG as base64.
        overlay: The same with the saliency map in colour, or None.
        facts: Its row of the audited cases, for the caption.
    """

    image_id: str
    picture: str
    overlay: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A difficult case.

    Attributes:
        why: The reasons for which it is shown.
        record: Its image.
        neighbours: The images nearest to it in reference age, of its sex if that is known; each
            image is on the page once.
    """

    why: str
    record: Shown
    neighbours: Sequence[Shown]


def explain_cases(result: Mapping[str, Any]) -> dict[str, str]:
    """Say of each case in the lists of a result why it is there, as "large error, wide interval".

    Args:
        result: Of `audit`.

    Returns:
        By image id, in the order of the lists.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in REASONS.items():
        for row in result[name]:
            reasons.setdefault(row["image_id"], []).append(reason)
    return {image_id: ", ".join(found) for image_id, found in reasons.items()}


def make_gallery(
    table: pd.DataFrame, result: Mapping[str, Any], get_thumbnail: Callable[[str], Thumbnail]
) -> list[Case]:
    """Show the cases with the largest errors and the widest intervals, each beside its neighbours.

    Args:
        table: The audited cases.
        result: Of `audit`.
        get_thumbnail: Gives the thumbnail of an image id; called once for each image shown.
    """
    why = explain_cases(result)
    chosen = [row["image_id"] for row in result["difficult"][:_WORST]]
    chosen += [row["image_id"] for row in result["uncertain"][:_UNCERTAIN]]
    cases = table.set_index("image_id")
    neighbours = _choose_neighbours(cases, list(dict.fromkeys(chosen)))

    def show(image_id: str) -> Shown:
        thumbnail = get_thumbnail(image_id)
        overlay = thumbnail.colour()
        facts = {str(name): value for name, value in cases.loc[image_id].items()}
        return Shown(
            image_id,
            _to_text(thumbnail.jpeg),
            None if overlay is None else _to_text(overlay),
            facts,
        )

    return [Case(why[image_id], show(image_id), [show(other) for other in others])
            for image_id, others in neighbours.items()]  # fmt: skip


def _choose_neighbours(cases: pd.DataFrame, chosen: Sequence[str]) -> dict[str, list[str]]:
    """Give each chosen case the nearest in reference age that are not on the page already."""
    is_free = ~cases.index.isin(list(chosen))
    neighbours: dict[str, list[str]] = {}
    for image_id in chosen:
        case = cases.loc[image_id]
        is_alike = cases["sex"] == case["sex"] if case["sex"] in ("M", "F") else True
        others = cases[is_alike & is_free]
        apart = (others["reference_years"] - case["reference_years"]).abs()
        neighbours[image_id] = [
            str(other) for other in apart.sort_values(kind="stable").index[:_NEIGHBOURS]
        ]
        is_free &= ~cases.index.isin(neighbours[image_id])
    return neighbours


def _encode(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=_QUALITY)
    return data.getvalue()


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
