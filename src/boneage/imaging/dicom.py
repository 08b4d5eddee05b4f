"""DICOM file or Dataset -> grey values as its sender meant them to be shown, and its header."""

import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from boneage.errors import ImageError
from boneage.imaging.decoded import DecodedPixels, Mask, Note, join_masks
from boneage.imaging.dicom_tags import read_number, read_words, replace_tag, tidy
from boneage.imaging.grey_range import Levels, count_levels, find_marks
from boneage.imaging.header import parse_header

MOST_INFLATED = 1 << 29
"""Most bytes that a deflated file may inflate to: what `MOST_PIXELS` take up, and more."""

_PREAMBLE = 128
_SUFFIXES = (".dcm", ".dicom")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_CHUNK = 1 << 20
_LONGEST_REASON = 400
_LAST_FIRST, _LONGEST_FIRST = 0x0018, 256  # element and length that a first element may have


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


def looks_like_bare_dicom(file: BinaryIO) -> bool:
    """Whether an open file starts as DICOM without a preamble: with an element of group 2 or 8.

    Those are the groups that come first; a short element number and a plausible length follow.
    """
    file.seek(0)
    head = file.read(8)
    if len(head) < 8:
        return False
    for order in ("<", ">"):
        group, element = struct.unpack_from(f"{order}HH", head)
        if group in (0x0002, 0x0008) and element <= _LAST_FIRST:
            is_explicit = head[4:6].isalpha() and head[4:6].isupper()
            return is_explicit or struct.unpack_from(f"{order}I", head, 4)[0] <= _LONGEST_FIRST
    return False


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
    """Read the image of a DICOM file or Dataset, the first one where it has several frames.

    The modality LUT and the first VOI LUT or window that suits the image are applied, a palette or
    colour is reduced to luma, and the overlay planes are left out, as are padding and what
    shutters cover.

    Args:
        source: An open binary file, or a pydicom Dataset, which stays as it is.
        name: What messages call it.

    Raises:
        ImageError: If it is damaged, holds no image, states impossible pixels, or is compressed by
            a codec that is not installed.
    """
    from pydicom import Dataset, dcmread

    try:
        if not isinstance(source, Dataset):
            _check_inflated(source, name)
        # Some archives write no preamble; what is no DICOM at all then has no image.
        dataset = source if isinstance(source, Dataset) else dcmread(source, force=True)
        if getattr(dataset, "preamble", None) and not dataset:
            raise ImageError(f"{name} cannot be read as DICOM: it is cut short.")
        return _read(_copy(dataset), name)
    except ImageError:
        raise
    except Exception as error:  # the reader raises whatever the bytes provoke, and late
        raise ImageError(f"{name} cannot be read as DICOM: {_in_one_line(error)}") from None


def _check_inflated(file: BinaryIO, name: str) -> None:
    """Refuse a deflated file that would fill the memory, which pydicom inflates at once."""
    start = file.tell()
    head = file.read(_PREAMBLE + 1024)
    if _DEFLATED in head:
        # What is deflated follows the first group, whose length stands in its first element.
        group_end = _PREAMBLE + 16 + int.from_bytes(head[_PREAMBLE + 12 : _PREAMBLE + 16], "little")
        file.seek(start + group_end)
        inflater, n, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, b""
        with suppress(zlib.error):  # pydicom says what is wrong
            while n <= MOST_INFLATED and (rest or (rest := file.read(_CHUNK))):
                n += len(inflater.decompress(rest, _CHUNK))
                rest = inflater.unconsumed_tail
        if n > MOST_INFLATED:
            raise ImageError(
                f"{name} inflates to more than {MOST_INFLATED >> 20} MiB; expected one radiograph."
            )
    file.seek(start)


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
    from boneage.imaging.dicom_pixels import StoredPixels, decode_pixels, read_layout
    from boneage.imaging.dicom_shutter import find_shutters

    if "PixelData" not in dataset:
        raise ImageError(f"{name} holds no image ({_name_kind(dataset)}); expected a radiograph.")
    header = parse_header(dataset)
    _require_codec(dataset, name)
    layout = read_layout(dataset, name)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        _prepare_frame(dataset, name)
    try:
        stored: StoredPixels = decode_pixels(dataset, layout)
    except Exception as error:  # the decoders raise whatever the bytes provoke
        if not syntax.is_compressed:
            raise
        raise ImageError(
            f"{name} cannot be decoded as {syntax.name} ({syntax}): {_in_one_line(error)} "
            f"If the file is whole, {_remedy(syntax)}."
        ) from None
    shutters, notes = find_shutters(dataset, stored.values.shape[:2])
    left_out = join_masks(stored.padding, shutters)
    if left_out is not None and left_out.all():
        raise ImageError(f"{name} holds nothing but padding; it shows no hand.")
    shape = read_words(dataset, "PresentationLUTShape")
    # Both say the same of one image, so that they do not cancel each other out.
    is_inverted = layout.photometric == "MONOCHROME1" or shape == ["INVERSE"]
    notes = stored.notes + notes
    if stored.is_colour:
        return DecodedPixels(stored.values, stored.bits, is_inverted, header, left_out, notes)
    grey, bits, marks, table_notes = _show(dataset, stored.values, layout.stored, left_out,
                                           is_inverted=is_inverted)  # fmt: skip
    left_out = join_masks(left_out, marks)
    return DecodedPixels(grey, bits, is_inverted, header, left_out, notes + table_notes)


def _prepare_frame(dataset: Any, name: str) -> None:
    """Keep the first of the compressed frames, and check the size that it declares.

    Raises:
        ImageError: If it is not that of the image: a codec would take memory for it.
    """
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

    from boneage.imaging.codestream import mend_scan, read_size

    syntax = dataset.file_meta.TransferSyntaxUID
    expected = tuple(read_number(dataset, side) for side in ("Rows", "Columns"))
    n = int(read_number(dataset, "NumberOfFrames") or 1)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=max(1, n)))
    size = None if syntax == RLELossless else read_size(frame)
    if size is not None and size[0] and size != expected:
        raise ImageError(
            f"{name} holds a compressed image of {size[0]}×{size[1]} pixels; expected "
            f"{expected[0]:g}×{expected[1]:g}, as its Rows and Columns say. It is damaged."
        )
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        frame = mend_scan(frame)
    replace_tag(dataset, "PixelData", encapsulate([frame]))
    replace_tag(dataset, "NumberOfFrames", 1)
    for table in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # of all frames
        if table in dataset:
            del dataset[table]


def _name_kind(dataset: Any) -> str:
    """Say what an object without pixels is."""
    kind = dataset.get("SOPClassUID")
    if kind:
        return tidy(str(kind.name))
    return "no DICOM file" if "StudyInstanceUID" not in dataset else "DICOM without PixelData"


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
    from pydicom.pixels.decoders.pylibjpeg import DECODER_DEPENDENCIES
    from pydicom.uid import RLELossless

    if syntax in DECODER_DEPENDENCIES and syntax != RLELossless:
        return "pip install '.[dicom]', or store it uncompressed"
    return "store it uncompressed"


def _show(
    dataset: Any,
    pixels: npt.NDArray[Any],
    bits: int,
    left_out: Mask | None,
    *,
    is_inverted: bool,
) -> tuple[npt.NDArray[Any], int, Mask | None, tuple[Note, ...]]:
    """Apply the lookup tables that suit the image.

    Returns:
        The grey values and their bits; where marks are that no grey range may count; and notes.
    """
    from boneage.imaging.dicom_tables import apply_modality, apply_voi

    levels = count_levels(pixels, left_out)
    marks, notes = (None, ()) if bits <= 8 else find_marks(pixels, levels)
    if marks is not None:
        levels = count_levels(pixels, join_masks(left_out, marks))
    # Tables are applied to each value that occurs, not to each of an image's millions of pixels.
    values, places = _find_values(pixels)
    counts = np.zeros(len(values), np.int64)
    counts[np.searchsorted(values, levels.values)] = levels.counts
    modal, modality_notes = apply_modality(dataset, Levels(values, counts))
    shown, voi_notes = apply_voi(dataset, Levels(modal, counts), dark_is_low=not is_inverted)
    if not np.isfinite(shown).all():
        raise ValueError("it holds pixels that are not finite numbers")
    notes = notes + modality_notes + voi_notes
    # A window over all 256 values changes nothing but last bits.
    is_plain = bits == 8 and np.allclose(shown, values, rtol=0.0, atol=1e-6)
    if is_plain and values[0] >= 0 and values[-1] <= 255:  # also where 8 bits are kept in 16
        return pixels.astype(np.uint8), 8, marks, notes
    return shown.astype(np.float32)[places].reshape(pixels.shape), 16, marks, notes


def _find_values(pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.integer]]:
    """Give values in ascending order, all that occur among them, and each pixel's place there."""
    if pixels.dtype.itemsize > 2:
        return np.unique(pixels, return_inverse=True)
    lowest = int(pixels.min())
    values = np.arange(lowest, int(pixels.max()) + 1)
    return values, pixels.astype(np.int32) - lowest


def _in_one_line(error: Exception) -> str:
    return (tidy(str(error), _LONGEST_REASON) or type(error).__name__).rstrip(".") + "."
