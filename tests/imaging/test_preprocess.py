import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from boneage.config import Crop, Padding, Recipe
from boneage.errors import ConfigError, ImageError
from boneage.imaging.geometry import RSNA_VIEW, Affine
from boneage.imaging.preprocess import (
    Preprocessing,
    TestTimeAugmentation,
    resize,
    sample,
    sampling_phases,
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


@pytest.mark.parametrize(
    "shape", [(160, 120), (101, 257), (1777, 1331), (64, 63), (30, 45), (32, 500)]
)
@pytest.mark.parametrize("size", [32, 49])
def test_a_sample_is_pillow_s_nearest_neighbour_exactly(shape: tuple[int, int], size: int) -> None:
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
    nearest = source.resize((size, size), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.asarray(sample(source, size)), np.asarray(nearest))


@pytest.mark.parametrize("shape", [(96, 96), (101, 257), (33, 34)])
@pytest.mark.parametrize("phase", [(-0.375, 0.125), (0.375, -0.125), (-0.5, -0.5), (0.49, 0.49)])
def test_other_phases_are_other_samples_of_the_same_image(
    shape: tuple[int, int], phase: tuple[float, float]
) -> None:
    rows, columns = np.indices(shape)
    found = []
    for index, shift in ((rows, phase[0]), (columns, phase[1])):
        source = Image.fromarray((index + 1).astype(np.int32))
        picked = np.asarray(sample(source, 32, phase)) - 1
        axis = 0 if index is rows else 1
        cell = shape[axis] / 32
        expected = np.floor((np.arange(32) + 0.5 + shift) * cell).astype(int)
        line = picked[:, 0] if axis == 0 else picked[0]
        assert np.abs(line - expected).max() <= 1
        assert line.min() >= 0
        found.append(line)
    middle = np.asarray(sample(Image.fromarray((rows * shape[1] + columns).astype(np.int32)), 32))
    assert (found[0][:, None] * shape[1] + found[1] != middle).any()


def test_an_image_of_the_size_is_its_own_sample() -> None:
    source = Image.fromarray(draw_hand(32, 32))
    for phase in ((0.0, 0.0), (0.375, -0.375)):
        np.testing.assert_array_equal(np.asarray(sample(source, 32, phase)), np.asarray(source))


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


def test_eight_phases_are_those_that_the_model_in_the_package_was_measured_with() -> None:
    columns = (1, 4, 7, 2, 5, 0, 3, 6)
    expected = [((i + 0.5) / 8 - 0.5, (c + 0.5) / 8 - 0.5) for i, c in enumerate(columns)]
    assert list(sampling_phases(8)) == expected


@pytest.mark.parametrize("n", range(1, 17))
def test_phases_share_no_row_and_no_column(n: int) -> None:
    phases = np.array(sampling_phases(n))
    cells = np.rint((phases + 0.5) * n - 0.5).astype(int)
    np.testing.assert_allclose(phases, (cells + 0.5) / n - 0.5)
    for axis in (0, 1):
        assert sorted(cells[:, axis]) == list(range(n))
    assert n > 1 or sampling_phases(n) == ((0.0, 0.0),)


def test_inputs_are_one_for_each_phase_unless_there_is_nothing_to_sample() -> None:
    tta = TestTimeAugmentation(phases=3)
    sampled = Preprocessing(24, None, "never", 32, tta=tta)
    whole, sample_of_it = Image.fromarray(draw_hand()), sample(Image.fromarray(draw_hand()), 32)
    inputs = sampled.to_inputs(whole)
    assert inputs.shape == (3, 24, 24)
    for found, phase in zip(inputs, sampling_phases(3), strict=True):
        np.testing.assert_array_equal(found, sampled.to_array(sampled.reduce(whole, phase)))
    assert len(sampled.to_inputs(sample_of_it)) == 1
    assert len(Preprocessing(24, 32, "never", tta=tta).to_inputs(whole)) == 1


def test_a_recipe_decides_which_views_are_averaged() -> None:
    plain = Preprocessing.of(Recipe(), 64)
    assert plain.tta == TestTimeAugmentation()
    recipe = Recipe(tta_mirror=True, tta_zoom=0.07, sampled_size=100)
    assert Preprocessing.of(recipe, None).tta == TestTimeAugmentation(True, 0.07, 8)


def test_a_preprocessing_comes_back_from_its_values() -> None:
    recipe = Recipe(tta_mirror=True, tta_zoom=0.07, sampled_size=100, stretch_grey=True)
    preprocessing = Preprocessing.of(recipe, None)
    assert Preprocessing.from_values(json.loads(json.dumps(asdict(preprocessing)))) == preprocessing


@pytest.mark.parametrize(
    ("crop", "is_usual", "is_in_view"),
    [("none", False, False), ("unusual", True, False), ("unusual", False, True),
     ("hand", True, True)],
)  # fmt: skip
def test_the_rule_of_the_crop_decides_what_is_shown_in_a_view(
    crop: Crop, is_usual: bool, is_in_view: bool
) -> None:
    preprocessing = Preprocessing(24, None, "never", crop=crop, view=RSNA_VIEW)
    size = RSNA_VIEW.size(300)
    placement = RSNA_VIEW.frame(300)
    if not is_usual:
        placement = Affine.scaling(0.5, 0.5).after(placement)
    assert preprocessing.needs_view(placement, size) == is_in_view


@pytest.mark.parametrize(
    ("stored_size", "sampled_size", "height"), [(None, None, 24), (32, None, 32), (None, 20, 640)]
)
def test_a_view_is_rendered_at_the_size_at_which_it_is_used(
    stored_size: int | None, sampled_size: int | None, height: int
) -> None:
    preprocessing = Preprocessing(24, stored_size, "never", sampled_size, crop="hand")
    shown = preprocessing.show(Image.new("L", (90, 90), 70), UNCHANGED)
    assert shown.size == (height, height)
    assert preprocessing.reduce(shown).size == ((sampled_size or height),) * 2


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
