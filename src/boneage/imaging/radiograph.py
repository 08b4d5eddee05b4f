"""One file -> one `Radiograph`: 2-D grey values in [0, 1], bone bright, whatever the format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from boneage.config import Invert
from boneage.errors import ImageError
from boneage.imaging.dicom import DecodedPixels, is_dicom, read_dicom
from boneage.sex import Sex

INVERTED_BELOW = -0.15
"""Polarity score under which `auto` takes an image as inverted.

Source: measured on 11,111 RSNA training images at 100 px, docs/experiments.md, "Polarity".
"""

FEWEST_GREYS = 1 / 8
"""Least share of its range that 98% of a deep image's pixels may take up: 32 levels of 8 bits."""

_EIGHT_IN_SIXTEEN = 257
"""By which converters multiply 8-bit values to fill 16 bits; such an image is of 8 bits."""

_TIFF_PHOTOMETRIC = 262
_SCORE_SIZE = 100
_SCORE_WINDOW = 21
_SCORE_MARGIN = 25


@dataclass(frozen=True)
class Radiograph:
    """A radiograph with bone bright and air dark.

    Attributes:
        pixels: float32 (H, W) in [0, 1]. 8-bit files keep their scale (value / 255); deeper
            ones are stretched from their own minimum to their own maximum, since files with
            10, 12 and 16 used bits look alike, or, where a few values lie far off from all
            others, between percentiles 1 and 99.
        path: The file it came from.
        bits: Bits a grey value in the file: 8 (or fewer), 16 or 32.
        was_inverted: Whether the image was turned because it had dark bones, or on demand; a
            file that declares its polarity is read as it says and does not count.
        sex: The patient's sex that the file states (DICOM), or None.
        sex_not_understood: The file's word for the sex where it is none that we know.
    """

    pixels: npt.NDArray[np.float32]
    path: Path
    bits: int
    was_inverted: bool
    sex: Sex | None = None
    sex_not_understood: str | None = None

    def to_image(self) -> Image.Image:
        """Give the image as an 8-bit grey image, exact for an image of 8 bits."""
        values = self.pixels * np.float32(255.0)
        return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def read_radiograph(path: Path, invert: Invert = "auto") -> Radiograph:
    """Read a PNG, JPEG, TIFF, BMP or DICOM file of any pixel format.

    Colour is reduced to luma, a palette is looked up, transparency shows black (air), an EXIF
    orientation is applied, and a TIFF or DICOM that declares white as zero is turned. DICOM is
    shown through its modality and VOI LUT.

    Args:
        path: The file.
        invert: `auto` turns images whose `polarity_score` shows dark bones; `always` and
            `never` leave nothing to chance for a folder whose polarity is known.

    Raises:
        ImageError: Naming the file, if it is missing, no image, cut short, of several frames,
            or of one grey value only.
    """
    try:
        decoded = read_dicom(path) if is_dicom(path) else _read_image(path)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is not an image; expected PNG, JPEG, TIFF, BMP or DICOM."
        ) from None
    except Exception as error:  # the reader raises whatever the bytes provoke
        reason = str(error).rstrip(".") or type(error).__name__
        raise ImageError(f"{path} cannot be read as an image: {reason}.") from None
    grey, bits, declared_inverted, sex, sex_not_understood = decoded
    low, high = float(grey.min()), float(grey.max())
    if not low < high:
        raise ImageError(f"{path} has one grey value ({low:g}) in all pixels; it shows no hand.")
    if bits > 8:
        low, high = _leave_outliers(grey, low, high)
    if bits == 8:
        low, high = 0.0, 255.0
    # In place, and in float32 where that holds every value: an image has millions of pixels.
    scaled = grey.astype(np.result_type(grey, np.float32))
    scaled -= low
    scaled /= high - low
    np.clip(scaled, 0.0, 1.0, out=scaled)
    if declared_inverted:
        np.subtract(1.0, scaled, out=scaled)
    pixels = scaled.astype(np.float32, copy=False)
    is_inverted = invert == "always" or (
        invert == "auto" and polarity_score(pixels) < INVERTED_BELOW
    )
    if is_inverted:
        pixels = 1.0 - pixels
    return Radiograph(pixels, path, bits, is_inverted, sex, sex_not_understood)


def _leave_outliers(grey: npt.NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Narrow a range that a burned-in mark or padding has blown up, so that the hand has grey."""
    inner_low, inner_high = (float(value) for value in np.percentile(grey, (1.0, 99.0)))
    is_blown_up = 0.0 < inner_high - inner_low < FEWEST_GREYS * (high - low)
    return (inner_low, inner_high) if is_blown_up else (low, high)


def _read_image(path: Path) -> DecodedPixels:
    # Opened here, since Pillow memory-maps a file it opens by name, and turned TIFFs wrongly.
    with path.open("rb") as file, Image.open(file) as image:
        frames = getattr(image, "n_frames", 1)
        # A phone's MPO holds smaller copies of its first picture, or the other eye's view of it.
        if frames > 1 and image.format != "MPO":
            raise ImageError(f"{path} holds {frames} frames; expected one image.")
        image.load()
        declared_inverted = _declares_inverted(image)
        grey, bits = _to_grey(ImageOps.exif_transpose(image))
    return DecodedPixels(grey, bits, declared_inverted)


def _declares_inverted(image: Image.Image) -> bool:
    """Whether a deep TIFF says that white is zero; Pillow itself turns those of 1 and 8 bits."""
    tags = getattr(image, "tag_v2", {})
    return image.mode not in ("1", "L") and tags.get(_TIFF_PHOTOMETRIC) == 0


def _to_grey(image: Image.Image) -> tuple[npt.NDArray[Any], int]:
    """Reduce any Pillow mode to one channel; returns its values and the bits a pixel."""
    if image.mode == "F" or image.mode.startswith("I"):
        grey = np.asarray(image)
        if not np.isfinite(grey).all():
            raise ValueError("it holds pixels that are not finite numbers")
        if image.mode.startswith("I;16") and not (grey % _EIGHT_IN_SIXTEEN).any():
            return (grey // _EIGHT_IN_SIXTEEN).astype(np.uint8), 8
        return grey, 16 if image.mode.startswith("I;16") else 32
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", pixels.size, "black"), pixels)
    return np.asarray(image.convert("L")), 8


def polarity_score(pixels: npt.NDArray[np.float32]) -> float:
    """Measure whether bones are brighter (above 0) or darker (below 0) than what is beside them.

    The skewness of the grey values after each is expressed in local standard deviations from
    its local mean: thin bright bones on a darker ground have a long upper tail. Local scaling
    makes it blind to what misleads a comparison of centre and border: white frames, grey
    plates and dark exposures.

    Args:
        pixels: (H, W), any scale.

    Returns:
        The score; negated exactly when the image is inverted.
    """
    small = Image.fromarray(pixels).resize((_SCORE_SIZE, _SCORE_SIZE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.float64)
    mean = _box_mean(grey)
    variance = _box_mean(grey**2) - mean**2
    # Where the ground is flat only noise is left; a floor keeps it from being blown up.
    z = (grey - mean) / np.sqrt(np.maximum(variance, (1 / 255) ** 2))
    inner = z[_SCORE_MARGIN:-_SCORE_MARGIN, _SCORE_MARGIN:-_SCORE_MARGIN]
    return float((inner**3).mean())


def _box_mean(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    half = _SCORE_WINDOW // 2
    padded = np.pad(grey, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _SCORE_WINDOW, axis=0).mean(-1)
    return np.lib.stride_tricks.sliding_window_view(windows, _SCORE_WINDOW, axis=1).mean(-1)
