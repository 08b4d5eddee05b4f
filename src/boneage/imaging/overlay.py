"""A heat map over an image, with Pillow alone."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from boneage.files import replacing

LARGEST_SIDE = 1024
"""Longest side of an overlay, in pixels; larger images are reduced."""

NARROWEST = 256
"""Least width of an overlay, in pixels, which the note needs; narrower images are enlarged."""

OPACITY = 0.6
NOTE = "Research use only, not a medical device"

Map = npt.NDArray[np.floating]


def stretch_map(heatmap: Map, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Stretch a map (h, w) in [0, 1] smoothly over an image of `size` = (width, height)."""
    small = Image.fromarray(heatmap.astype(np.float32))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC)).clip(0.0, 1.0)


def colour_image(radiograph: Image.Image, age_map: Map) -> Image.Image:
    """Colour the parts of an image that support a higher age.

    Args:
        radiograph: 8-bit grey.
        age_map: (h, w), what each part adds to the age; what speaks for a lower age is dark.

    Returns:
        RGB of the same size.
    """
    grey = np.asarray(radiograph, dtype=np.float32)[..., None]
    evidence = age_map.clip(min=0.0)
    heat = stretch_map(evidence / max(float(evidence.max()), 1e-9), radiograph.size)[..., None]
    # From black over red and yellow to white.
    colour = 255.0 * (3.0 * heat - np.arange(3.0)).clip(0.0, 1.0)
    alpha = OPACITY * heat
    return Image.fromarray(np.rint(grey * (1.0 - alpha) + colour * alpha).astype(np.uint8))


def draw_overlay(radiograph: Image.Image, age_map: Map) -> Image.Image:
    """Colour an image as `colour_image` does, at a convenient size and with a caption."""
    scale = max(NARROWEST / radiograph.width, min(1.0, LARGEST_SIDE / max(radiograph.size)))
    size = (max(1, round(radiograph.width * scale)), max(1, round(radiograph.height * scale)))
    image = colour_image(radiograph.resize(size, Image.Resampling.BILINEAR), age_map)
    rows, columns = age_map.shape
    text = f"evidence for a higher age, {rows} by {columns} cells\n{NOTE}"
    ImageDraw.Draw(image).text((4, size[1] - 32), text, fill="white", stroke_width=1,
                               stroke_fill="black")  # fmt: skip
    return image


def save_overlay(path: Path, radiograph: Image.Image, age_map: Map) -> None:
    """Write an overlay as PNG, whole or not at all."""
    with replacing(path) as part:
        draw_overlay(radiograph, age_map).save(part, format="PNG")
