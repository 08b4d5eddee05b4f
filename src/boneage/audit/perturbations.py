"""Changes of an image, or of the sex that is provided with it, that a model should withstand.

Most families are those of Santomartino et al., Radiology AI 2024 (doi 10.1148/ryai.230240). The
others are what may happen to an image before it is read: noise, blur, compression, a marker, a
collimation border, another field, lost proportions, a viewer's window, processing, a print, a wrong
sex.
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


def _enlarge_field(across: float, down: float, grey: int = 0) -> Change:
    """Put an image in the middle of a field that is larger by two factors."""

    def change(image: Image.Image) -> Image.Image:
        size = (round(across * image.width), round(down * image.height))
        field = Image.new("L", size, grey)
        field.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
        return field

    return change


def _pad_to_square(grey: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        side = max(image.size)
        return _enlarge_field(side / image.width, side / image.height, grey)(image)

    return change


def _stretch(factor: float | None) -> Change:
    """Change the width by a factor; None stretches to a square."""

    def change(image: Image.Image) -> Image.Image:
        width = image.height if factor is None else round(factor * image.width)
        return image.resize((width, image.height), Image.Resampling.BILINEAR)

    return change


def _take_screenshot(image: Image.Image) -> Image.Image:
    """Show an image in a viewer's window, with a grey bar of tools and a line of text."""
    size = (round(1.9 * image.width), round(1.3 * image.height))
    window = Image.new("L", size, 40)
    pen = ImageDraw.Draw(window)
    bar = round(0.08 * size[1])
    pen.rectangle((0, 0, size[0], bar), 200)
    pen.text((bar, bar // 3), "File  View  Window", 20)
    pen.rectangle((0, bar, round(0.2 * size[0]), size[1]), 90)
    window.paste(image, (round(0.35 * size[0]), bar + (size[1] - bar - image.height) // 2))
    return window


def _sharpen(percent: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.UnsharpMask(max(1.0, 0.008 * image.height), percent, 0))

    return change


def _even_out(strength: float) -> Change:
    """Bring the contrast of each neighbourhood near that of the others, as viewers do."""

    def change(image: Image.Image) -> Image.Image:
        blur = ImageFilter.BoxBlur(max(2.0, 0.06 * image.height))
        grey = np.asarray(image, dtype=np.float64)
        mean = np.asarray(image.filter(blur), dtype=np.float64)
        distance = Image.fromarray(np.abs(grey - mean).clip(0, 255).astype(np.uint8))
        spread = np.asarray(distance.filter(blur), dtype=np.float64)
        even = 128.0 + 32.0 * (grey - mean) / (spread + 4.0)
        mixed = (1.0 - strength) * grey + strength * even
        return Image.fromarray(np.rint(mixed.clip(0, 255)).astype(np.uint8))

    return change


def _print_plate(threshold: float, grain: float) -> Change:
    """Darken soft tissue and brighten bone by a steep curve, and add grain, as a print does."""

    def change(image: Image.Image) -> Image.Image:
        curve = _map_grey(lambda grey: 1.0 / (1.0 + np.exp(-9.0 * (grey - threshold))))
        low, high = np.percentile(np.asarray(image), (1, 99))
        full = _map_grey(lambda grey: (255.0 * grey - low) / max(high - low, 1.0))(image)
        return _noise(grain)(curve(full))

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
    *(Perturbation("field", f"{a:g} by {d:g}", _enlarge_field(a, d))
      for a, d in ((1.5, 1.5), (2.0, 2.0), (2.0, 1.0))),
    Perturbation("padding", "to a square, black", _pad_to_square(0)),
    Perturbation("padding", "to a square, white", _pad_to_square(255)),
    *(Perturbation("aspect", level, _stretch(factor))
      for level, factor in (("to a square", None), ("1.2 times as wide", 1.2))),
    Perturbation("screenshot", "", _take_screenshot),
    *(Perturbation("processing", f"sharpened by {p}%", _sharpen(p)) for p in (150, 300)),
    *(Perturbation("processing", f"evened out by {100 * e:.0f}%", _even_out(e))
      for e in (0.3, 0.6)),
    *(Perturbation("print", f"threshold {t:g}, grain {100 * g:.0f}%", _print_plate(t, g))
      for t, g in ((0.35, 0.03), (0.5, 0.06))),
    Perturbation("sex", "wrong", keep, "wrong"),
    Perturbation("sex", "unknown", keep, "unknown"),
)  # fmt: skip
"""What an audit tries, family by family."""
