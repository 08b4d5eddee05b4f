"""Display shutters of a DICOM image: what its sender covers, such as beyond the collimation."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from boneage.imaging.decoded import Mask, Note
from boneage.imaging.dicom_tags import read_number, read_numbers, read_words

LEAST_SHOWN = 0.05
"""Proportion of the image that shutters must leave; those that leave less are not believed."""


def find_shutters(dataset: Any, shape: tuple[int, int]) -> tuple[Mask | None, tuple[Note, ...]]:
    """Find what the shutters of a Dataset cover: all that is outside any of them.

    Args:
        dataset: A pydicom Dataset.
        shape: Height and width of its image.

    Returns:
        Where pixels are covered, None where none are; and a note of it.

    Source: PS3.3, section C.7.6.11, and C.7.6.15 for bitmaps.
    """
    covered = np.zeros(shape, np.bool_)
    names = []
    draw = {
        "RECTANGULAR": _show_rectangle,
        "CIRCULAR": _show_circle,
        "POLYGONAL": _show_polygon,
        "BITMAP": _show_bitmap,
    }
    for name in dict.fromkeys(read_words(dataset, "ShutterShape")):
        shown = draw[name](dataset, shape) if name in draw else None
        if shown is not None:
            covered |= ~shown
            names.append(name.lower())
    share = covered.mean()
    if not share:
        return None, ()
    kind = " and ".join(names)
    if share > 1.0 - LEAST_SHOWN:
        message = f"the file's {kind} shutter covers {share:.1%} of the image: not applied"
        return None, (Note("shutter_ignored", message),)
    return covered, (Note("padding_left_out", f"{share:.1%} of the image are covered by a {kind} "
                          "shutter: left out"),)  # fmt: skip


def _show_rectangle(dataset: Any, shape: tuple[int, int]) -> Mask | None:
    """Rows and columns between the edges, which count from 1."""
    left, right, upper, lower = (
        read_number(dataset, f"Shutter{edge}Edge")
        for edge in ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
    )
    if left is None or right is None or upper is None or lower is None:
        return None
    row, column = _count_from_1(shape)
    return (row >= upper) & (row <= lower) & (column >= left) & (column <= right)


def _show_circle(dataset: Any, shape: tuple[int, int]) -> Mask | None:
    centre = read_numbers(dataset, "CenterOfCircularShutter")
    radius = read_number(dataset, "RadiusOfCircularShutter")
    if len(centre) != 2 or radius is None:
        return None
    row, column = _count_from_1(shape)
    return (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius**2


def _show_polygon(dataset: Any, shape: tuple[int, int]) -> Mask | None:
    """What is within the vertices, which are pairs of row and column."""
    numbers = read_numbers(dataset, "VerticesOfThePolygonalShutter")
    if len(numbers) < 6 or len(numbers) % 2:
        return None
    corners = [(x - 1.0, y - 1.0) for y, x in zip(numbers[::2], numbers[1::2], strict=True)]
    image = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(image).polygon(corners, fill=1, outline=1)
    return np.asarray(image)


def _show_bitmap(dataset: Any, shape: tuple[int, int]) -> Mask | None:
    """What the overlay plane of the shutter leaves free."""
    group = read_number(dataset, "ShutterOverlayGroup")
    try:
        plane = dataset.overlay_array(int(group or 0))
    except Exception:  # pydicom raises whatever the overlay provokes
        return None
    return np.asarray(plane) == 0 if plane.shape == shape else None


def _count_from_1(
    shape: tuple[int, int],
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    return np.arange(1, shape[0] + 1)[:, None], np.arange(1, shape[1] + 1)[None, :]
