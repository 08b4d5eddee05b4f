import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset

from boneage.imaging.radiograph import Radiograph, read_radiograph
from builders import draw_hand, save_dicom

# The reader warns of values that the standard does not allow.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

HAND = draw_hand().astype(np.uint16) * 16
TWELVE = {"BitsStored": 12, "HighBit": 11}
RAMP = np.arange(600, dtype=np.uint16).reshape(30, 20)


def _read(folder: Path, pixels: npt.NDArray[Any] = HAND, **tags: Any) -> Radiograph:
    return read_radiograph(save_dicom(folder / "a.dcm", pixels, **{**TWELVE, **tags}), "never")


def _table(entries: npt.NDArray[Any], first: int = 0, bits: int = 16, vr: str = "OW") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", vr, entries.tobytes())
    return item


def _expect_plain(image: Radiograph, tolerance: float = 1e-6) -> None:
    plain = (HAND - float(HAND.min())) / float(np.ptp(HAND))
    np.testing.assert_allclose(image.pixels, plain, atol=tolerance)


def test_a_window_cuts_off_what_is_outside_it(tmp_path: Path) -> None:
    pixels = _read(tmp_path, RAMP, WindowCenter=300, WindowWidth=400).pixels.ravel()
    assert (pixels[:100] == 0.0).all()
    assert (pixels[500:] == 1.0).all()
    assert 0.4 < pixels[300] < 0.6


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (
            {"WindowCenter": 127, "WindowWidth": 255},
            r"127, WindowWidth 255\) clips \d\d% of the im",
        ),
        ({"WindowCenter": 9000, "WindowWidth": 900}, r"9000, WindowWidth 900\) clips 100% of the"),
        ({"WindowCenter": -90, "WindowWidth": 20}, r"clips 100% of the image: left out"),
        ({"WindowCenter": 900, "WindowWidth": 0}, r"\(WindowCenter 900, WindowWidth 0\) has no wi"),
        ({"WindowCenter": 900, "WindowWidth": -5}, r"WindowWidth -5\) has no width"),
        ({"WindowCenter": 900, "WindowWidth": 1}, r"WindowWidth 1\) clips 100%"),
    ],
)
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_that_is_not_that_of_the_image_is_left_out_and_named(
    tmp_path: Path, tags: dict[str, Any], message: str, function: str
) -> None:
    image = _read(tmp_path, **tags, VOILUTFunction=function)
    _expect_plain(image)
    ((code, text),) = image.notes
    assert code == "window_left_out"
    assert re.search(message, text)


def test_the_first_sane_of_several_windows_counts(tmp_path: Path) -> None:
    one = _read(tmp_path, RAMP, WindowCenter=300, WindowWidth=400)
    both = _read(tmp_path, RAMP, WindowCenter=[300, 290], WindowWidth=[400, 500])
    second = _read(tmp_path, RAMP, WindowCenter=[4, 300], WindowWidth=[8, 400])
    np.testing.assert_array_equal(one.pixels, both.pixels)
    np.testing.assert_array_equal(one.pixels, second.pixels)
    assert ([n.code for n in both.notes], [n.code for n in second.notes]) == (
        [], ["window_left_out"],
    )  # fmt: skip


def test_air_may_lie_beyond_the_dark_end_of_a_window(tmp_path: Path) -> None:
    values = np.concatenate([np.arange(100, 400), np.arange(1000, 1300)]).repeat(
        [9] * 300 + [1] * 300
    )
    pixels = values.astype(np.uint16).reshape(50, 60)
    tags: dict[str, Any] = {"WindowCenter": 800, "WindowWidth": 1000}
    assert not _read(tmp_path, pixels, **tags).notes
    inverted = _read(tmp_path, 4095 - pixels, WindowCenter=3295, WindowWidth=1000,
                     PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    assert not inverted.notes
    # The same window would cut off as much at the bright end.
    assert _read(tmp_path, 4095 - pixels, WindowCenter=3295, WindowWidth=1000).notes


def test_a_width_below_1_is_exact(tmp_path: Path) -> None:
    image = _read(
        tmp_path,
        RescaleSlope="0.001",
        RescaleIntercept="-0.1",
        WindowCenter="1.9",
        WindowWidth=".99",
    )
    slope = _read(tmp_path, WindowCenter=2000, WindowWidth=990, VOILUTFunction="LINEAR_EXACT")
    assert [n.code for n in image.notes] == [n.code for n in slope.notes]
    np.testing.assert_allclose(image.pixels, slope.pixels, atol=1e-5)


def test_a_function_that_nobody_knows_is_linear_and_named(tmp_path: Path) -> None:
    tags: dict[str, Any] = {"WindowCenter": 2000, "WindowWidth": 3800}
    image = _read(tmp_path, **tags, VOILUTFunction="LOG")
    np.testing.assert_array_equal(image.pixels, _read(tmp_path, **tags).pixels)
    assert image.notes == (
        ("voi_function_unknown", "VOILUTFunction (0028,1056) is 'LOG', not known: taken as LINEAR"),
    )


def test_a_sigmoid_is_one(tmp_path: Path) -> None:
    shown = 1.0 / (1.0 + np.exp(-4.0 * (RAMP - 300.0) / 500.0))
    pixels = _read(
        tmp_path, RAMP, WindowCenter=300, WindowWidth=500, VOILUTFunction="SIGMOID"
    ).pixels
    np.testing.assert_allclose(pixels, (shown - shown.min()) / np.ptp(shown), atol=1e-5)


def test_numbers_with_a_decimal_comma_are_read(tmp_path: Path) -> None:
    tags: dict[str, Any] = {
        "WindowCenter": "2000.5",
        "WindowWidth": "3000.5",
        "RescaleSlope": "1.5",
    }
    plain = _read(tmp_path, **tags).pixels
    path = tmp_path / "a.dcm"
    content = path.read_bytes()
    for number in (b"2000.5", b"3000.5", b"1.5 "):
        assert number in content
        content = content.replace(number, number.replace(b".", b","))
    path.write_bytes(content)
    np.testing.assert_array_equal(read_radiograph(path, "never").pixels, plain)


@pytest.mark.parametrize("vr", ["OW", "OB", "US"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_voi_lut_of_any_bits_is_applied_instead_of_a_window(
    tmp_path: Path, bits: int, vr: str
) -> None:
    entries = (np.arange(4096)[::-1] * ((1 << bits) - 1) // 4095).astype(np.uint16)
    table = _table(entries, bits=bits, vr="OW" if vr == "US" else vr)
    if vr == "US":
        del table.LUTData
        table.add_new("LUTData", "US", entries.tolist())
    image = _read(tmp_path, VOILUTSequence=[table], WindowCenter=9, WindowWidth=9)
    assert not image.notes
    plain = (HAND - float(HAND.min())) / float(np.ptp(HAND))
    np.testing.assert_allclose(image.pixels, 1.0 - plain, atol=1.5 / (1 << bits) + 1e-6)


@pytest.mark.parametrize("n", [4096, 4095])
@pytest.mark.parametrize("vr", ["OW", "OB"])
def test_entries_of_a_byte_each_are_unpacked(tmp_path: Path, vr: str, n: int) -> None:
    entries = (np.arange(n) // 16).astype(np.uint8)
    table = _table(entries, bits=8, vr=vr)
    table.LUTData = entries.tobytes() + b"\0" * (n % 2)
    image = _read(tmp_path, VOILUTSequence=[table])
    assert not image.notes
    _expect_plain(image, 1 / 200)


def test_a_table_of_65536_entries_and_one_from_a_negative_value_are_read(tmp_path: Path) -> None:
    whole = _table(np.arange(65536, dtype=np.uint16)[::-1])
    assert whole.LUTDescriptor[0] == 0
    pixels = _read(tmp_path, HAND, VOILUTSequence=[whole], BitsStored=16, HighBit=15).pixels
    plain = (HAND - float(HAND.min())) / float(np.ptp(HAND))
    np.testing.assert_allclose(pixels, 1.0 - plain, atol=1e-6)
    signed = (HAND.astype(np.int16) - 2000).astype(np.int16)
    for first in (-2048, 65536 - 2048):
        table = _table(np.arange(4096, dtype=np.uint16), first=first)
        image = _read(tmp_path, signed, VOILUTSequence=[table], BitsStored=16, HighBit=15)
        assert not image.notes
        _expect_plain(image)


def _damage(kind: str) -> Dataset:
    table = _table(np.arange(4096, dtype=np.uint16))
    if kind == "empty":
        return Dataset()
    if kind == "short":
        table.LUTData = table.LUTData[:100]
    elif kind == "without descriptor":
        del table.LUTDescriptor
    elif kind == "without data":
        del table.LUTData
    elif kind == "flat":
        table.LUTData = bytes(8192)
    else:
        table.LUTDescriptor = [4096, 9000, 16]
    return table


@pytest.mark.parametrize(
    "kind", ["empty", "short", "without descriptor", "without data", "flat", "beside"]
)
@pytest.mark.parametrize(
    ("keyword", "code"),
    [("VOILUTSequence", "window_left_out"), ("ModalityLUTSequence", "modality_lut_left_out")],
)
def test_a_damaged_table_is_left_out_and_named(
    tmp_path: Path, kind: str, keyword: str, code: str
) -> None:
    tags: dict[str, Any] = {keyword: [_damage(kind)], "WindowCenter": 2048, "WindowWidth": 4096}
    image = _read(tmp_path, **tags)
    _expect_plain(image, 1e-5)
    assert [note.code for note in image.notes] == [code]


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_modality_lut_of_any_bits_is_applied(tmp_path: Path, bits: int) -> None:
    entries = (np.arange(4096)[::-1] >> (12 - bits if bits < 12 else 0)).astype(np.uint16)
    pixels = _read(tmp_path, ModalityLUTSequence=[_table(entries, bits=bits)]).pixels
    plain = (HAND - float(HAND.min())) / float(np.ptp(HAND))
    np.testing.assert_allclose(pixels, 1.0 - plain, atol=0.002)


@pytest.mark.parametrize(
    ("tags", "codes"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, []),
        ({"RescaleSlope": "", "RescaleIntercept": "-9"}, []),
        ({"RescaleIntercept": "-9"}, []),
        ({"RescaleSlope": "3"}, []),
        ({"RescaleSlope": "0", "RescaleIntercept": "7"}, ["modality_lut_left_out"]),
    ],
)
def test_a_slope_that_is_missing_or_0_is_1(
    tmp_path: Path, tags: dict[str, Any], codes: list[str]
) -> None:
    image = _read(tmp_path, **tags)
    _expect_plain(image)
    assert [note.code for note in image.notes] == codes
