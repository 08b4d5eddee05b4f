import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from boneage.config import Paths, Recipe, Runtime
from boneage.data.labels import find_images, find_labels, read_labels
from boneage.data.processed import preprocess_folder
from boneage.errors import BoneAgeError
from boneage.imaging.preprocess import Preprocessing
from boneage.training.samples import choose_training, load_samples, make_loaders


def test_images_that_are_missing_are_counted_and_left_out(
    raw: Path, recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "raw"
    shutil.copytree(raw, data)
    radiographs = sorted(find_images(data).values())
    for image in radiographs[:3]:
        image.unlink()
    with caplog.at_level(logging.WARNING):
        samples, _ = load_samples(Paths(data=data), recipe)
    assert len(samples) == 77
    assert f"left out 3 rows without an image: {radiographs[0].stem}" in caplog.text


@pytest.mark.parametrize("use_processed", [False, True])
def test_images_in_folders_are_trained_on_by_ids_with_folders(
    paths: Paths, recipe: Recipe, tmp_path: Path, use_processed: bool
) -> None:
    data, processed = tmp_path / "data", tmp_path / "small"
    labels = read_labels(find_labels(paths.data)).head(3)
    sources = find_images(paths.data)
    places = ["A/1", "B/1", "B/2"]  # of which 2 is a name of its own
    for place, image_id in zip(places, labels["image_id"], strict=True):
        (data / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sources[image_id], data / f"{place}.png")
    table = labels.assign(image_id=places)[["image_id", "months", "sex"]]
    table.rename(columns={"months": "boneage"}).to_csv(data / "labels.csv", index=False)
    preprocess_folder(find_images(data), processed, recipe, workers=1)
    mine = replace(paths, data=data, processed=processed, use_processed=use_processed)
    samples, _ = load_samples(mine, recipe)
    assert samples["image_id"].tolist() == places
    root = processed if use_processed else data
    expected = ["A/1", "B/1", "2"] if use_processed else places
    assert [p.relative_to(root).with_suffix("").as_posix() for p in samples["path"]] == expected


def test_images_named_in_hold_out_are_not_trained_on(samples: pd.DataFrame, recipe: Recipe) -> None:
    in_training, in_test = (
        samples.loc[samples["split"] == part, "image_id"].iloc[0] for part in ("train", "test")
    )
    training = choose_training(samples, replace(recipe, hold_out=(in_training, in_test)))
    expected = set(samples.loc[samples["split"] == "train", "image_id"]) - {in_training}
    assert set(training["image_id"]) == expected
    with pytest.raises(BoneAgeError, match="hold_out names 77777, which no image has as its id"):
        choose_training(samples, replace(recipe, hold_out=("77777",)))


def test_only_training_images_are_shuffled_and_augmented(
    samples: pd.DataFrame, recipe: Recipe, runtime: Runtime
) -> None:
    raw = Preprocessing(48, None, "auto")
    varied = replace(recipe, brightness=0.5)
    loaders = make_loaders(samples, ("train", "val"), varied, raw, runtime)
    plain = make_loaders(samples, ("train", "val"), recipe, raw, runtime)
    for split, is_training in (("train", True), ("val", False)):
        order = list(samples.loc[samples["split"] == split, "image_id"])
        loaded = [image_id for batch in loaders[split] for image_id in batch["image_id"]]
        assert sorted(loaded) == sorted(order)
        assert (loaded != order) is is_training
        ours, theirs = (set_of[split].dataset[0]["image"] for set_of in (loaders, plain))
        assert bool((ours != theirs).any()) is is_training
