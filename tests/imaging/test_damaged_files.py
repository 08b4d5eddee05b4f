"""Damaged files of every kind: an image or one line of error, in little time and memory."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from pydicom.uid import RLELossless

from boneage.errors import ImageError
from boneage.imaging.discovery import holds_image
from boneage.imaging.radiograph import read_radiograph
from builders import draw_hand, save_dicom

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
"""Files that pydicom brings with it for its own tests."""

LARGEST_SAMPLE = 100_000

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the readers warn of what they then refuse
]


def _encode(kind: str, pixels: np.ndarray, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def _samples() -> Iterator[bytes]:
    for path in sorted(SAMPLES.rglob("*")):
        if path.is_file() and path.stat().st_size <= LARGEST_SAMPLE:
            yield path.read_bytes()


HAND = draw_hand(60, 80)
DEEP = HAND.astype(np.uint16) * 300
PICTURES = [
    _encode("PNG", HAND), _encode("PNG", DEEP), _encode("PNG", np.dstack([HAND] * 3)),
    _encode("JPEG", HAND), _encode("JPEG", HAND, progressive=True), _encode("BMP", HAND),
    _encode("TIFF", HAND), _encode("TIFF", DEEP, compression="tiff_lzw"),
    _encode("TIFF", DEEP.astype(np.float32)),
]  # fmt: skip


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """DICOM files with each kind of table and of padding."""
    folder = tmp_path_factory.mktemp("dicom")
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.add_new("LUTData", "OW", np.arange(4096, dtype=np.uint16).tobytes())
    tags = (
        {"WindowCenter": 9000, "WindowWidth": 9000, "RescaleSlope": "1", "RescaleIntercept": "0"},
        {"VOILUTSequence": [table], "ModalityLUTSequence": [table]},
        {"PixelPaddingValue": 3600, "ShutterShape": ["CIRCULAR", "POLYGONAL"],
         "CenterOfCircularShutter": [40, 30], "RadiusOfCircularShutter": 30,
         "VerticesOfThePolygonalShutter": [1, 1, 1, 60, 80, 30]},
        {"compress": RLELossless},
    )  # fmt: skip
    return [
        save_dicom(folder / f"{i}.dcm", DEEP, **each).read_bytes()  # type: ignore[arg-type]
        for i, each in enumerate(tags)
    ]


def _expect_image_or_one_line(content: bytes, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = read_radiograph(content, name=name)
        except ImageError as error:
            message = str(error)
        else:
            assert np.isfinite(image.pixels).all()
            return
    assert "\n" not in message
    assert message.startswith(name)


def _damage(data: st.DataObject, content: bytes) -> bytes:
    """Change some bytes of a file, most often of its beginning, and perhaps cut it short."""
    damaged = bytearray(content)
    end = data.draw(st.sampled_from([min(len(damaged), 800), len(damaged)]))
    places = st.integers(0, max(end - 1, 0))
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=12)):
        damaged[place] = byte
    return bytes(damaged[: data.draw(st.sampled_from([len(damaged), len(damaged) // 2, 150]))])


FUZZ = settings(
    max_examples=150,
    deadline=10_000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(data=st.data(), which=st.sampled_from(PICTURES))
def test_a_damaged_picture_is_an_image_or_an_error_in_one_line(
    data: st.DataObject, which: bytes
) -> None:
    _expect_image_or_one_line(_damage(data, which), "7.png")


@FUZZ
@given(data=st.data())
def test_a_damaged_radiograph_is_an_image_or_an_error_in_one_line(
    radiographs: list[bytes], data: st.DataObject
) -> None:
    content = data.draw(st.sampled_from(radiographs))
    _expect_image_or_one_line(_damage(data, content), "7.dcm")


@FUZZ
@given(data=st.data(), which=st.sampled_from(list(_samples())))
def test_a_damaged_sample_is_an_image_or_an_error_in_one_line(
    data: st.DataObject, which: bytes
) -> None:
    _expect_image_or_one_line(_damage(data, which), "7.dcm")


def test_every_sample_is_an_image_or_an_error_in_one_line(tmp_path: Path) -> None:
    for i, content in enumerate(_samples()):
        _expect_image_or_one_line(content, f"{i}.dcm")
        (tmp_path / f"{i}.dcm").write_bytes(content)
        assert holds_image(tmp_path / f"{i}.dcm") in (True, False)
