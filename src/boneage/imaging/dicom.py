"""DICOM file or Dataset -> grey values as its sender meant them to be shown, and its header."""

from copy import deepcopy
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from boneage.errors import ImageError
from boneage.imaging.header import Header, parse_header

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma. Source: ITU-R BT.601, as Pillow uses them."""

_PREAMBLE = 128
_SUFFIXES = (".dcm", ".dicom")


class DecodedPixels(NamedTuple):
    """What a file holds, before its scale is brought to [0, 1].

    Attributes:
        grey: Numbers of any type (H, W), after modality and VOI LUT.
        bits: 8 if the values are 0 to 255 as they stand, 16 or more if their range is unknown.
        is_inverted: Whether low values are bright (MONOCHROME1).
        header: What the file states beside its pixels; empty unless it is DICOM.
    """

    grey: npt.NDArray[Any]
    bits: int
    is_inverted: bool = False
    header: Header = Header()


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by the mark after its preamble.

    Raises:
        OSError: If the file cannot be opened.
    """
    if has_dicom_suffix(path.name):
        return True
    with path.open("rb") as file:
        return starts_as_dicom(file)


def has_dicom_suffix(name: str) -> bool:
    """Whether a file's name says that it is DICOM."""
    return Path(name).suffix.lower() in _SUFFIXES


def starts_as_dicom(file: BinaryIO) -> bool:
    """Whether an open file has DICOM's mark after its preamble; reads from its beginning."""
    file.seek(0)
    return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


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


def read_dicom(source: Any, name: str) -> DecodedPixels:
    """Read the one image of a DICOM file or Dataset.

    The modality LUT and the first VOI LUT or window are applied, a palette or colour is reduced
    to luma, and the overlay planes are left out.

    Args:
        source: An open binary file, or a pydicom Dataset, which stays as it is.
        name: What messages call it.

    Raises:
        ImageError: If it is damaged, holds no image or several, or is compressed by a codec that
            is not installed.
    """
    from pydicom import Dataset, dcmread

    try:
        # Some archives write no preamble; what is no DICOM at all then has no image.
        dataset = source if isinstance(source, Dataset) else dcmread(source, force=True)
        if getattr(dataset, "preamble", None) and not dataset:
            raise ImageError(f"{name} cannot be read as DICOM: it is cut short.")
        return _read(_copy(dataset), name)
    except ImageError:
        raise
    except Exception as error:  # the reader raises whatever the bytes provoke, and late
        raise ImageError(f"{name} cannot be read as DICOM: {_in_one_line(error)}") from None


def _copy(dataset: Any) -> Any:
    """Give a Dataset of the same elements, to which decoding may add; with a transfer syntax."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    copied = Dataset(dict(dataset.items()))
    is_implicit, is_little = dataset.original_encoding
    copied.set_original_encoding(is_implicit, is_little)
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    copied.file_meta = FileMetaDataset()
    copied.file_meta.TransferSyntaxUID = syntax or (
        ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    )
    return copied


def _read(dataset: Any, name: str) -> DecodedPixels:
    if "PixelData" not in dataset:
        kind = dataset.get("SOPClassUID")
        what = kind.name if kind else "no DICOM file"
        raise ImageError(f"{name} holds no image ({what}); expected a radiograph.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ImageError(f"{name} holds {frames} frames; expected one image.")
    _require_codec(dataset, name)
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        grey, bits = _decode(dataset)
    except Exception as error:  # the decoders raise whatever the bytes provoke
        if not syntax.is_compressed:
            raise
        raise ImageError(
            f"{name} cannot be decoded as {syntax.name} ({syntax}): {_in_one_line(error)} "
            f"If the file is whole, {_remedy(syntax)}."
        ) from None
    is_inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
    return DecodedPixels(grey, bits, is_inverted, parse_header(dataset))


def _require_codec(dataset: Any, name: str) -> None:
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
            f"{name} is compressed as {syntax.name} ({syntax}), and no codec for it is installed; "
            f"{_remedy(syntax)}."
        )


def _remedy(syntax: Any) -> str:
    from pydicom.pixels.decoders.gdcm import DECODER_DEPENDENCIES

    if syntax in DECODER_DEPENDENCIES:
        return "pip install '.[dicom]', or store it uncompressed"
    return "store it uncompressed"


def _decode(dataset: Any) -> tuple[npt.NDArray[Any], int]:
    """Decode the pixels of a copied Dataset and apply its lookup tables: values and bits."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    pixels = pixel_array(dataset)
    _widen_lookup_tables(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        scale = 255.0 if pixels.dtype.itemsize == 1 else 65535.0
        return pixels[..., :3].astype(np.float64) * (255.0 / scale) @ np.array(LUMA), 8
    if pixels.ndim == 3:
        return pixels.astype(np.float64) @ np.array(LUMA), 8 if dataset.BitsStored <= 8 else 16
    # Tables are applied to each value that occurs, not to each of an image's millions of pixels.
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


def _widen_lookup_tables(dataset: Any) -> None:
    """Let pydicom count the entries of 8-bit VOI tables in 16 bits: deeper pixels wrap around."""
    if not dataset.get("VOILUTSequence"):
        return
    tables = deepcopy(dataset.VOILUTSequence)
    for table in tables:
        entries, first, _ = table.LUTDescriptor
        table.LUTDescriptor = [entries, first, 16]
    del dataset.VOILUTSequence  # an assignment would change the element shared with the source
    dataset.VOILUTSequence = tables


def _in_one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".") + "."
