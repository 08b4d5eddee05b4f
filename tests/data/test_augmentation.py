"""Augmentation: the same for a row alone and in any batch, within the limits of the options."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from boneage.config import Recipe
from boneage.data.augmentation import Augmentation, move, vary
from boneage.data.dataset import BoneAgeDataset, get_transforms, normalise
from boneage.imaging.preprocess import Preprocessing, resize

EVERYTHING = Recipe(
    image_size=40,
    rotation=20.0,
    zoom=0.15,
    shift=0.08,
    brightness=0.3,
    stretch=0.1,
)
NOTHING = Recipe(image_size=40, rotation=0.0, horizontal_flip=False)
ROWS = list(range(12))


def make_images(n: int = len(ROWS), height: int = 40, width: int = 40) -> torch.Tensor:
    return torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(0))


def draw(recipe: Recipe, n: int = 400) -> Augmentation:
    return Augmentation.of_rows(recipe, 0, 1, range(n))


def make(**values: Any) -> Augmentation:
    """One image's augmentation, nothing of it changed but the values given."""
    still = Augmentation.of_rows(NOTHING, 0, 0, [0])
    return replace(still, **{name: torch.tensor([value]) for name, value in values.items()})


def test_a_row_gets_the_same_alone_and_in_any_batch_to_the_bit() -> None:
    images = make_images()
    batch = Augmentation.of_rows(EVERYTHING, 3, 2, ROWS)
    varied = vary(images, batch)
    order = [7, 2, 11, 0]
    part = Augmentation.of_rows(EVERYTHING, 3, 2, order)
    assert torch.equal(vary(images[order], part), varied[order])
    for row in ROWS:
        alone = Augmentation.of_rows(EVERYTHING, 3, 2, [row])
        assert torch.equal(vary(images[[row]], alone), varied[[row]])


def test_a_batch_gets_what_the_data_set_gives_each_of_its_rows(samples: pd.DataFrame) -> None:
    raw = Preprocessing(image_size=40, stored_size=None, invert="never")
    data = BoneAgeDataset(samples.head(6), get_transforms("train", EVERYTHING), raw, seed=5)
    data.epoch = 4
    squares = [np.asarray(resize(data.read_image(row), 40), np.float32) / 255 for row in range(6)]
    images = torch.from_numpy(np.stack(squares))[:, None]
    expected = normalise(vary(images, Augmentation.of_rows(EVERYTHING, 5, 4, range(6))))
    for row in range(6):
        assert torch.equal(data[row]["image"], expected[row])


@pytest.mark.parametrize(("seed", "epoch", "row"), [(4, 2, 5), (3, 1, 5), (3, 2, 6)])
def test_another_seed_epoch_or_row_is_augmented_otherwise(seed: int, epoch: int, row: int) -> None:
    one = Augmentation.of_rows(EVERYTHING, 3, 2, [5])
    other = Augmentation.of_rows(EVERYTHING, seed, epoch, [row])
    assert one.rotation != other.rotation
    assert one.brightness != other.brightness


def test_parameters_fill_the_ranges_of_the_options() -> None:
    drawn = draw(EVERYTHING)
    for name, low, high in (
        ("rotation", -20.0, 20.0), ("zoom", 0.85, 1.15), ("shift_right", -0.08, 0.08),
        ("shift_down", -0.08, 0.08), ("brightness", 0.7, 1.0), ("contrast", 0.7, 1.0),
    ):  # fmt: skip
        values = getattr(drawn, name)
        tolerance = 0.03 * (high - low)
        assert low - 1e-6 <= values.min() <= low + tolerance, name
        assert high - tolerance <= values.max() <= high + 1e-6, name
        assert values.mean() == pytest.approx((low + high) / 2, abs=3 * tolerance), name
    assert drawn.is_mirrored.float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_parameters_vary_independently() -> None:
    drawn = draw(EVERYTHING)
    values = torch.stack([getattr(drawn, field.name).float() for field in fields(drawn)])
    correlation = torch.corrcoef(values) - torch.eye(len(values))
    assert correlation.abs().max() < 0.2


def test_one_option_does_not_change_what_another_draws() -> None:
    plain, more = draw(NOTHING), draw(replace(NOTHING, brightness=0.5))
    for name in ("rotation", "zoom", "shift_right", "is_mirrored"):
        assert torch.equal(getattr(plain, name), getattr(more, name))
    rotated = draw(replace(EVERYTHING, brightness=0.0))
    assert torch.equal(rotated.rotation, draw(EVERYTHING).rotation)


def test_without_options_images_keep_their_pixels_to_the_bit() -> None:
    images, drawn = make_images(), Augmentation.of_rows(NOTHING, 0, 0, ROWS)
    assert torch.equal(vary(images, drawn), images)


def test_a_mirrored_image_is_the_mirror_image() -> None:
    image = make_images(1)
    torch.testing.assert_close(vary(image, make(is_mirrored=True)), image.flip(3))


def test_a_positive_rotation_is_counter_clockwise() -> None:
    image = make_images(1)
    rotated = vary(image, make(rotation=90.0))
    torch.testing.assert_close(rotated, torch.rot90(image, 1, (2, 3)), rtol=0, atol=1e-4)


def test_rotation_keeps_the_proportions_of_an_image_that_is_not_square() -> None:
    image = make_images(1, height=60, width=30)
    rotated = move(image, make(rotation=90.0))
    middle = torch.rot90(image[:, :, 15:45], 1, (2, 3))
    torch.testing.assert_close(rotated[:, :, 15:45], middle, rtol=0, atol=1e-4)
    assert rotated[:, :, :14].max() < 1e-4  # nothing comes in from outside the image


def test_shifts_are_to_the_right_and_down_and_bring_in_black() -> None:
    image = make_images(1)
    shifted = vary(image, make(shift_right=0.25, shift_down=0.1))
    torch.testing.assert_close(shifted[:, :, 4:, 10:], image[:, :, :-4, :-10], rtol=0, atol=1e-4)
    assert shifted[:, :, :4].max() < 1e-4
    assert shifted[:, :, :, :10].max() < 1e-4


def test_zoom_magnifies_about_the_middle() -> None:
    image = torch.zeros(1, 1, 40, 40)
    image[:, :, 15:25, 10:30] = 1.0
    zoomed = vary(image, make(zoom=1.4))[0, 0] > 0.5
    assert zoomed.any(dim=1).sum() == 14
    assert zoomed.any(dim=0).sum() == 28
    assert torch.equal(zoomed, zoomed.flip(0).flip(1))


def test_brightness_and_contrast_only_lower_the_grey_values() -> None:
    image = make_images(1)
    torch.testing.assert_close(vary(image, make(brightness=0.7)), 0.7 * image)
    flat = vary(image, make(contrast=0.7))
    torch.testing.assert_close(flat, image.mean() + 0.7 * (image - image.mean()))
    both = vary(image, make(brightness=0.7, contrast=0.7))
    torch.testing.assert_close(both, 0.7 * flat)
    assert both.max() < image.max()
