from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import boneage.imaging.overlay
from boneage.imaging.overlay import (
    LARGEST_SIDE,
    colour_image,
    draw_overlay,
    save_overlay,
    stretch_map,
)


def test_a_map_is_stretched_smoothly_over_its_image() -> None:
    stretched = stretch_map(np.array([[0.0, 1.0], [0.0, 0.0]]), (60, 40))
    assert stretched.shape == (40, 60)
    assert (stretched.min(), stretched.max()) == (0.0, 1.0)
    assert stretched[0, -1] > 0.9
    assert stretched[-1, 0] < 0.1
    assert np.abs(np.diff(stretched, axis=1)).max() < 0.1


@pytest.mark.parametrize(
    ("size", "drawn"), [((300, 200), (300, 200)), ((4096, 1000), (1024, 250)), ((5, 2), (256, 102))]
)
def test_a_picture_has_the_image_s_size_within_limits(
    size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    picture = draw_overlay(Image.new("L", size, 50), np.ones((3, 3)))
    assert (picture.mode, picture.size) == ("RGB", drawn)
    assert max(picture.size) <= LARGEST_SIDE


def test_a_part_that_speaks_for_age_is_coloured_and_the_rest_stays_grey() -> None:
    age_map = np.full((4, 4), -3.0)
    age_map[0, 0] = 2.0
    picture = np.asarray(draw_overlay(Image.new("L", (400, 400), 100), age_map), float)
    assert picture[0, 0].min() > 150
    assert picture[60, 60, 0] > picture[60, 60, 2] + 30
    np.testing.assert_array_equal(picture[200, 350], [100, 100, 100])


def test_an_image_is_coloured_at_its_own_size_and_without_a_word() -> None:
    radiograph = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (150, 1)))
    age_map = np.zeros((3, 4))
    age_map[0, 0] = 0.1
    picture = colour_image(radiograph, age_map)
    assert (picture.mode, picture.size) == ("RGB", radiograph.size)
    colours = np.asarray(picture, float)
    assert (colours[..., 0] - colours[..., 2]).max() > 50
    np.testing.assert_array_equal(colours[100:], np.asarray(radiograph)[100:, :, None].repeat(3, 2))
    unmarked = np.asarray(colour_image(radiograph, -age_map))
    np.testing.assert_array_equal(unmarked, np.asarray(radiograph)[..., None].repeat(3, 2))


def test_the_strongest_evidence_is_of_one_colour_whatever_its_amount() -> None:
    age_map = np.diag([1.0, 2.0, 0.0])
    radiograph = Image.new("L", (200, 200), 100)
    np.testing.assert_array_equal(
        np.asarray(draw_overlay(radiograph, age_map)),
        np.asarray(draw_overlay(radiograph, 40.0 * age_map)),
    )


def test_a_map_without_evidence_for_age_leaves_the_image_as_it_is() -> None:
    picture = np.asarray(draw_overlay(Image.new("L", (200, 200), 100), -np.ones((3, 3))))
    assert (picture[:150] == 100).all()


def test_a_picture_says_what_it_shows() -> None:
    for size in ((600, 200), (100, 100)):
        picture = np.asarray(draw_overlay(Image.new("L", size, 100), np.zeros((3, 3))))
        note = (picture != 100).any(axis=(0, 2))
        assert picture[-32:].max() > 250
        assert (picture[-32:] == 0).any()
        assert not note[-4:].any()  # nothing is cut off


def test_a_picture_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    radiograph, age_map = Image.new("L", (80, 60), 100), np.ones((3, 3))
    path = tmp_path / "maps" / "7.png"
    save_overlay(path, radiograph, age_map)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (256, 192))

    def cut_off(radiograph: object, age_map: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(boneage.imaging.overlay, "draw_overlay", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_overlay(tmp_path / "maps" / "8.png", radiograph, age_map)
    assert [p.name for p in path.parent.iterdir()] == ["7.png"]
