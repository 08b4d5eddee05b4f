from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import boneage.imaging.overlay
from boneage.imaging.overlay import (
    CAPTION_HEIGHT,
    HIGHER,
    LARGEST_SIDE,
    LOWER,
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
def test_a_picture_has_the_image_s_size_within_limits_above_its_caption(
    size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    picture = draw_overlay(Image.new("L", size, 50), np.ones((3, 3)), "11.0 years")
    assert (picture.mode, picture.size) == ("RGB", (drawn[0], drawn[1] + CAPTION_HEIGHT))
    assert drawn[0] <= LARGEST_SIDE


def test_evidence_for_and_against_a_higher_age_has_two_colours() -> None:
    saliency = np.zeros((4, 4))
    saliency[0, 0], saliency[3, 3] = 2.0, -2.0
    radiograph = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1)))
    picture = colour_image(radiograph, saliency)
    assert (picture.mode, picture.size) == ("RGB", radiograph.size)
    colours = np.asarray(picture, float)
    red_less_blue = colours[..., 0] - colours[..., 2]
    assert red_less_blue[5, 5] > 100
    assert red_less_blue[195, 195] < -100
    np.testing.assert_array_equal(colours[10, 190], [190, 190, 190])


def test_weak_evidence_is_pale_beside_strong_evidence_of_the_other_kind() -> None:
    saliency = np.zeros((4, 4))
    saliency[0, 0], saliency[3, 3] = 0.1, -2.0
    colours = np.asarray(colour_image(Image.new("L", (200, 200), 100), saliency), float)
    assert np.abs(colours[5, 5] - 100).max() < 15
    assert np.abs(colours[195, 195] - 100).max() > 50


def test_the_amount_of_the_strongest_evidence_does_not_change_its_colour() -> None:
    saliency = np.diag([1.0, -2.0, 0.0])
    radiograph = Image.new("L", (200, 200), 100)
    np.testing.assert_array_equal(
        np.asarray(colour_image(radiograph, saliency)),
        np.asarray(colour_image(radiograph, 40.0 * saliency)),
    )


def test_an_empty_map_leaves_the_image_as_it_is() -> None:
    picture = np.asarray(colour_image(Image.new("L", (200, 200), 100), np.zeros((3, 3))))
    assert (picture == 100).all()


def test_a_picture_says_what_it_shows() -> None:
    for size in ((600, 200), (100, 100)):
        title = "11.0 years (9.3 to 12.6), Child"
        picture = np.asarray(draw_overlay(Image.new("L", size, 100), np.zeros((3, 3)), title))
        caption = picture[-CAPTION_HEIGHT:]
        assert (caption > 200).any()
        for colour in (HIGHER, LOWER):
            assert (caption == colour).all(axis=2).sum() == 100
        assert not caption[:, -4:].any()  # nothing is cut off


def test_a_picture_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    radiograph, saliency = Image.new("L", (80, 60), 100), np.ones((3, 3))
    path = tmp_path / "maps" / "7.png"
    save_overlay(path, radiograph, saliency, "11.0 years")
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (256, 192 + CAPTION_HEIGHT))

    def cut_off(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(boneage.imaging.overlay, "draw_overlay", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_overlay(tmp_path / "maps" / "8.png", radiograph, saliency, "11.0 years")
    assert [p.name for p in path.parent.iterdir()] == ["7.png"]
