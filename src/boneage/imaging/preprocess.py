"""A radiograph -> a network's input; a folder of raw images -> one of processed images."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from boneage.config import Crop, ImageSettings, Invert, Padding, Recipe
from boneage.errors import ConfigError
from boneage.imaging.geometry import HAND_VIEW, Affine, HandView, edge_grey, render
from boneage.imaging.radiograph import Radiograph, Source, read_radiograph

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel means and deviations of ImageNet, on the scale 0 to 1. Source: torchvision's models."""

GREY_PERCENTILES = (1.0, 99.0)
"""Percentiles that `stretch_grey` takes for black and white."""


HALF = 128
"""Grey value from which on an outline covers a pixel."""


def _require(name: str, value: object, expected: str, holds: bool) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}; expected {expected}.")


def _require_keys(name: str, values: object, cls: type) -> None:
    expected = [field.name for field in fields(cls)]
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} is {values!r}; expected values of {', '.join(expected)}.")
    odd = [key for key in (*values, *expected) if (key in values) != (key in expected)]
    if odd:
        raise ConfigError(
            f"{name} lacks or does not know {', '.join(odd)}; expected {', '.join(expected)}."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Which augmented views of an image a prediction averages.

    Attributes:
        mirror: Whether every view is averaged with its mirror image.
        zoom: Proportion by which the image is once reduced and once magnified; 0 for neither.

    Raises:
        ConfigError: If a value is impossible.
    """

    __test__: ClassVar[bool] = False  # not a test, whatever pytest makes of the name

    mirror: bool = False
    zoom: float = 0.0

    def __post_init__(self) -> None:
        _require("tta.mirror", self.mirror, "true or false", isinstance(self.mirror, bool))
        is_zoom = _is_number(self.zoom) and 0.0 <= self.zoom < 1.0
        _require("tta.zoom", self.zoom, "0 or more and below 1", is_zoom)


class Reader(Protocol):
    """Reads images as a training does: `Preprocessing` whole ones, another class views of hands."""

    @property
    def stamp(self) -> dict[str, Any]:
        """What decides the pixels of an image in the processed folder, as plain values."""

    def read(self, source: Source) -> Image.Image:
        """Read a raw image as the 8-bit grey image that training starts from."""

    def prepare(self, radiograph: Radiograph) -> Image.Image:
        """Turn an image that was read into that image."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input, and which views of it are averaged.

    It travels with the weights. The image is read with bone bright (`invert`), used whole or in a
    view of the hand (`crop`), stretched to a square (`stored_size`) as in the processed folder,
    kept as 8 bits, stretched in its grey values (`stretch_grey`) and stretched to the network's
    square (`image_size`). Serving repeats exactly what training did, because a network notices how
    its pixels were made.

    Attributes:
        image_size: Side of the square the network sees, in pixels.
        stored_size: Side of the square in the processed folder, or None if images were read raw.
        invert: How images with dark bones are treated.
        stretch_grey: Whether grey values are stretched, see `stretch_grey`.
        crop: `none` uses the whole image, `hand` the view of the hand.
        view: The view of the hand.
        padding: What fills the view where it reaches beyond the image: the median grey of the
            image's border (`edge`) or `black`.
        tta: Which views of the image are averaged.

    Raises:
        ConfigError: If a value is impossible.
    """

    image_size: int
    stored_size: int | None
    invert: Invert
    stretch_grey: bool = False
    tta: TestTimeAugmentation = TestTimeAugmentation()
    crop: Crop = "none"
    view: HandView = HAND_VIEW
    padding: Padding = "edge"

    def __post_init__(self) -> None:
        _require("image_size", self.image_size, "1 or more", _is_count(self.image_size))
        size = self.stored_size
        _require("stored_size", size, "1 or more, or none", size is None or _is_count(size))
        for name, values in (("invert", Invert), ("crop", Crop), ("padding", Padding)):
            value, choices = getattr(self, name), get_args(values)
            _require(name, value, " or ".join(choices), value in choices)
        is_bool = isinstance(self.stretch_grey, bool)
        _require("stretch_grey", self.stretch_grey, "true or false", is_bool)

    @classmethod
    def of(cls, recipe: Recipe, stored_size: int | None) -> Self:
        """Give the preprocessing of a recipe, for images stored at a size or, with None, raw."""
        return cls(
            recipe.image_size,
            stored_size,
            recipe.invert,
            recipe.stretch_grey,
            TestTimeAugmentation(recipe.tta_mirror, recipe.tta_zoom),
            recipe.crop,
        )

    @classmethod
    def of_processed(cls, settings: ImageSettings) -> Self:
        """Give the preprocessing that leads to the images of a processed folder."""
        return cls(settings.image_size, settings.image_size, settings.invert, crop=settings.crop)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a preprocessing from `asdict`'s values, as a model's file has them.

        Raises:
            ConfigError: If a value is missing, unknown or impossible.
        """
        _require_keys("preprocessing", values, cls)
        parts = {"tta": TestTimeAugmentation, "view": HandView}
        for name, part in parts.items():
            _require_keys(f"preprocessing.{name}", values[name], part)
        return cls(**{**values, **{name: part(**values[name]) for name, part in parts.items()}})

    @property
    def stamp(self) -> dict[str, Any]:
        """What decides the pixels of an image in the processed folder, as plain values."""
        return {"size": self.stored_size, "invert": self.invert}

    def read(self, source: Source) -> Image.Image:
        """Read a raw image as the 8-bit grey image that training started from.

        Raises:
            ImageError: If the image cannot be read.
            ConfigError: If views of hands are used, which takes a reader that finds them.
        """
        return self.prepare(read_radiograph(source, self.invert))

    def prepare(self, radiograph: Radiograph) -> Image.Image:
        """Turn an image that was read into that image.

        Raises:
            ConfigError: As for `read`.
        """
        if self.crop != "none":
            raise ConfigError(
                f"crop is {self.crop!r}, for which the hand must be found; read the images with "
                "`boneage.inference.hand_view.make_reader`."
            )
        return self.reduce(radiograph.to_image())

    @property
    def view_height(self) -> int:
        """Height in pixels at which the view of a hand is rendered."""
        return self.stored_size or self.image_size

    def show(self, image: Image.Image, to_view: Affine) -> Image.Image:
        """Give the view of an 8-bit grey image, `view_height` high, to which a map leads."""
        fill = edge_grey(image) if self.padding == "edge" else 0
        return render(image, to_view, self.view.size(self.view_height), fill)

    def reduce(self, image: Image.Image) -> Image.Image:
        """Reduce an 8-bit grey image, as `show` gives it, to what training started from."""
        return image if self.stored_size is None else resize(image, self.stored_size)

    def to_array(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Turn a reduced image into the network's input: (S, S) float32 in [0, 1].

        The alpha channel of a view is the outline of the hand, inside which grey values are
        stretched.
        """
        outline = image.getchannel("A") if image.mode == "LA" else None
        image = image.convert("L")
        if self.stretch_grey:
            image = stretch_grey(image, outline)
        size = (self.image_size, self.image_size)
        square = image if image.size == size else resize(image, self.image_size)
        return np.asarray(square, dtype=np.float32) / 255.0


def resize(image: Image.Image, size: int) -> Image.Image:
    """Stretch to size x size, antialiased bilinear, as torchvision's Resize does on such images."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def stretch_grey(image: Image.Image, outline: Image.Image | None = None) -> Image.Image:
    """Stretch the grey values of an 8-bit image so that percentiles 1 and 99 become 0 and 255.

    Images of the same hand at several exposures become alike; an image whose percentiles coincide
    is left as it is.

    Args:
        image: 8-bit grey.
        outline: Of the hand, white on it. Percentiles are then those of the hand, so that bright
            letters and plates beside it do not count. By default those of the whole image.
    """
    greys = np.asarray(image)
    inside = greys if outline is None else greys[np.asarray(outline) >= HALF]
    low, high = np.percentile(inside if inside.size else greys, GREY_PERCENTILES)
    if not low < high:
        return image
    levels = (np.arange(256) - low) * (255.0 / (high - low))
    return image.point(np.rint(levels.clip(0.0, 255.0)).astype(np.uint8).tolist())
