from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from boneage.imaging.radiograph import Radiograph, read_radiograph
from builders import draw_hand, save_dicom

HAND = draw_hand().astype(np.uint16) * 16
HEIGHT, WIDTH = HAND.shape
RECTANGLE = {"ShutterLeftVerticalEdge": 11, "ShutterRightVerticalEdge": WIDTH - 10,
             "ShutterUpperHorizontalEdge": 21, "ShutterLowerHorizontalEdge": HEIGHT}  # fmt: skip
CIRCLE = {"CenterOfCircularShutter": [80, 60], "RadiusOfCircularShutter": 70}
POLYGON = {
    "VerticesOfThePolygonalShutter": [21, 11, 21, WIDTH - 10, HEIGHT, WIDTH - 10, HEIGHT, 11]
}


def _read(folder: Path, covered: npt.NDArray[np.bool_], **tags: Any) -> Radiograph:
    pixels = np.where(covered, 60000, HAND).astype(np.uint16)
    return read_radiograph(save_dicom(folder / "a.dcm", pixels, **tags), "never")


def _rectangle() -> npt.NDArray[np.bool_]:
    covered = np.ones(HAND.shape, np.bool_)
    covered[20:, 10 : WIDTH - 10] = False
    return covered


def _circle() -> npt.NDArray[np.bool_]:
    row, column = np.indices(HAND.shape) + 1
    return np.asarray((row - 80) ** 2 + (column - 60) ** 2 > 70**2)


@pytest.mark.parametrize(
    ("shape", "tags", "covered", "name"),
    [
        ("RECTANGULAR", RECTANGLE, _rectangle(), "rectangular"),
        ("CIRCULAR", CIRCLE, _circle(), "circular"),
        ("POLYGONAL", POLYGON, _rectangle(), "polygonal"),
        (["RECTANGULAR", "CIRCULAR"], RECTANGLE | CIRCLE, _rectangle() | _circle(),
         "rectangular and circular"),
    ],
)  # fmt: skip
def test_what_a_shutter_covers_is_left_out(
    tmp_path: Path, shape: Any, tags: dict[str, Any], covered: npt.NDArray[np.bool_], name: str
) -> None:
    image = _read(tmp_path, covered, ShutterShape=shape, **tags)
    hand = HAND[~covered].astype(np.float64)
    np.testing.assert_allclose(
        image.pixels[~covered], (hand - hand.min()) / np.ptp(hand), atol=1e-5
    )
    assert (image.pixels[covered] == 0.0).all()
    ((code, message),) = image.notes
    assert code == "padding_left_out"
    assert message.endswith(f"of the image are covered by a {name} shutter: left out")


def test_a_bitmap_covers_what_its_overlay_marks(tmp_path: Path) -> None:
    covered = _rectangle()
    plane = np.packbits(covered.ravel(), bitorder="little").tobytes()
    path = save_dicom(
        tmp_path / "a.dcm",
        np.where(covered, 60000, HAND).astype(np.uint16),
        ShutterShape="BITMAP",
        ShutterOverlayGroup=0x6000,
    )
    from pydicom import dcmread

    dataset = dcmread(path)
    for element, vr, value in (
        (0x10, "US", HEIGHT), (0x11, "US", WIDTH), (0x40, "CS", "G"), (0x50, "SS", [1, 1]),
        (0x100, "US", 1), (0x102, "US", 0), (0x3000, "OW", plane),
    ):  # fmt: skip
        dataset.add_new(0x60000000 + element, vr, value)
    dataset.save_as(path)
    image = read_radiograph(path, "never")
    assert (image.pixels[covered] == 0.0).all()
    assert image.pixels[~covered].max() == 1.0


def test_a_shutter_over_all_of_the_image_is_not_believed(tmp_path: Path) -> None:
    tags = {"CenterOfCircularShutter": [9000, 9000], "RadiusOfCircularShutter": 5}
    image = _read(tmp_path, np.zeros(HAND.shape, np.bool_), ShutterShape="CIRCULAR", **tags)
    assert [note.code for note in image.notes] == ["shutter_ignored"]
    assert image.notes[0].message.endswith("covers 100.0% of the image: not applied")
    assert image.pixels.max() == 1.0


@pytest.mark.parametrize("shape", ["RECTANGULAR", "CIRCULAR", "POLYGONAL", "BITMAP", "OVAL"])
def test_a_shutter_without_edges_covers_nothing(tmp_path: Path, shape: str) -> None:
    assert not _read(tmp_path, np.zeros(HAND.shape, np.bool_), ShutterShape=shape).notes
