from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from boneage.imaging.radiograph import Radiograph, read_radiograph
from builders import draw_hand, save_dicom

HAND = draw_hand().astype(np.uint16) * 16
PLAIN = (HAND - float(HAND.min())) / float(np.ptp(HAND))
TWELVE = {"BitsStored": 12, "HighBit": 11}

# The reader warns of values that the standard does not allow.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def _read(folder: Path, pixels: npt.NDArray[Any], **tags: Any) -> Radiograph:
    return read_radiograph(save_dicom(folder / "a.dcm", pixels, **tags), "never")


@pytest.mark.parametrize("compress", [None, RLELossless])
def test_values_stand_below_the_high_bit(tmp_path: Path, compress: str | None) -> None:
    image = _read(tmp_path, HAND << 4, BitsStored=12, HighBit=15, compress=compress)
    np.testing.assert_allclose(image.pixels, PLAIN, atol=1e-6)
    assert image.notes == (
        ("high_bit_unusual", "HighBit (0028,0102) is 15 with 12 bits stored: the values were taken "
         "from the bits below it"),
    )  # fmt: skip


@pytest.mark.parametrize("high_bit", [11, 15])
def test_values_below_the_high_bit_may_be_signed(tmp_path: Path, high_bit: int) -> None:
    signed = (HAND.astype(np.int16) - 2048) << (high_bit - 11)
    image = _read(tmp_path, signed, BitsStored=12, HighBit=high_bit)
    np.testing.assert_allclose(image.pixels, PLAIN, atol=1e-6)


def test_an_overlay_in_unused_bits_is_none_of_the_image(tmp_path: Path) -> None:
    marked = HAND.copy()
    marked[10:50, 10:50] |= 0xF000
    image = _read(tmp_path, marked, **TWELVE)
    np.testing.assert_allclose(image.pixels, PLAIN, atol=1e-6)
    signed = (HAND.astype(np.int16) - 2048) & 0x0FFF  # without the bits of the sign
    np.testing.assert_allclose(_read(tmp_path, signed, **TWELVE).pixels, PLAIN, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_every_number_of_bits_is_read(tmp_path: Path, dtype: Any) -> None:
    grey = draw_hand().astype(np.int64) // 2
    image = _read(tmp_path, (grey - 50 * np.issubdtype(dtype, np.signedinteger)).astype(dtype))
    expected = grey / 255.0 if dtype is np.uint8 else (grey - grey.min()) / float(np.ptp(grey))
    np.testing.assert_allclose(image.pixels, expected, atol=1e-6)


def _pad(value: int, share: float, dtype: Any, offset: int = 0) -> tuple[npt.NDArray[Any], Any]:
    padded = HAND.astype(np.int64) + offset
    padded[: int(share * len(padded))] = value
    is_padding = np.zeros(HAND.shape, np.bool_)
    is_padding[: int(share * len(padded))] = True
    return padded.astype(dtype), is_padding


def _expect_hand_beside(image: Radiograph, is_padding: npt.NDArray[np.bool_]) -> None:
    hand = HAND[~is_padding].astype(np.float64)
    plain = (hand - hand.min()) / np.ptp(hand)
    np.testing.assert_allclose(image.pixels[~is_padding], plain, atol=1e-5)
    assert (image.pixels[is_padding] == 0.0).all()
    assert image.notes[-1].code == "padding_left_out"


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.6])
@pytest.mark.parametrize(
    ("stored", "declared", "dtype"),
    [
        (-32768, -32768, np.int16),
        (-2000, 63536, np.int16),
        (63536, -2000, np.uint16),
        (65535, 65535, np.uint16),
        (0, 0, np.uint16),
        (5000, 5000, np.uint16),
        (-1, 4294967295, np.int32),
    ],
)
def test_padding_of_any_share_and_sign_is_left_out(
    tmp_path: Path, share: float, stored: int, declared: int, dtype: Any
) -> None:
    pixels, is_padding = _pad(stored, share, dtype)
    path = save_dicom(tmp_path / "a.dcm", pixels)
    from pydicom import dcmread
    from pydicom.dataelem import DataElement

    dataset = dcmread(path)
    vr = "SS" if -32768 <= declared < 0 else "US" if declared < 65536 else "UL"
    dataset[0x00280120] = DataElement(0x00280120, vr, declared)
    dataset.save_as(path)
    _expect_hand_beside(read_radiograph(path, "never"), is_padding)


def test_padding_outside_the_stored_bits_is_known_by_its_cell(tmp_path: Path) -> None:
    pixels, is_padding = _pad(65535, 0.2, np.uint16)
    image = _read(tmp_path, pixels, **TWELVE, PixelPaddingValue=65535)
    _expect_hand_beside(image, is_padding)


@pytest.mark.parametrize(("ends"), [(-3000, -2000), (-2000, -3000)])
def test_a_range_of_padding_is_left_out(tmp_path: Path, ends: tuple[int, int]) -> None:
    pixels, is_padding = _pad(0, 0.3, np.int16)
    pixels[is_padding] = np.linspace(-3000, -2000, is_padding.sum()).astype(np.int16)
    tags = {"PixelPaddingValue": ends[0], "PixelPaddingRangeLimit": ends[1]}
    _expect_hand_beside(_read(tmp_path, pixels, **tags), is_padding)


def test_padding_is_black_also_where_white_is_zero(tmp_path: Path) -> None:
    _, is_padding = _pad(0, 0.2, np.uint16)
    inverted = np.where(is_padding, 0, 5000 - HAND).astype(np.uint16)
    tags = {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"}
    _expect_hand_beside(_read(tmp_path, inverted, **tags), is_padding)


def test_padding_of_a_compressed_image_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("openjpeg")
    pixels, is_padding = _pad(65535, 0.2, np.uint16)
    image = _read(tmp_path, pixels, PixelPaddingValue=65535, compress=JPEG2000Lossless)
    _expect_hand_beside(image, is_padding)


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("planar", [0, 1])
def test_luma_and_chroma_are_read_as_grey(tmp_path: Path, photometric: str, planar: int) -> None:
    grey = draw_hand()
    colour = np.dstack([grey, np.full_like(grey, 128), np.full_like(grey, 128)])
    if photometric == "YBR_FULL_422":
        if planar:
            pytest.skip("the standard has no planes of it")
        pairs = grey.reshape(-1, 2)
        stored = np.column_stack([pairs, np.full((len(pairs), 2), 128, np.uint8)])
    else:
        stored = np.moveaxis(colour, 2, 0) if planar else colour
    image = _read(tmp_path, colour, PhotometricInterpretation=photometric,
                  PlanarConfiguration=planar, PixelData=stored.tobytes())  # fmt: skip
    np.testing.assert_allclose(image.pixels, grey / 255.0, atol=1.5 / 255)
