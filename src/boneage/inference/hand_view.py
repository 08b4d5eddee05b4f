"""What the network is shown of an image: the whole of it, or its hand in a view of its own."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from boneage.imaging.geometry import JOINTS, Affine, is_usual, undo_turns
from boneage.imaging.orientation import UPRIGHT, Orientation
from boneage.imaging.outline import draw_outline
from boneage.imaging.preprocess import Preprocessing, Reader
from boneage.imaging.radiograph import Radiograph, Source, read_radiograph
from boneage.inference.hand_finder import FoundHand, HandFinder

FAR = 1.25
"""Factor on the limits of the usual field beyond which a hand lies far from it."""

MOST_OBLONG = 2.0
"""Ratio of the spacings of rows and columns beyond which a header cannot be meant."""


@dataclass(frozen=True)
class ShownHand:
    """An image as the network is shown it, before it is reduced.

    Attributes:
        image: 8-bit grey with bone bright: a view of the hand, with its outline as the alpha
            channel, or the whole image, upright.
        orientation: The orientation that was found and corrected, or upright.
        to_view: From the image as it was given to the view; None if it is shown whole.
        aspect: Width of the image over its true width, as the view corrects it; 1 if the image
            has its true proportions, or they are not known well enough.
        is_unusual: Whether the hand does not lie where nine tenths of hands lie on RSNA images.
        is_far: Whether it lies far from there.
    """

    image: Image.Image
    orientation: Orientation
    to_view: Affine | None
    aspect: float = 1.0
    is_unusual: bool = False
    is_far: bool = False


def show_hand(
    radiograph: Radiograph, hand: FoundHand, finder: HandFinder, preprocessing: Preprocessing
) -> ShownHand:
    """Correct an image's orientation and show it whole or in a view, as a preprocessing says.

    An image without a hand is shown whole, as it is.

    Args:
        radiograph: An image.
        hand: What `finder` found on it.
        finder: Says from which score on there is a hand, and how sure its proportions are.
        preprocessing: Of the network.
    """
    image = radiograph.to_image()
    if not hand.is_there(finder.facts):
        return ShownHand(image, UPRIGHT, None)
    orientation = hand.orientation
    turned = undo_turns(hand.placement, orientation.quarter_turns, image.size)
    size = image.size if orientation.quarter_turns % 2 == 0 else image.size[::-1]
    is_unusual, is_far = not is_usual(turned, size), not is_usual(turned, size, FAR)
    if preprocessing.crop == "hand":
        aspect = find_aspect(radiograph, hand, finder)
        to_view = preprocessing.view.of(hand.place(aspect), preprocessing.view_height, aspect)
        bright = ImageOps.invert(image) if orientation.is_inverted else image
        view = preprocessing.show(bright, to_view)
        view.putalpha(draw_outline(to_view.apply(hand.landmarks), view.size))
        return ShownHand(view, orientation, to_view, aspect, is_unusual, is_far)
    if orientation != UPRIGHT:
        pixels = np.ascontiguousarray(orientation.undo(radiograph.pixels))
        image = replace(radiograph, pixels=pixels).to_image()
    return ShownHand(image, orientation, None, 1.0, is_unusual, is_far)


def find_aspect(radiograph: Radiograph, hand: FoundHand, finder: HandFinder) -> float:
    """Give the width of an image over its true width, the height counting as true.

    A DICOM file states the spacing of its pixels, which counts unless it cannot be meant. Else the
    joints of the hand tell, where they tell it surely. Most exactly square images were stretched to
    a square across the hand, so of these less is enough.
    """
    row, column = radiograph.header.pixel_spacing_mm or (0.0, 1.0)
    if 1.0 / MOST_OBLONG <= row / column <= MOST_OBLONG:
        return row / column
    facts = finder.facts
    estimate = np.log(facts.shape.find_aspect(hand.landmarks[: len(JOINTS)])[0])
    height, width = radiograph.pixels.shape
    across = -1.0 if hand.orientation.quarter_turns % 2 else 1.0  # a hand may lie on its side
    if height == width and across * estimate > facts.sure_aspect_of_square:
        known = across * facts.usual_aspect_of_square
        return float(np.exp(known + facts.aspect_gain * (estimate - known)))
    return float(np.exp(estimate)) if abs(estimate) > facts.sure_aspect else 1.0


@dataclass(frozen=True)
class HandReader:
    """Reads images in views of their hands, as a training uses them.

    Their alpha channel is the outline of the hand, or full where an image is shown whole.

    Attributes:
        preprocessing: Whose `crop` is `hand`.
        finder: Finds the hands.
    """

    preprocessing: Preprocessing
    finder: HandFinder

    @property
    def stamp(self) -> dict[str, Any]:
        """What decides the pixels of an image in the processed folder, as plain values."""
        crop = {"crop": self.preprocessing.crop, "hand_finder_sha256": self.finder.sha256}
        return {**self.preprocessing.stamp, **crop}

    def read(self, source: Source) -> Image.Image:
        """Read a raw image as the 8-bit grey image that training starts from.

        Raises:
            ImageError: If the image cannot be read.
        """
        return self.prepare(read_radiograph(source, self.preprocessing.invert))

    def prepare(self, radiograph: Radiograph) -> Image.Image:
        """Turn an image that was read into that image."""
        hand = self.finder.find(radiograph.to_image())
        shown = show_hand(radiograph, hand, self.finder, self.preprocessing)
        if shown.to_view is not None:
            return shown.image  # rendered at its final size
        reduced = self.preprocessing.reduce(shown.image)
        reduced.putalpha(255)
        return reduced


def make_reader(preprocessing: Preprocessing) -> Reader:
    """Give what reads images for a preprocessing, with the hand finder in the package if needed."""
    if preprocessing.crop == "none":
        return preprocessing
    return HandReader(preprocessing, HandFinder(threads=1))
