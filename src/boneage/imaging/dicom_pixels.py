"""DICOM pixel data -> stored values as the file means them: bits, sign, padding, colour."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from boneage.errors import ImageError
from boneage.imaging.decoded import LUMA, Mask, Note, check_size
from boneage.imaging.dicom_tags import describe_tag, read_number, read_words, replace_tag

_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420",
            "YBR_PARTIAL_422")  # fmt: skip
_BITS = (1, 8, 16, 32)


class StoredPixels(NamedTuple):
    """Pixels of the first frame, before any lookup table for grey values.

    Attributes:
        values: Stored values (H, W), or the luma of a colour image.
        bits: Bits of a value: BitsStored, or 8 or 16 for the luma of a colour.
        is_colour: Whether they are luma, to which no lookup table applies.
        padding: Where the declared padding is; None without any.
        notes: What was understood in a way of its own.
    """

    values: npt.NDArray[Any]
    bits: int
    is_colour: bool
    padding: Mask | None
    notes: tuple[Note, ...]


class Layout(NamedTuple):
    """The tags that say how pixels are stored, checked.

    Attributes:
        samples: SamplesPerPixel.
        photometric: PhotometricInterpretation.
        allocated: BitsAllocated.
        stored: BitsStored.
        high_bit: HighBit.
        is_signed: PixelRepresentation.
    """

    samples: int
    photometric: str
    allocated: int
    stored: int
    high_bit: int
    is_signed: bool


def read_layout(dataset: Any, name: str) -> Layout:
    """Read and check how pixels are stored, before memory is taken for them.

    Raises:
        ImageError: Naming the first tag that is missing or impossible.
    """

    def number(keyword: str, expected: str, default: int | None = None) -> int:
        found = read_number(dataset, keyword)
        if found is None and default is not None:
            return default
        if found is None or found != int(found):
            raise _wrong(name, keyword, found, expected)
        return int(found)

    rows, columns = number("Rows", "1 or more"), number("Columns", "1 or more")
    check_size(rows, columns, name)
    samples = number("SamplesPerPixel", "1 or 3", 1)
    photometric = next(iter(read_words(dataset, "PhotometricInterpretation")), "")
    expected = _GREY if samples == 1 else _COLOURS
    if samples not in (1, 3):
        raise _wrong(name, "SamplesPerPixel", samples, "1 or 3")
    if photometric not in expected:
        raise _wrong(name, "PhotometricInterpretation", photometric or None, ", ".join(expected))
    allocated = number("BitsAllocated", "1, 8, 16 or 32")
    if allocated not in _BITS:
        raise _wrong(name, "BitsAllocated", allocated, "1, 8, 16 or 32")
    stored = number("BitsStored", f"1 to {allocated}", allocated)
    if not 1 <= stored <= allocated:
        raise _wrong(name, "BitsStored", stored, f"1 to {allocated}, the BitsAllocated")
    high_bit = number("HighBit", f"{stored - 1} to {allocated - 1}", stored - 1)
    if not stored - 1 <= high_bit < allocated:
        raise _wrong(name, "HighBit", high_bit, f"{stored - 1} to {allocated - 1}")
    is_signed = number("PixelRepresentation", "0 or 1", 0)
    if is_signed not in (0, 1):
        raise _wrong(name, "PixelRepresentation", is_signed, "0 or 1")
    return Layout(samples, photometric, allocated, stored, high_bit, bool(is_signed))


def _wrong(name: str, keyword: str, found: object, expected: str) -> ImageError:
    """Give the error of a tag that no image can have."""
    says = f"says {describe_tag(keyword)} is {found}"
    if found is None:
        says = f"has no {describe_tag(keyword)}"
    return ImageError(f"{name} {says}; expected {expected}. Export the image again.")


def decode_pixels(dataset: Any, layout: Layout) -> StoredPixels:
    """Decode the first frame of a Dataset, which is changed for it.

    Raises:
        Exception: Whatever the decoders raise.
    """
    from pydicom.pixels import pixel_array

    if layout.photometric == "PALETTE COLOR":
        return _look_up_palette(pixel_array(dataset, index=0), dataset)
    if layout.samples == 3:
        colour = pixel_array(dataset, index=0).astype(np.float64) @ np.array(LUMA)
        return StoredPixels(colour, 8 if layout.stored <= 8 else 16, True, None, ())
    is_native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    if layout.allocated == 1:
        return StoredPixels(pixel_array(dataset, index=0), 1, False, None, ())
    if not (is_native or dataset.file_meta.TransferSyntaxUID.name == "RLE Lossless"):
        # A codec gives values, not cells: where they stood in a cell is no longer to be seen.
        replace_tag(dataset, "HighBit", layout.stored - 1)
        values = pixel_array(dataset, index=0)
        padding, notes = _find_padding(dataset, layout, values, None)
        return StoredPixels(values, layout.stored, False, padding, notes)
    # As whole cells, since pydicom takes the lowest BitsStored bits, whatever HighBit says.
    replace_tag(dataset, "BitsStored", layout.allocated)
    replace_tag(dataset, "HighBit", layout.allocated - 1)
    replace_tag(dataset, "PixelRepresentation", 0)
    cells = pixel_array(dataset, index=0)
    values, notes = _take_bits(cells, layout)
    padding, padding_notes = _find_padding(dataset, layout, values, cells)
    return StoredPixels(values, layout.stored, False, padding, notes + padding_notes)


def _look_up_palette(pixels: npt.NDArray[Any], dataset: Any) -> StoredPixels:
    from pydicom.pixels import apply_color_lut

    colours = apply_color_lut(pixels, dataset)
    scale = 255.0 if colours.dtype.itemsize == 1 else 65535.0
    luma = colours[..., :3].astype(np.float64) * (255.0 / scale) @ np.array(LUMA)
    return StoredPixels(luma, 8, True, None, ())


def _take_bits(
    cells: npt.NDArray[Any], layout: Layout
) -> tuple[npt.NDArray[Any], tuple[Note, ...]]:
    """Take a value out of each cell: the BitsStored bits up to HighBit, which may have a sign.

    What stands in the other bits is none of the image, such as an embedded overlay.

    Source: PS3.5, section 8.1.1.
    """
    shift = layout.high_bit - (layout.stored - 1)
    values = cells
    if layout.stored < layout.allocated:
        values = (cells >> shift) & cells.dtype.type((1 << layout.stored) - 1)
    if layout.is_signed:
        signed: npt.NDArray[np.int64] = values.astype(np.int64)
        signed[signed >= 1 << (layout.stored - 1)] -= 1 << layout.stored
        values = signed.astype(np.int16 if layout.allocated <= 16 else np.int64)
    if not shift:
        return values, ()
    message = (
        f"{describe_tag('HighBit')} is {layout.high_bit} with {layout.stored} bits stored: the "
        f"values were taken from the bits below it"
    )
    return values, (Note("high_bit_unusual", message),)


def _find_padding(
    dataset: Any, layout: Layout, values: npt.NDArray[Any], cells: npt.NDArray[Any] | None
) -> tuple[Mask | None, tuple[Note, ...]]:
    """Find the pixels of PixelPaddingValue, or of the range up to PixelPaddingRangeLimit.

    Files state them signed or unsigned, whatever the pixels are, and may use bits of the cell that
    the values have not.

    Source: PS3.3, section C.7.5.1.1.2.
    """
    declared = read_number(dataset, "PixelPaddingValue")
    if declared is None:
        return None, ()
    limit = read_number(dataset, "PixelPaddingRangeLimit")
    ends = [int(declared), int(declared if limit is None else limit)]
    modulus = 1 << layout.allocated
    unsigned = [end % modulus for end in ends]
    signed = [end - modulus if end >= modulus // 2 else end for end in unsigned]
    is_padding = np.zeros(values.shape, np.bool_)
    for low, high in {(min(pair), max(pair)) for pair in (ends, unsigned, signed)}:
        is_padding |= _is_within(values, low, high)
    if cells is not None and limit is None:
        is_padding |= cells == unsigned[0]
    share = is_padding.mean()
    if not share:
        return None, ()
    text = f"PixelPaddingValue {ends[0]}" + ("" if limit is None else f" to {ends[1]}")
    note = Note("padding_left_out", f"{share:.1%} of the image are padding ({text}): left out")
    return is_padding, (note,)


def _is_within(values: npt.NDArray[Any], low: int, high: int) -> Mask:
    """Whether values lie in a range whose ends their type may not hold."""
    held = np.iinfo(values.dtype)
    low, high = max(low, int(held.min)), min(high, int(held.max))
    return (values >= low) & (values <= high) if low <= high else np.zeros(values.shape, np.bool_)
