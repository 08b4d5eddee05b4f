"""DICOM file -> grey values as its sender meant them to be shown, and the patient's sex."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from boneage.errors import ImageError
from boneage.sex import Sex, parse_sex

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma. Source: ITU-R BT.601, as Pillow uses them."""

_PREAMBLE = 128


class DecodedPixels(NamedTuple):
    """What a file holds, before its scale is brought to [0, 1].

    Attributes:
        grey: Numbers of any type (H, W), after modality and VOI LUT.
        bits: 8 if the values are 0 to 255 as they stand, 16 if their range is unknown.
        is_inverted: Whether low values are bright (MONOCHROME1).
        sex: PatientSex where it means male or female, else None.
        sex_not_understood: PatientSex where it is none of the words for a sex, as it stands.
    """

    grey: npt.NDArray[Any]
    bits: int
    is_inverted: bool
    sex: Sex | None = None
    sex_not_understood: str | None = None


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by the mark after its preamble.

    Raises:
        OSError: If the file cannot be opened.
    """
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with path.open("rb") as file:
        return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


def read_dicom(path: Path) -> DecodedPixels:
    """Read the one image of a DICOM file.

    The modality LUT and the first VOI LUT or window are applied, a palette or colour is reduced
    to luma, and the overlay planes are left out.

    Raises:
        ImageError: Naming the file, if it is damaged, holds no image or several, or is
            compressed by a codec that is not installed.
    """
    try:
        return _read(path)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist.") from None
    except Exception as error:  # the reader raises whatever the bytes provoke, and late
        raise ImageError(f"{path} cannot be read as DICOM: {_in_one_line(error)}") from None


def read_sex(path: Path) -> Sex | None:
    """Read the patient's sex alone, None where the file does not tell it or cannot be read."""
    from pydicom import dcmread

    try:
        dataset = dcmread(path, force=True, specific_tags=["PatientSex"], stop_before_pixels=True)
        return _sex_of(dataset)[0]
    except Exception:  # the reader raises whatever the bytes provoke
        return None


def holds_image(path: Path) -> bool:
    """Whether a file may hold an image: any but a DICOM object of another kind.

    Structured reports, plans, presentation states and documents have no rows of pixels. A file
    that cannot be read as DICOM is left to the reader, which says what is wrong with it.
    """
    from pydicom import dcmread

    try:
        if not is_dicom(path):
            return True
        tags = ["SOPClassUID", "Rows"]
        dataset = dcmread(path, force=True, specific_tags=tags, stop_before_pixels=True)
        return "Rows" in dataset or "SOPClassUID" not in dataset
    except Exception:  # the reader raises whatever the bytes provoke
        return True


def _sex_of(dataset: Any) -> tuple[Sex | None, str | None]:
    """Give the patient's sex, and the word for it where that is not understood."""
    word = str(dataset.get("PatientSex") or "").strip()
    try:
        return parse_sex(word), None
    except ValueError:
        return None, word


def _read(path: Path) -> DecodedPixels:
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    # Some archives write no preamble; what is no DICOM at all then has no image.
    dataset = dcmread(path, force=True)
    if dataset.preamble and not dataset:
        raise ImageError(f"{path} cannot be read as DICOM: it is cut short.")
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, _ = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    if "PixelData" not in dataset:
        kind = dataset.get("SOPClassUID")
        what = kind.name if kind else "no DICOM file"
        raise ImageError(f"{path} holds no image ({what}); expected a radiograph.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ImageError(f"{path} holds {frames} frames; expected one image.")
    _require_codec(path, dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        grey, bits = _decode(dataset)
    except Exception as error:  # the decoders raise whatever the bytes provoke
        if not syntax.is_compressed:
            raise
        raise ImageError(
            f"{path} cannot be decoded as {syntax.name} ({syntax}): {_in_one_line(error)} "
            f"If the file is whole, {_remedy(syntax)}."
        ) from None
    return DecodedPixels(
        grey,
        bits,
        dataset.get("PhotometricInterpretation") == "MONOCHROME1",
        *_sex_of(dataset),
    )


def _require_codec(path: Path, dataset: Any) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    try:
        is_there = get_decoder(syntax).is_available
    except NotImplementedError:
        is_there = False
    if not is_there:
        raise ImageError(
            f"{path} is compressed as {syntax.name} ({syntax}), and no codec for it is installed; "
            f"{_remedy(syntax)}."
        )


def _remedy(syntax: Any) -> str:
    from pydicom.pixels.decoders.gdcm import DECODER_DEPENDENCIES

    if syntax in DECODER_DEPENDENCIES:
        return "pip install '.[dicom]', or store it uncompressed"
    return "store it uncompressed"


def _decode(dataset: Any) -> tuple[npt.NDArray[Any], int]:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    pixels = pixel_array(dataset)
    for table in dataset.get("VOILUTSequence") or ():
        # The reader counts the entries of an 8-bit table in 8 bits: deeper pixels wrap around.
        entries, first, _ = table.LUTDescriptor
        table.LUTDescriptor = [entries, first, 16]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        scale = 255.0 if pixels.dtype.itemsize == 1 else 65535.0
        return pixels[..., :3].astype(np.float64) * (255.0 / scale) @ np.array(LUMA), 8
    if pixels.ndim == 3:
        return pixels.astype(np.float64) @ np.array(LUMA), 8 if dataset.BitsStored <= 8 else 16
    # Each value there is is shown once, and the pixels looked up: an image has millions of them.
    if pixels.dtype.itemsize <= 2:
        lowest = int(pixels.min())
        values = np.arange(lowest, int(pixels.max()) + 1).astype(pixels.dtype)
        places: npt.NDArray[np.integer] = pixels.astype(np.int32) - lowest
    else:
        values, places = np.unique(pixels, return_inverse=True)
    shown = np.asarray(apply_voi_lut(apply_modality_lut(values, dataset), dataset), np.float64)
    if not np.isfinite(shown).all():
        raise ValueError("it holds pixels that are not finite numbers")
    # A window over all 256 values changes nothing but last bits.
    is_plain = dataset.BitsStored == 8 and np.allclose(shown, values, rtol=0.0, atol=1e-6)
    if is_plain and values[0] >= 0 and values[-1] <= 255:  # also where 8 bits are kept in 16
        return pixels.astype(np.uint8), 8
    return shown.astype(np.float32)[places].reshape(pixels.shape), 16


def _in_one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".") + "."
