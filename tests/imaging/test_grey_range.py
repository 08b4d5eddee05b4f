from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from boneage.imaging.grey_range import Levels, count_levels, find_range
from boneage.imaging.radiograph import Radiograph, read_radiograph
from builders import draw_hand, save_dicom, save_pixels

HAND = draw_hand().astype(np.uint16) * 16
Deep = npt.NDArray[Any]


def _plain(hand: Deep) -> Deep:
    return (hand - float(hand.min())) / float(np.ptp(hand))


def _draw(kind: str) -> npt.NDArray[np.bool_]:
    marks = np.zeros(HAND.shape, np.bool_)
    if kind.startswith("strip"):
        marks[:, : int(float(kind.split()[1]) * HAND.shape[1])] = True
    elif kind == "frame":
        marks[:6], marks[-6:], marks[:, :6], marks[:, -6:] = True, True, True, True
    else:
        image = Image.new("1", HAND.shape[::-1])
        ImageDraw.Draw(image).text((4, 4), "LEFT 12", fill=1)
        marks = np.array(image)
    return marks


@pytest.mark.parametrize(
    "kind", ["strip 0.02", "strip 0.08", "strip 0.25", "strip 0.5", "frame", "text"]
)
@pytest.mark.parametrize(
    ("value", "offset", "suffix", "dtype"),
    [
        (65535, 0, "png", np.uint16),
        (65535, 0, "tif", np.uint16),
        (0, 30000, "png", np.uint16),
        (2**31 - 1, 0, "tif", np.int32),
        (-(2**31), 0, "tif", np.int32),
        (1e6, 0, "tif", np.float32),
        (-1e6, 0, "tif", np.float32),
        (65535, 0, "dcm", np.uint16),
        (-32768, 0, "dcm", np.int16),
    ],
)
def test_marks_far_from_the_image_are_left_out(
    tmp_path: Path, kind: str, value: float, offset: int, suffix: str, dtype: Any
) -> None:
    marks = _draw(kind)
    hand = HAND.astype(np.int64) + offset
    pixels = np.where(marks, value, hand).astype(dtype)
    path = tmp_path / f"image.{suffix}"
    save = save_dicom if suffix == "dcm" else save_pixels
    image = read_radiograph(save(path, pixels), "never")
    np.testing.assert_allclose(image.pixels[~marks], _plain(hand[~marks]), atol=1e-5)
    if kind != "text":
        assert (image.pixels[marks] == 0.0).all()
        assert [note.code for note in image.notes] == ["marks_left_out"]
        assert f"{marks.mean():.1%} of the image are a strip" in image.notes[0].message


def test_letters_with_smooth_edges_are_left_out() -> None:
    hand = draw_hand(480, 640).astype(np.uint16) * 16
    marks = Image.new("F", (960, 1280))
    ImageDraw.Draw(marks).text((40, 40), "LEFT HAND", fill=1.0, font_size=120)
    smooth = np.asarray(marks.resize((480, 640), Image.Resampling.BOX))
    image = read_radiograph((hand + smooth * (65535.0 - hand)).astype(np.uint16), "never")
    is_clean = smooth == 0
    found, plain = image.pixels[is_clean], _plain(hand)[is_clean]
    assert np.corrcoef(found, plain)[0, 1] > 0.9999
    assert found.max() > 0.4


def test_strips_at_both_ends_are_left_out() -> None:
    pixels = HAND + np.uint16(20000)
    pixels[:10], pixels[-10:] = 0, 65535
    image = read_radiograph(pixels, "never")
    np.testing.assert_allclose(image.pixels[10:-10], _plain(HAND[10:-10]), atol=1e-5)
    assert "below 10" in image.notes[0].message
    assert "above 4" in image.notes[0].message


def test_what_is_cut_off_at_the_end_of_its_range_is_no_mark() -> None:
    for pixels in (np.minimum(HAND, 2000), np.maximum(HAND, 1000), HAND):
        image = read_radiograph(pixels, "never")
        assert not image.notes
        np.testing.assert_allclose(image.pixels, _plain(pixels), atol=1e-6)


def test_8_bits_keep_their_scale_beside_a_strip() -> None:
    pixels = (HAND // 64).astype(np.uint8)
    pixels[:, :10] = 255
    image = read_radiograph(pixels, "never")
    np.testing.assert_array_equal(image.pixels, (pixels / 255.0).astype(np.float32))
    assert not image.notes


def test_an_image_of_two_greys_is_no_mark_beside_another() -> None:
    pixels = np.zeros((60, 60), np.uint16)
    pixels[:, :9] = 60000
    image: Radiograph = read_radiograph(pixels, "never")
    assert not image.notes
    assert image.pixels[:, :9].min() == 1.0


def test_a_range_is_that_of_the_image_but_for_a_few_far_values() -> None:
    even = np.arange(1000)
    assert find_range(count_levels(even)) == (0.0, 999.0)
    few = np.append(even, [60000, -60000])
    low, high = find_range(count_levels(few))
    assert -1000 < low < 0
    assert 999 < high < 2000
    assert find_range(Levels(np.array([3, 9]), np.array([1, 9999]))) == (3.0, 9.0)


def test_levels_are_counted_without_what_is_left_out() -> None:
    grey = np.array([[5, 5, 7], [9, 5, 7]], np.int16)
    assert [part.tolist() for part in count_levels(grey)] == [[5, 7, 9], [3, 2, 1]]
    left_out = grey == 7
    assert [part.tolist() for part in count_levels(grey, left_out)] == [[5, 9], [3, 1]]
    assert [part.tolist() for part in count_levels(grey * 1.5)] == [[7.5, 10.5, 13.5], [3, 2, 1]]
