import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from boneage.errors import ImageError
from boneage.imaging.dicom import is_dicom
from boneage.imaging.radiograph import read_radiograph
from builders import draw_hand, save_dicom

Grey8 = npt.NDArray[np.uint8]

# The reader warns of what it then refuses.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


@pytest.fixture
def grey() -> Grey8:
    """Noise of 30 rows and 20 columns in every value of 8 bits, with no polarity to detect."""
    return (
        np.random.default_rng(0).permutation(np.arange(600) % 256).astype(np.uint8).reshape(30, 20)
    )


def _pixels(path: Path) -> npt.NDArray[np.float32]:
    return read_radiograph(path, "never").pixels


def test_8_bits_keep_their_scale(tmp_path: Path, grey: Grey8) -> None:
    faint = grey // 8 + 60
    image = read_radiograph(save_dicom(tmp_path / "a.dcm", faint), "never")
    np.testing.assert_array_equal(image.pixels, (faint / 255.0).astype(np.float32))
    assert image.bits == 8


def test_a_window_over_all_8_bits_changes_nothing(tmp_path: Path, grey: Grey8) -> None:
    faint = grey // 8 + 60
    path = save_dicom(tmp_path / "a.dcm", faint, WindowCenter=128, WindowWidth=256)
    np.testing.assert_allclose(_pixels(path), faint / 255.0, atol=1e-6)


WINDOW = {"WindowCenter": 3040.5, "WindowWidth": 4081}


@pytest.mark.parametrize(
    ("scale", "offset", "dtype", "tags"),
    [
        pytest.param(257, 0, np.uint16, {}, id="16 bits"),
        pytest.param(16, 0, np.uint16, {"BitsStored": 12, "HighBit": 11}, id="12 bits"),
        pytest.param(16, -2000, np.int16, {}, id="signed"),
        pytest.param(10_000_000, 9, np.uint32, {}, id="32 bits"),
        pytest.param(16, 1000, np.uint16, WINDOW, id="window"),
        pytest.param(
            8, 100, np.uint16, {"RescaleSlope": 2, "RescaleIntercept": -9}, id="modality LUT"
        ),
        pytest.param(
            -1, 255, np.uint8, {"PhotometricInterpretation": "MONOCHROME1"}, id="white is zero"
        ),
        pytest.param(
            -257, 65535, np.uint16, {"PhotometricInterpretation": "MONOCHROME1"}, id="both"
        ),
        pytest.param(1, 0, np.uint8, {"compress": RLELossless}, id="RLE"),
        pytest.param(257, 0, np.uint16, {"compress": RLELossless}, id="RLE of 16 bits"),
    ],
)
def test_an_image_reads_the_same_however_it_is_stored(
    tmp_path: Path, grey: Grey8, scale: int, offset: int, dtype: type, tags: dict[str, Any]
) -> None:
    stored: npt.NDArray[Any] = (grey.astype(np.int64) * scale + offset).astype(dtype)
    path = save_dicom(tmp_path / "image.dcm", stored, **tags)
    np.testing.assert_allclose(_pixels(path), grey / 255.0, atol=1e-6)


def test_colour_and_palettes_are_reduced_to_luma(tmp_path: Path, grey: Grey8) -> None:
    colour = np.zeros((30, 20, 3), np.uint8)
    colour[10:] = (255, 0, 0)
    pixels = _pixels(save_dicom(tmp_path / "a.dcm", colour))
    assert pixels[20, 5] == pytest.approx(0.299)
    data = np.arange(0, 65536, 257, dtype=np.uint16)[::-1].tobytes()
    palette: dict[str, Any] = {
        f"{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", data))
    }
    path = save_dicom(
        tmp_path / "b.dcm", grey, PhotometricInterpretation="PALETTE COLOR", **palette
    )
    np.testing.assert_allclose(_pixels(path), 1.0 - grey / 255.0, atol=1e-6)


@pytest.mark.parametrize(
    ("tag", "sex"), [("M", "M"), ("F", "F"), ("f ", "F"), ("O", None), ("", None), (None, None)]
)
def test_the_patient_s_sex_is_read_where_it_is_m_or_f(
    tmp_path: Path, grey: Grey8, tag: str | None, sex: str | None
) -> None:
    tags = {} if tag is None else {"PatientSex": tag}
    assert read_radiograph(save_dicom(tmp_path / "a.dcm", grey, **tags)).header.sex == sex


def test_dicom_is_known_by_its_suffix_or_its_mark(tmp_path: Path, grey: Grey8) -> None:
    image = save_dicom(tmp_path / "1.2.840.99", grey)
    assert is_dicom(image)
    np.testing.assert_allclose(_pixels(image), grey / 255.0, atol=1e-6)
    assert is_dicom(tmp_path / "nowhere.DCM")
    (tmp_path / "text").write_text("DICM")
    assert not is_dicom(tmp_path / "text")


@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_without_preamble_and_header_is_read(
    tmp_path: Path, grey: Grey8, implicit: bool
) -> None:
    dataset = dcmread(save_dicom(tmp_path / "a.dcm", grey))
    bare = Dataset({element.tag: element for element in dataset})
    bare.save_as(tmp_path / "bare.dcm", implicit_vr=implicit, little_endian=True)
    assert b"DICM" not in (tmp_path / "bare.dcm").read_bytes()[:140]
    np.testing.assert_allclose(_pixels(tmp_path / "bare.dcm"), grey / 255.0, atol=1e-6)


def _refused(path: Path, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_radiograph(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    _refused(tmp_path / "gone.dcm", r"gone\.dcm does not exist\.$")


def test_the_first_of_several_frames_is_read_and_their_number_known(
    tmp_path: Path, grey: Grey8
) -> None:
    path = save_dicom(tmp_path / "a.dcm", np.tile(grey, (3, 1)), NumberOfFrames=3, Rows=30)
    image = read_radiograph(path, "never")
    np.testing.assert_array_equal(image.pixels, (grey / 255.0).astype(np.float32))
    assert image.header.frames == 3


def test_the_first_of_several_compressed_frames_is_read(tmp_path: Path, grey: Grey8) -> None:
    frames = np.concatenate([grey, grey[::-1]])
    path = save_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=2, Rows=30, compress=RLELossless)
    np.testing.assert_array_equal(_pixels(path), (grey / 255.0).astype(np.float32))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_jpeg_2000_image_is_decoded_and_its_size_checked(tmp_path: Path, depth: int) -> None:
    pytest.importorskip("openjpeg")
    grey = draw_hand()
    deep = grey if depth == 8 else grey.astype(np.uint16) * 257
    path = save_dicom(tmp_path / "a.dcm", deep, compress=JPEG2000Lossless)
    low, span = (0, 255) if depth == 8 else (grey.min(), np.ptp(grey))
    np.testing.assert_allclose(_pixels(path), (grey - float(low)) / float(span), atol=1e-6)
    dataset = dcmread(path)
    dataset.Rows = 161
    dataset.save_as(path)
    _refused(
        path, r"holds a compressed image of 160×120 pixels; expected 161×120, as its Rows and Co"
    )


def test_a_deflated_file_is_read_and_one_that_fills_the_memory_refused(
    tmp_path: Path, grey: Grey8, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_dicom(tmp_path / "a.dcm", grey)
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    np.testing.assert_array_equal(_pixels(path), (grey / 255.0).astype(np.float32))
    monkeypatch.setattr("boneage.imaging.dicom.MOST_INFLATED", 500)
    _refused(path, r"inflates to more than \d+ MiB; expected one radiograph\.$")


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("Rows", 0, r"declares 0×20 pixels; expected 1 or more a side"),
        ("Rows", 65535, r"declares 65535×65535 pixels; expected 50,000,000 or fewer\. Reduce it"),
        ("Columns", None, r"has no Columns \(0028,0011\); expected 1 or more\."),
        ("SamplesPerPixel", 2, r"SamplesPerPixel \(0028,0002\) is 2; expected 1 or 3"),
        ("BitsAllocated", 12, r"BitsAllocated \(0028,0100\) is 12; expected 1, 8, 16 or 32\. Exp"),
        ("BitsStored", 17, r"BitsStored \(0028,0101\) is 17; expected 1 to 8"),
        ("HighBit", 9, r"HighBit \(0028,0102\) is 9; expected 7 to 7"),
        ("PixelRepresentation", 2, r"PixelRepresentation \(0028,0103\) is 2; expected 0 or 1"),
        ("PhotometricInterpretation", "HSV", r"\(0028,0004\) is HSV; expected MONOCHROME1, MONOC"),
    ],
)
def test_a_tag_that_no_image_can_have_is_named(
    tmp_path: Path, grey: Grey8, tag: str, value: Any, message: str
) -> None:
    tags = {tag: value} | ({"Columns": 65535} if value == 65535 else {})
    _refused(save_dicom(tmp_path / "a.dcm", grey, **tags), message)


def test_white_is_zero_once_however_often_a_file_says_so(tmp_path: Path, grey: Grey8) -> None:
    tags = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    path = save_dicom(tmp_path / "a.dcm", 255 - grey, **tags)
    np.testing.assert_allclose(_pixels(path), grey / 255.0, atol=1e-6)
    path = save_dicom(tmp_path / "b.dcm", 255 - grey, PresentationLUTShape="INVERSE")
    np.testing.assert_allclose(_pixels(path), grey / 255.0, atol=1e-6)


def test_content_decides_and_not_the_name(tmp_path: Path, grey: Grey8) -> None:
    Image.fromarray(grey).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "picture.dcm")
    save_dicom(tmp_path / "b.dcm", grey).rename(tmp_path / "dicom.png")
    bare = dcmread(tmp_path / "dicom.png")
    for implicit in (True, False):
        dataset = Dataset({element.tag: element for element in bare})
        dataset.save_as(tmp_path / f"bare{implicit}", implicit_vr=implicit, little_endian=True)
    for name in ("picture.dcm", "dicom.png", "bareTrue", "bareFalse"):
        np.testing.assert_array_equal(_pixels(tmp_path / name), (grey / 255.0).astype(np.float32))


def test_padding_alone_shows_no_hand(tmp_path: Path, grey: Grey8) -> None:
    path = save_dicom(tmp_path / "a.dcm", grey * 0 + 7, PixelPaddingValue=7)
    _refused(path, r"holds nothing but padding; it shows no hand\.$")


def test_a_report_has_no_image(tmp_path: Path, grey: Grey8) -> None:
    dataset = dcmread(save_dicom(tmp_path / "a.dcm", grey))
    del dataset.PixelData
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    dataset.save_as(tmp_path / "a.dcm")
    _refused(tmp_path / "a.dcm", r"holds no image \(Basic Text SR Storage\); expected a radiogr")


@pytest.mark.parametrize("content", [b"", b"no DICOM at all, but rather longer text\n" * 9])
def test_a_file_that_is_no_dicom_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(content)
    _refused(tmp_path / "a.dcm", r"holds no image \(no DICOM file\)")


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("codec", [None, RLELossless])
def test_a_file_cut_short_is_refused(
    tmp_path: Path, grey: Grey8, codec: str | None, share: float
) -> None:
    path = save_dicom(tmp_path / "a.dcm", np.tile(grey, (5, 5)), compress=codec)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = "it is cut short" if codec else "bytes of pixel data is less than expected"
    _refused(path, rf"cannot be read as DICOM: .*{message}.*\.$")


def test_a_damaged_tag_of_the_pixels_is_no_more_than_an_unreadable_image(
    tmp_path: Path, grey: Grey8
) -> None:
    path = save_dicom(tmp_path / "a.dcm", grey)
    path.write_bytes(path.read_bytes().replace(b"\x28\x00\x04\x00CS", b"\x28\x00\x04\x00CQ"))
    _refused(path, "cannot be read as DICOM: Unknown Value Representation 'CQ'")


def test_a_codec_that_is_not_installed_is_named_with_the_remedy(
    tmp_path: Path, grey: Grey8
) -> None:
    _refused(
        _save_compressed(tmp_path / "a.dcm", grey, UID("1.2.840.10008.1.2.4.94")),
        r"compressed as JPIP Referenced \(1\.2\.840\.10008\.1\.2\.4\.94\), and no codec .*"
        r"installed; store it uncompressed\.$",
    )


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEGLossless])
def test_a_codec_that_the_extra_brings_is_named_with_it(
    tmp_path: Path, grey: Grey8, syntax: UID, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save_compressed(tmp_path / "a.dcm", grey, syntax)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", False)
    _refused(path, rf"\({syntax}\), and no codec .* pip install '\.\[dicom\]', or store it unc")


@pytest.mark.parametrize("syntax", [JPEGExtended12Bit, JPEG2000])
def test_what_a_codec_cannot_decode_is_named_with_its_syntax(
    tmp_path: Path, grey: Grey8, syntax: UID
) -> None:
    path = _save_compressed(tmp_path / "a.dcm", grey, syntax)
    _refused(
        path,
        rf"cannot be decoded as {re.escape(syntax.name)} \({syntax}\): .+\. If the file is "
        r"whole, pip install '\.\[dicom\]', or store it uncompressed\.$",
    )


def _save_compressed(path: Path, grey: Grey8, syntax: UID) -> Path:
    """Write an image that says it is compressed, and holds nothing of the kind."""
    dataset = dcmread(save_dicom(path, grey))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([b"compressed"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    return path


def test_a_compression_that_nobody_knows_is_refused(tmp_path: Path, grey: Grey8) -> None:
    path = _save_compressed(tmp_path / "a.dcm", grey, MPEG2MPML)
    _refused(path, r"compressed as MPEG2 .*no codec for it is installed")


def test_pixels_that_are_not_finite_are_refused(tmp_path: Path, grey: Grey8) -> None:
    path = save_dicom(tmp_path / "a.dcm", grey, RescaleSlope="1e308", RescaleIntercept="1e308")
    with np.errstate(over="ignore"):
        _refused(path, r"it holds pixels that are not finite numbers\.$")


def test_one_grey_value_shows_no_hand(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", np.full((30, 20), 9, np.uint8))
    assert dcmread(path).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    with pytest.raises(ImageError, match=r"a\.dcm has one grey value \(9\)"):
        read_radiograph(path)
