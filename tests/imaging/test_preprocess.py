import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from boneage.config import Padding, Recipe
from boneage.errors import ConfigError, ImageError
from boneage.imaging.geometry import Affine
from boneage.imaging.preprocess import (
    Preprocessing,
    TestTimeAugmentation,
    resize,
    stretch_grey,
)
from builders import UNCHANGED, draw_hand, make_radiograph, write_hands

Grey8 = npt.NDArray[np.uint8]
Images = dict[str, Path]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Three images of different sizes."""
    return write_hands(tmp_path / "raw")


def test_serving_leaves_the_size_of_an_image_that_training_read_raw(images: Images) -> None:
    served = Preprocessing(image_size=24, stored_size=None, invert="never").read(images["7"])
    np.testing.assert_array_equal(np.asarray(served), np.asarray(Image.open(images["7"])))


def test_serving_names_an_image_that_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png does not exist"):
        Preprocessing(image_size=24, stored_size=32, invert="auto").read(tmp_path / "gone.png")


def test_resizing_averages_over_fine_detail() -> None:
    checks = Image.fromarray((np.indices((128, 128)).sum(axis=0) % 2 * 200).astype(np.uint8))
    np.testing.assert_allclose(np.asarray(resize(checks, 16), dtype=float), 100.0, atol=2)


def test_stretching_takes_the_first_percentile_for_black_and_the_last_for_white() -> None:
    source = np.linspace(60, 160, 10_000).astype(np.uint8).reshape(100, 100)
    grey = np.asarray(stretch_grey(Image.fromarray(source)))
    assert (grey.min(), grey.max()) == (0, 255)
    assert (grey == 0).mean() == pytest.approx(0.015, abs=0.01)
    assert int(grey[50, 50]) == pytest.approx(127, abs=3)
    assert (np.diff(grey.astype(int).ravel()) >= 0).all()


def test_a_faint_exposure_of_an_image_is_stretched_to_the_same_greys() -> None:
    source = np.linspace(0, 255, 10_000).reshape(100, 100)
    whole, faint = (
        np.asarray(stretch_grey(Image.fromarray(f.astype(np.uint8))), float)
        for f in (source, source / 2 + 40)
    )
    np.testing.assert_allclose(whole, faint, atol=4)


def test_what_lies_beside_the_hand_does_not_count_for_stretching() -> None:
    source = np.linspace(60, 160, 10_000).astype(np.uint8).reshape(100, 100)
    source[:30] = 255  # a bright plate
    outline = Image.new("L", (100, 100), 255)
    outline.paste(0, (0, 0, 100, 30))
    image = Image.fromarray(source)
    plain, inside = (np.asarray(stretch_grey(image, o)) for o in (None, outline))
    assert np.ptp(plain[30:].astype(int)) < 160
    assert np.ptp(inside[30:].astype(int)) == 255
    assert (inside[:30] == 255).all()
    nothing = Image.new("L", (100, 100), 0)
    np.testing.assert_array_equal(np.asarray(stretch_grey(image, nothing)), plain)
    view = image.copy()
    view.putalpha(outline)
    served = Preprocessing(100, None, "never", stretch_grey=True).to_array(view)
    np.testing.assert_allclose(served, inside / np.float32(255), atol=1e-6)


def test_an_image_without_contrast_is_not_stretched() -> None:
    source = np.full((50, 50), 90, np.uint8)
    source[0, 0] = 200
    np.testing.assert_array_equal(np.asarray(stretch_grey(Image.fromarray(source))), source)


def test_the_network_s_image_is_stretched_only_on_request() -> None:
    source = Image.fromarray(draw_hand(32, 32) // 2)
    plain = Preprocessing(24, None, "never").to_array(source)
    stretched = Preprocessing(24, None, "never", stretch_grey=True).to_array(source)
    assert plain.shape == stretched.shape == (24, 24)
    assert plain.dtype == stretched.dtype == np.float32
    assert plain.max() < 0.5
    assert stretched.max() > 0.9


def test_a_reduced_image_of_the_network_s_size_is_not_resized_again() -> None:
    source = Image.fromarray(draw_hand(24, 24))
    image = Preprocessing(24, None, "never").to_array(source)
    np.testing.assert_array_equal(image, np.asarray(source, dtype=np.float32) / 255.0)


def test_a_recipe_decides_which_views_are_averaged() -> None:
    plain = Preprocessing.of(Recipe(), 64)
    assert plain.tta == TestTimeAugmentation()
    recipe = Recipe(tta_mirror=True, tta_zoom=0.07)
    assert Preprocessing.of(recipe, 64).tta == TestTimeAugmentation(True, 0.07)


def test_a_preprocessing_comes_back_from_its_values() -> None:
    recipe = Recipe(tta_mirror=True, tta_zoom=0.07, crop="hand", stretch_grey=True)
    preprocessing = Preprocessing.of(recipe, None)
    assert Preprocessing.from_values(json.loads(json.dumps(asdict(preprocessing)))) == preprocessing


@pytest.mark.parametrize(("stored_size", "height"), [(None, 24), (32, 32)])
def test_a_view_is_rendered_at_the_size_at_which_it_is_used(
    stored_size: int | None, height: int
) -> None:
    preprocessing = Preprocessing(24, stored_size, "never", crop="hand")
    shown = preprocessing.show(Image.new("L", (90, 90), 70), UNCHANGED)
    assert shown.size == (height, height)
    assert preprocessing.reduce(shown).size == (height, height)


def test_views_of_hands_are_not_read_without_finding_hands() -> None:
    with pytest.raises(ConfigError, match="make_reader"):
        Preprocessing(24, None, "never", crop="hand").prepare(make_radiograph(50, 50))


@pytest.mark.parametrize(("padding", "grey"), [("edge", 70), ("black", 0)])
def test_the_padding_fills_what_lies_outside_the_image(padding: Padding, grey: int) -> None:
    preprocessing = Preprocessing(24, None, "never", crop="hand", padding=padding)
    far = Affine(np.array([[1.0, 0.0, -500.0], [0.0, 1.0, -500.0]]))
    image = Image.new("L", (90, 90), 70)
    shown = preprocessing.show(image, far)
    assert shown.getextrema() == (grey, grey)
