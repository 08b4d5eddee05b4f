from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from boneage.config import Recipe
from boneage.data.dataset import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BoneAgeDataset,
    get_transforms,
    make_loader,
)
from boneage.errors import BoneAgeError
from boneage.imaging.preprocess import Preprocessing

RAW = Preprocessing(image_size=48, stored_size=None, invert="auto")


def make_dataset(samples: pd.DataFrame, recipe: Recipe, split: str = "train") -> BoneAgeDataset:
    rows = samples[samples["split"] == split]
    return BoneAgeDataset(rows, get_transforms(split, recipe), RAW, seed=recipe.seed)


def greys_of(item: dict[str, Any]) -> torch.Tensor:
    """Grey values of the three channels, as before normalisation."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return item["image"] * std[:, None, None] + mean[:, None, None]


def test_every_image_in_a_shuffled_loader_keeps_its_own_age_sex_and_stage(
    samples: pd.DataFrame, recipe: Recipe
) -> None:
    loader = make_loader(make_dataset(samples, recipe), recipe, shuffle=True, workers=2)
    truth = samples.set_index("image_id")
    seen: list[str] = []
    for batch in loader:
        for i, image_id in enumerate(batch["image_id"]):
            row = truth.loc[image_id]
            assert batch["age_years"][i].item() == pytest.approx(row["age_years"], abs=1e-5)
            assert batch["stage"][i].item() == row["stage"]
            assert batch["sex"][i].item() == {"M": 1.0, "F": -1.0}[row["sex"]]
            seen.append(image_id)
    order = list(samples.loc[samples["split"] == "train", "image_id"])
    assert sorted(seen) == sorted(order)
    assert seen != order


def test_the_image_of_a_row_is_the_image_with_its_id(samples: pd.DataFrame, recipe: Recipe) -> None:
    dataset = make_dataset(samples, recipe, "val")
    item = dataset[3]
    radiograph = Image.open(samples.set_index("image_id")["path"][item["image_id"]])
    assert radiograph.height > radiograph.width
    assert dataset.read_image(3).size == radiograph.size
    expected = np.asarray(radiograph.resize((48, 48), Image.Resampling.BILINEAR)) / 255
    for channel in greys_of(item):
        np.testing.assert_allclose(channel, expected, atol=1 / 255)
    unknown = make_dataset(samples.assign(sex=None), recipe)
    assert unknown[0]["sex"].item() == 0.0  # neither male nor female


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_only_training_images_are_augmented_and_anew_each_epoch(
    samples: pd.DataFrame, recipe: Recipe, split: str
) -> None:
    dataset = make_dataset(samples, recipe, split)
    versions = []
    for dataset.epoch in range(1, 5):
        versions.append(dataset[0]["image"])
    for other in versions[1:]:
        assert torch.equal(versions[0], other) == (split != "train")


def test_augmentation_depends_on_seed_epoch_and_row_alone(
    samples: pd.DataFrame, recipe: Recipe
) -> None:
    dataset = make_dataset(samples, recipe)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    alone = torch.stack([dataset[i]["image"] for i in range(len(dataset))])
    assert torch.equal(before, torch.get_rng_state())
    for workers in (0, 2):
        loader = make_loader(dataset, recipe, workers=workers)
        batched = torch.cat([batch["image"] for batch in loader])
        torch.testing.assert_close(batched, alone, rtol=0, atol=0)
    other = make_dataset(samples, replace(recipe, seed=1))
    assert not torch.equal(other[0]["image"], alone[0])


def test_rotation_and_flip_can_be_switched_off(samples: pd.DataFrame, recipe: Recipe) -> None:
    still = replace(recipe, rotation=0.0, horizontal_flip=False)
    plain, evaluated = make_dataset(samples, still), get_transforms("val", still)
    torch.testing.assert_close(plain[0]["image"], evaluated(plain.read_image(0)))


def test_rotation_stays_within_its_limit(recipe: Recipe) -> None:
    bar = np.zeros((101, 101), np.uint8)
    bar[:, 48:53] = 255
    turn = get_transforms("train", replace(recipe, image_size=101, horizontal_flip=False))
    tilts = []
    for seed in range(60):
        torch.manual_seed(seed)
        rows, columns = np.nonzero(turn(Image.fromarray(bar))[0].numpy() > 1)
        tilts.append(np.degrees(np.arctan(np.polyfit(rows, columns, 1)[0])))
    assert 7 < np.abs(tilts).max() <= 10.5


def test_zoom_shift_and_brightness_vary_training_images(
    samples: pd.DataFrame, recipe: Recipe
) -> None:
    still = replace(recipe, rotation=0.0, horizontal_flip=False)
    plain = make_dataset(samples, still)[0]["image"]
    for setting in ("zoom", "shift", "brightness"):
        varied = replace(still, **{setting: 0.3})  # type: ignore[arg-type]
        assert not torch.equal(make_dataset(samples, varied)[0]["image"], plain), setting
        evaluated = make_dataset(samples, varied, "val")[0]["image"]
        assert torch.equal(evaluated, make_dataset(samples, still, "val")[0]["image"])


def test_varied_brightness_never_clips_a_bone(recipe: Recipe) -> None:
    radiograph = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    still = replace(recipe, image_size=256, rotation=0.0, horizontal_flip=False, brightness=0.4)
    transform = get_transforms("train", still)
    for seed in range(20):
        torch.manual_seed(seed)
        row = transform(radiograph)[0, 0]
        assert (row[-20:].diff() > 0).sum() >= 5  # the brightest twenty still differ


def test_stretched_images_reach_the_network_as_the_predictor_stretches_them(
    samples: pd.DataFrame, recipe: Recipe
) -> None:
    preprocessing = replace(RAW, stretch_grey=True)
    transform = get_transforms("val", replace(recipe, stretch_grey=True))
    data = BoneAgeDataset(samples[samples["split"] == "val"], transform, preprocessing)
    expected = preprocessing.to_array(data.read_image(0))
    np.testing.assert_allclose(greys_of(data[0])[0], expected, atol=1e-6)


def test_a_last_batch_of_one_image_is_left_out_of_training_only(
    samples: pd.DataFrame, recipe: Recipe
) -> None:
    dataset = make_dataset(samples, recipe)
    odd = replace(recipe, batch_size=len(dataset) - 1)
    assert [len(b["stage"]) for b in make_loader(dataset, odd, shuffle=True)] == [len(dataset) - 1]
    assert sum(len(b["stage"]) for b in make_loader(dataset, odd)) == len(dataset)


def test_without_a_recipe_the_transform_is_that_of_the_defaults(samples: pd.DataFrame) -> None:
    image = Image.open(samples["path"].iloc[0])
    for split in ("train", "val", "test"):
        versions = []
        for transform in (get_transforms(split), get_transforms(split, Recipe())):
            torch.manual_seed(3)
            versions.append(transform(image))
        assert versions[0].shape == (3, 256, 256)
        assert torch.equal(*versions)


@pytest.mark.parametrize("split", ["validation", "trian", "Train", "", None])
def test_an_unknown_split_is_refused_with_the_names_there_are(split: str) -> None:
    with pytest.raises(BoneAgeError) as refused:
        get_transforms(split)
    assert str(refused.value) == f"split is {split!r}; expected one of train, val, test."


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        pytest.param(np.asarray, id="array (H, W)"),
        pytest.param(lambda image: np.asarray(image)[:, :, None], id="array (H, W, 1)"),
        pytest.param(lambda image: np.asarray(image.convert("RGB")), id="array (H, W, 3)"),
        pytest.param(lambda image: image.convert("RGB"), id="PIL in colour"),
        pytest.param(lambda image: image.convert("RGBA"), id="PIL with transparency"),
        pytest.param(lambda image: torch.from_numpy(np.array(image))[None], id="tensor (1, H, W)"),
    ],
)
def test_arrays_and_colour_images_become_what_the_grey_image_becomes(
    samples: pd.DataFrame, recipe: Recipe, given: Callable[[Image.Image], Any], stretch: bool
) -> None:
    image = Image.open(samples["path"].iloc[0]).convert("L")
    for split in ("train", "val"):
        transform = get_transforms(split, replace(recipe, stretch_grey=stretch))
        versions = []
        for version in (image, given(image)):
            torch.manual_seed(3)
            versions.append(transform(version))
        assert torch.equal(*versions)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        pytest.param(np.zeros((50, 40)), "float64", id="floats"),
        pytest.param(np.zeros((50, 40), np.uint16), "uint16", id="16 bits"),
        pytest.param(torch.zeros(3, 50, 40), "torch.float32", id="float tensor"),
        pytest.param(Image.new("I;16", (40, 50)), "I;16", id="PIL of 16 bits"),
        pytest.param(Image.new("F", (40, 50)), "F", id="PIL of floats"),
        pytest.param("hand.png", "str", id="a file's name"),
    ],
)
def test_pixels_whose_scale_is_not_known_are_refused(image: Any, named: str) -> None:
    with pytest.raises(BoneAgeError, match=f"the image is .*{named}; expected .*uint8"):
        get_transforms("val")(image)
