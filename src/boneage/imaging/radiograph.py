"""A source of any kind -> one `Radiograph`: 2-D grey values in [0, 1], bone bright."""

import io
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from boneage.config import Invert
from boneage.errors import ImageError
from boneage.files import cut_suffix
from boneage.imaging.decoded import LUMA, MOST_PIXELS, DecodedPixels, Note, check_size
from boneage.imaging.dicom import (
    has_dicom_suffix,
    looks_like_bare_dicom,
    read_dicom,
    starts_as_dicom,
)
from boneage.imaging.dicom_tags import tidy
from boneage.imaging.grey_range import count_levels, find_marks, find_range
from boneage.imaging.header import Header

if TYPE_CHECKING:
    from pydicom import Dataset

Source: TypeAlias = "Path | str | bytes | BinaryIO | Dataset | npt.NDArray[Any]"
"""What an image can be read from; see `read_radiograph`."""

INVERTED_BELOW = -0.15
"""Polarity score under which `auto` takes an image as inverted.

Source: measured on 11,111 RSNA training images at 100 px, docs/experiments.md, "Polarity".
"""

UNNAMED = "image"
"""What a source without a name is called."""

_EIGHT_IN_SIXTEEN = 257
"""By which converters multiply 8-bit values to fill 16 bits; such an image is of 8 bits."""

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
"""Formats that are read by Pillow, which knows others that start other programs."""

FEWEST_BYTES = 64
"""Grey levels that are enough in the upper bytes of 16-bit colours, of which no more are read."""

_LONGEST_REASON = 400
_TIFF_PHOTOMETRIC = 262
_TIFF_BITS = 258
_PNG_DEPTH = 24  # place of the bit depth in a PNG
_SCORE_SIZE = 100
_SCORE_WINDOW = 21
_SCORE_MARGIN = 25


@dataclass(frozen=True)
class Radiograph:
    """A radiograph with bone bright and air dark.

    Attributes:
        pixels: float32 (H, W) in [0, 1]. 8-bit sources keep their scale (value / 255); deeper
            ones are stretched to their own range (`find_range`), since the number of used bits
            (10, 12, 16) is not known. What is left out, such as padding, is 0.
        name: What messages call it: the path, or the name given.
        image_id: The name without folders of a path and without an image suffix.
        bits: Bits of a grey value in the source: 8 (or fewer), 16 or more.
        was_inverted: Whether the image was inverted because it had dark bones, or on demand; a
            source that declares its polarity is read as it says and does not count.
        path: The file it came from; None for another source.
        header: What a DICOM source states beside its pixels.
        notes: What was left out or understood in a way of its own.
    """

    pixels: npt.NDArray[np.float32]
    name: str
    image_id: str
    bits: int
    was_inverted: bool
    path: Path | None = None
    header: Header = field(default_factory=Header)
    notes: tuple[Note, ...] = ()

    def to_image(self) -> Image.Image:
        """Give the image as an 8-bit grey image, exact for an image of 8 bits."""
        values = self.pixels * np.float32(255.0)
        return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def read_radiograph(source: Source, invert: Invert = "auto", name: str | None = None) -> Radiograph:
    """Read a PNG, JPEG, TIFF, BMP or DICOM image of any pixel format, or an array.

    Colour is reduced to luma, a palette is looked up, transparency shows black (air), an EXIF
    orientation is applied, and a TIFF or DICOM that declares white as zero is inverted. DICOM is
    shown through its modality and VOI LUT.

    Args:
        source: A path; the content of a file, as bytes or as a file open for binary reading, which
            is read from where it stands; a pydicom Dataset, which stays as it is; or an array of
            grey values (H, W) or colours (H, W, 3). An array of uint8 keeps its scale, any other
            is stretched as a deeper file is.
        invert: `auto` inverts images whose `polarity_score` shows dark bones; `always` and
            `never` are for images whose polarity is known.
        name: What messages and the id call it, such as the name of an uploaded file. By default
            the path, the open file's own name, or a Dataset's file or SOPInstanceUID.

    Raises:
        ImageError: Naming the source, if it is missing, no image, cut short, of several frames,
            or of one grey value only.
    """
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    own_name = path.name if path else _name_source(source)
    image_id = cut_suffix(name or own_name)
    name = name or str(path or own_name)
    try:
        decoded = _decode(source, name)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist.") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not an image; expected PNG, JPEG, TIFF, BMP or DICOM."
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name} declares more pixels than can be read; expected {MOST_PIXELS:,} or fewer. "
            "Reduce it, or check that the file is whole."
        ) from None
    except Exception as error:  # the reader raises whatever the bytes provoke
        reason = tidy(str(error), _LONGEST_REASON).rstrip(".") or type(error).__name__
        raise ImageError(f"{name} cannot be read as an image: {reason}.") from None
    pixels = _scale(decoded, name)
    was_inverted = invert == "always" or (
        invert == "auto" and polarity_score(pixels) < INVERTED_BELOW
    )
    if was_inverted:
        pixels = 1.0 - pixels
    if decoded.left_out is not None:
        pixels[decoded.left_out] = 0.0
    return Radiograph(
        pixels, name, image_id, decoded.bits, was_inverted, path, decoded.header, decoded.notes
    )


def _name_source(source: Source) -> str:
    """Give the name that a source has of itself: a file's without its folders."""
    for attribute in ("name", "filename", "SOPInstanceUID"):
        with suppress(Exception):  # a Dataset raises what a damaged tag provokes
            found = getattr(source, attribute, None)
            if isinstance(found, str | os.PathLike) and str(found):
                return Path(found).name
    return UNNAMED


def _decode(source: Source, name: str) -> DecodedPixels:
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            return _decode_file(file, name, has_suffix=has_dicom_suffix(str(source)))
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode_file(io.BytesIO(source), name)
    if isinstance(source, np.ndarray):
        return _decode_array(source)
    if hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, bytes):
            raise ImageError(f"{name} is open for reading text; open it with mode 'rb'.")
        return _decode_file(io.BytesIO(content), name)
    from pydicom import Dataset

    if not isinstance(source, Dataset):
        raise ImageError(
            f"{name} is a {type(source).__name__}; expected a path, bytes, an open binary file, a "
            "pydicom Dataset or a numpy array."
        )
    return read_dicom(source, name)


def _decode_file(file: BinaryIO, name: str, *, has_suffix: bool = False) -> DecodedPixels:
    """Read a file as what its content shows; its name decides only where the content does not."""
    is_dicom = starts_as_dicom(file)
    file.seek(0)
    if not is_dicom:
        try:
            return _read_image(file, name)
        except UnidentifiedImageError:
            if not (has_suffix or has_dicom_suffix(name) or looks_like_bare_dicom(file)):
                raise
            file.seek(0)
    return read_dicom(file, name)


def _decode_array(pixels: npt.NDArray[Any]) -> DecodedPixels:
    is_colour = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype.kind not in "uif" or not (pixels.ndim == 2 or is_colour) or not pixels.size:
        shape = " x ".join(map(str, pixels.shape))
        raise ValueError(
            f"it is an array of {pixels.dtype} and shape {shape}; expected numbers of shape "
            "H x W or H x W x 3"
        )
    if is_colour and pixels.dtype == np.uint8:  # as the reader of files reduces it
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    elif is_colour:
        pixels = pixels.astype(np.float64) @ np.array(LUMA)
    return _without_marks(*_find_depth(pixels))


def _without_marks(
    grey: npt.NDArray[Any], bits: int, *, is_inverted: bool = False
) -> DecodedPixels:
    """Leave out marks of a deep image; one of 8 bits stays as it is."""
    marks, notes = (None, ()) if bits == 8 else find_marks(grey, count_levels(grey))
    return DecodedPixels(grey, bits, is_inverted, left_out=marks, notes=notes)


def _scale(decoded: DecodedPixels, name: str) -> npt.NDArray[np.float32]:
    """Bring decoded values to [0, 1], low values dark."""
    grey, left_out = decoded.grey, decoded.left_out
    levels = count_levels(grey, left_out)
    low, high = float(levels.values[0]), float(levels.values[-1])
    if not low < high:
        where = "all pixels" if left_out is None else "all pixels that are not left out"
        raise ImageError(f"{name} has one grey value ({low:g}) in {where}; it shows no hand.")
    low, high = (0.0, 255.0) if decoded.bits == 8 else find_range(levels)
    # In place, and in float32 where that holds every value: an image has millions of pixels.
    scaled = grey.astype(np.result_type(grey, np.float32))
    scaled -= low
    scaled /= high - low
    np.clip(scaled, 0.0, 1.0, out=scaled)
    if decoded.is_inverted:
        np.subtract(1.0, scaled, out=scaled)
    if left_out is not None:  # neither bright nor dark, for the polarity that is yet to be found
        scaled[left_out] = np.median(scaled[~left_out])
    return scaled.astype(np.float32, copy=False)


def _read_image(file: BinaryIO, name: str) -> DecodedPixels:
    # From an open file, since Pillow memory-maps one it opens by name, and inverted TIFFs wrongly.
    with Image.open(file, formats=FORMATS) as image:
        check_size(image.height, image.width, name)
        frames = getattr(image, "n_frames", 1)
        # A phone's MPO holds smaller copies of its first picture, or the other eye's view of it.
        if frames > 1 and image.format != "MPO":
            raise ImageError(f"{name} holds {frames} frames; expected one image.")
        image.load()
        _check_depth(image, file, name)
        declared_inverted = _declares_inverted(image)
        grey, bits = _to_grey(ImageOps.exif_transpose(image))
    return _without_marks(grey, bits, is_inverted=declared_inverted)


def _check_depth(image: Image.Image, file: BinaryIO, name: str) -> None:
    """Refuse colour or transparency of 16 bits whose upper bytes alone do not show the image."""
    if image.format == "PNG":
        file.seek(_PNG_DEPTH)
        bits = file.read(1)[0]
    else:
        bits = max(getattr(image, "tag_v2", {}).get(_TIFF_BITS, (8,)))
    if bits <= 8 or image.mode not in ("LA", "RGB", "RGBA", "RGBX", "CMYK"):
        return
    if np.count_nonzero(image.convert("L").histogram()) < FEWEST_BYTES:
        raise ImageError(
            f"{name} holds colour or transparency of {bits} bits in mode {image.mode}, of which 8 "
            "are read, and they do not show the image. Save it as grey of 16 bits."
        )


def _declares_inverted(image: Image.Image) -> bool:
    """Whether a deep TIFF says that white is zero; Pillow itself inverts those of 1 and 8 bits."""
    tags = getattr(image, "tag_v2", {})
    return image.mode not in ("1", "L") and tags.get(_TIFF_PHOTOMETRIC) == 0


def _to_grey(image: Image.Image) -> tuple[npt.NDArray[Any], int]:
    """Reduce any Pillow mode to one channel: its values, and the bits of one."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _find_depth(np.asarray(image))
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", pixels.size, "black"), pixels)
    return np.asarray(image.convert("L")), 8


def _find_depth(grey: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
    """Give grey values and the bits that each takes, 8 where 16 bits hold no more than 8."""
    if not np.isfinite(grey).all():
        raise ValueError("it holds pixels that are not finite numbers")
    if grey.dtype == np.uint8:
        return grey, 8
    is_of_16 = grey.dtype.kind == "u" and grey.dtype.itemsize == 2
    if is_of_16 and not (grey % _EIGHT_IN_SIXTEEN).any():
        return (grey // _EIGHT_IN_SIXTEEN).astype(np.uint8), 8
    return grey, max(16, 8 * grey.dtype.itemsize)


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
