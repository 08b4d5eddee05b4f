"""Changes of an image, or of the sex that is provided with it, that a model should withstand.

Most families are those of Santomartino et al., Radiology AI 2024 (doi 10.1148/ryai.230240). The
others are what may happen to an image before it is read: noise, blur, compression, a marker, a
collimation border, a wrong sex.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Change = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Perturbation:
    """One change of an image.

    Attributes:
        family: What kind of change.
        level: How much of it.
        change: Applied to an 8-bit grey image; the identity for changes of the sex.
        sex: None to provide the image's sex, "wrong" to provide the other, "unknown" to provide
            none.
    """

    family: str
    level: str
    change: Change
    sex: Literal["wrong", "unknown"] | None = None


def keep(image: Image.Image) -> Image.Image:
    """Leave an image as it is."""
    return image


def _rotate(degrees: float) -> Change:
    return lambda image: image.rotate(degrees, Image.Resampling.BILINEAR, expand=degrees % 90 == 0)


def _map_grey(levels: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Change:
    """Change grey values in [0, 1] by a look-up table; the result is clipped."""
    table = np.rint(255.0 * levels(np.arange(256) / 255.0).clip(0.0, 1.0)).astype(np.uint8).tolist()
    return lambda image: image.point(table)


def _brightness(change: float) -> Change:
    return _map_grey(lambda grey: grey * (1.0 + change))


def _gamma(exponent: float) -> Change:
    return _map_grey(lambda grey: grey**exponent)


def _contrast(factor: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        mean = float(np.asarray(image).mean()) / 255.0
        return _map_grey(lambda grey: mean + factor * (grey - mean))(image)

    return change


def _blur(proportion: float) -> Change:
    return lambda image: image.filter(ImageFilter.GaussianBlur(proportion * image.height))


def _noise(sigma: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        grey = np.asarray(image, dtype=np.float64)
        noise = np.random.default_rng(0).normal(0.0, 255.0 * sigma, grey.shape)
        return Image.fromarray(np.rint((grey + noise).clip(0, 255)).astype(np.uint8))

    return change


def _lower_resolution(factor: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
        return image.resize(small, Image.Resampling.BOX).resize(
            image.size, Image.Resampling.BILINEAR
        )

    return change


def _crop(proportion: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        x, y = proportion * image.width, proportion * image.height
        box = (x, y, image.width - x, image.height - y)
        return image.resize(image.size, Image.Resampling.BILINEAR, box=box)

    return change


def _translate(proportion: float) -> Change:
    """Move an image to the right and down."""

    def change(image: Image.Image) -> Image.Image:
        matrix = (1, 0, -proportion * image.width, 0, 1, -proportion * image.height)
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    return change


def _compress(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        data = io.BytesIO()
        image.save(data, format="JPEG", quality=quality)
        return Image.open(data).convert("L")

    return change


def _add_marker(image: Image.Image) -> Image.Image:
    """Add a lead letter in the upper left corner."""
    marked = image.copy()
    side = max(4, image.width // 12)
    x, y = image.width // 25, image.height // 25
    pen = ImageDraw.Draw(marked)
    pen.rectangle((x, y, x + side // 3, y + side), fill=255)
    pen.rectangle((x, y + side - side // 3, x + side * 2 // 3, y + side), fill=255)
    return marked


def _blacken_border(proportion: float) -> Change:
    """Blacken a border, as collimation does."""

    def change(image: Image.Image) -> Image.Image:
        grey = np.array(image)
        y, x = round(proportion * image.height), round(proportion * image.width)
        inside = np.zeros_like(grey)
        inside[y : image.height - y, x : image.width - x] = 1
        return Image.fromarray(grey * inside)

    return change


def _flip(direction: Image.Transpose) -> Change:
    return lambda image: image.transpose(direction)


PERTURBATIONS = (
    *(Perturbation("rotation", f"{a:+d}°", _rotate(a)) for a in (-45, -20, -10, -5, 5, 10, 20, 45)),
    *(Perturbation("rotation", f"{a}°", _rotate(a)) for a in (90, 180, 270)),
    Perturbation("flip", "left-right", _flip(Image.Transpose.FLIP_LEFT_RIGHT)),
    Perturbation("flip", "upside down", _flip(Image.Transpose.FLIP_TOP_BOTTOM)),
    *(Perturbation("brightness", f"{100 * b:+.0f}%", _brightness(b))
      for b in (-0.3, -0.1, 0.1, 0.3)),
    *(Perturbation("contrast", f"{100 * c:+.0f}%", _contrast(1 + c))
      for c in (-0.3, -0.1, 0.1, 0.3)),
    *(Perturbation("gamma", f"{g:g}", _gamma(g)) for g in (0.67, 0.8, 1.25, 1.5)),
    Perturbation("inversion", "", _map_grey(lambda grey: 1.0 - grey)),
    *(Perturbation("blur", f"{100 * b:g}% of the height", _blur(b)) for b in (0.005, 0.01)),
    *(Perturbation("noise", f"{100 * s:.0f}% of the range", _noise(s)) for s in (0.02, 0.05)),
    *(Perturbation("resolution", f"1/{f:g}", _lower_resolution(f)) for f in (1.5, 2.0)),
    *(Perturbation("crop", f"{100 * c:.0f}% a side", _crop(c)) for c in (0.03, 0.08)),
    *(Perturbation("translation", f"{100 * t:.0f}%", _translate(t)) for t in (0.05, 0.1)),
    *(Perturbation("JPEG", f"quality {q}", _compress(q)) for q in (75, 40, 20)),
    Perturbation("marker", "added", _add_marker),
    *(Perturbation("border", f"{100 * b:.0f}%", _blacken_border(b)) for b in (0.03, 0.06)),
    Perturbation("sex", "wrong", keep, "wrong"),
    Perturbation("sex", "unknown", keep, "unknown"),
)  # fmt: skip
"""What an audit tries, family by family."""
