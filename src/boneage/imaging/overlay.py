"""A saliency map over an image, in two colours, with Pillow alone."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from boneage.files import replacing

LARGEST_SIDE = 1024
"""Longest side of the image in a picture, in pixels; larger images are reduced."""

NARROWEST = 256
"""Least width of a picture, in pixels, which its caption needs; narrower images are enlarged."""

CAPTION_HEIGHT = 62
OPACITY = 0.65
NOTE = "Research use only, not a medical device"

HIGHER = (255, 128, 0)
"""Colour of what speaks for a higher age: orange."""

LOWER = (0, 140, 255)
"""Colour of what speaks for a lower age: blue, which is told from orange by every eye."""

Map = npt.NDArray[np.floating]


def stretch_map(heatmap: Map, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Stretch a map (h, w) in [0, 1] smoothly over an image of `size` = (width, height)."""
    small = Image.fromarray(heatmap.astype(np.float32))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC)).clip(0.0, 1.0)


def colour_image(radiograph: Image.Image, saliency: Map) -> Image.Image:
    """Colour the parts of an image that speak for a higher age, and those for a lower one.

    Args:
        radiograph: 8-bit grey.
        saliency: (h, w), what each part adds to the age; the strongest has the full colour.

    Returns:
        RGB of the same size.
    """
    picture = np.asarray(radiograph, dtype=np.float32)[..., None]
    strongest = max(float(np.abs(saliency).max()), 1e-9)
    for sign, colour in ((1.0, HIGHER), (-1.0, LOWER)):
        evidence = (sign * saliency).clip(min=0.0) / strongest
        alpha = OPACITY * stretch_map(evidence, radiograph.size)[..., None]
        picture = picture * (1.0 - alpha) + np.array(colour, dtype=np.float32) * alpha
    grey = np.broadcast_to(picture, (*picture.shape[:2], 3))
    return Image.fromarray(np.rint(grey).astype(np.uint8))


def draw_overlay(radiograph: Image.Image, saliency: Map, title: str) -> Image.Image:
    """Colour an image as `colour_image` does, at a convenient size, above a caption.

    Args:
        radiograph: 8-bit grey.
        saliency: See `colour_image`.
        title: What was predicted.
    """
    scale = max(NARROWEST / radiograph.width, min(1.0, LARGEST_SIDE / max(radiograph.size)))
    width, height = (max(1, round(side * scale)) for side in radiograph.size)
    small = radiograph.resize((width, height), Image.Resampling.BILINEAR)
    picture = Image.new("RGB", (width, height + CAPTION_HEIGHT))
    picture.paste(colour_image(small, saliency))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    draw.text((6, height + 4), title, "white", font)
    x = 6
    for colour, meaning in ((HIGHER, "for a higher age"), (LOWER, "for a lower age")):
        draw.rectangle((x, height + 25, x + 9, height + 34), colour)
        draw.text((x + 14, height + 22), meaning, "white", font)
        x += 124
    draw.text((6, height + 41), NOTE, (170, 170, 170), font)
    return picture


def save_overlay(path: Path, radiograph: Image.Image, saliency: Map, title: str) -> None:
    """Write a picture of `draw_overlay` as PNG, whole or not at all."""
    with replacing(path) as part:
        draw_overlay(radiograph, saliency, title).save(part, format="PNG")
