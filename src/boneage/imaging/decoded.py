"""What every reader of images gives: grey values on their own scale, and what to know of them."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from boneage.errors import ImageError
from boneage.imaging.header import Header

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma. Source: ITU-R BT.601, as Pillow uses them."""

MOST_PIXELS = 50_000_000
"""Most pixels that are decoded: twice the largest X-ray detectors, and below 1 GB of memory."""

Mask = npt.NDArray[np.bool_]


class Note(NamedTuple):
    """What was left out or understood in a way of its own when an image was read.

    Attributes:
        code: A code of `boneage.inference.quality.ReasonCode`, as text.
        message: What it says, for people.
    """

    code: str
    message: str


@dataclass(frozen=True)
class DecodedPixels:
    """What a file holds, before its scale is brought to [0, 1].

    Attributes:
        grey: Numbers of any type (H, W), after modality and VOI LUT.
        bits: 8 if the values are 0 to 255 as they stand, 16 or more if their range is unknown.
        is_inverted: Whether low values are bright (MONOCHROME1).
        header: What the file states beside its pixels; empty unless it is DICOM.
        left_out: Where pixels are none of the image, such as padding; they are shown black and do
            not count for the grey range. None if there are none.
        notes: What was left out or understood in a way of its own.
    """

    grey: npt.NDArray[Any]
    bits: int
    is_inverted: bool = False
    header: Header = field(default_factory=Header)
    left_out: Mask | None = None
    notes: tuple[Note, ...] = ()


def check_size(height: int, width: int, name: str) -> None:
    """Refuse an image that declares more pixels than are decoded, before memory is taken for it.

    Raises:
        ImageError: If it is empty or too large.
    """
    if height <= 0 or width <= 0:
        raise ImageError(f"{name} declares {height}×{width} pixels; expected 1 or more a side.")
    if height * width > MOST_PIXELS:
        raise ImageError(
            f"{name} declares {height}×{width} pixels; expected {MOST_PIXELS:,} or fewer. Reduce "
            "it, or check that the file is whole."
        )


def join_masks(*masks: Mask | None) -> Mask | None:
    """Give where any of the masks holds; None where there is none."""
    joined: Mask | None = None
    for mask in masks:
        if mask is not None:
            joined = mask if joined is None else joined | mask
    return joined
