"""The images of a run: labels matched with files, the split they have, the loaders of each part."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch.utils.data import DataLoader

from boneage.config import Paths, Recipe, Runtime
from boneage.data.dataset import Batch, BoneAgeDataset, get_transforms, make_loader
from boneage.data.labels import (
    data_sha256,
    find_images,
    find_labels,
    join_images,
    match_images,
    pair_images,
    read_labels,
)
from boneage.data.processed import find_processed, preprocess_folder
from boneage.data.split import split_sha256
from boneage.errors import BoneAgeError, CheckpointError
from boneage.imaging.preprocess import Preprocessing, Reader
from boneage.inference.hand_view import make_reader
from boneage.phantom.cohort import write_cohort
from boneage.training.checkpoint import BEST, Checkpoint, load_checkpoint
from boneage.training.device import count_workers

logger = logging.getLogger(__name__)

HELD_OUT = ("val", "test")
"""The parts of a split that a model is not trained on."""


def load_samples(paths: Paths, recipe: Recipe) -> tuple[pd.DataFrame, int | None]:
    """Read the labels and match each row with its image.

    Returns:
        One row an image, sorted by id, and the side of the processed images in pixels, or None if
        images are read raw.
    """
    labels = read_labels(
        paths.labels or find_labels(paths.data),
        unknown_sex="drop" if recipe.drop_unknown_sex else "error",
        group_column=recipe.group_column,
    )
    if not paths.use_processed:
        return match_images(labels, find_images(paths.data)), None
    raw = find_images(paths.data, required=False)
    # A processed image has the name of its raw image, folders included; labels may leave some out.
    file_of = {path: name for name, path in raw.items()}
    names = {i: file_of[path] for i, path in pair_images(labels, raw).items()}
    sources = {name: raw.get(name) for name in (names.get(i, i) for i in labels["image_id"])}
    images, stored_size = find_processed(paths.processed, sources, recipe)
    images = {i: images[name] for i in labels["image_id"] if (name := names.get(i, i)) in images}
    return join_images(labels, images), stored_size


def choose_training(samples: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Give the training part of a split without the images that `hold_out` names.

    Raises:
        BoneAgeError: If `hold_out` names an image that is not there.
    """
    unknown = set(recipe.hold_out) - set(samples["image_id"])
    if unknown:
        raise BoneAgeError(
            f"hold_out names {', '.join(sorted(unknown))}, which no image has as its id. Correct "
            "the ids, or leave them out."
        )
    is_training = (samples["split"] == "train") & ~samples["image_id"].isin(recipe.hold_out)
    return samples[is_training]


def describe_data(samples: pd.DataFrame, training: pd.DataFrame) -> dict[str, Any]:
    """Give the facts about data and split that are saved with a checkpoint."""
    return {
        "n_by_split": {**samples["split"].value_counts().to_dict(), "train": len(training)},
        "data_sha256": data_sha256(samples),
        "split_sha256": split_sha256(samples["image_id"], samples["split"]),
        "held_out_sha256": data_sha256(samples[samples["split"] != "train"]),
        "train_median_years": float(training["age_years"].median()),
    }


def make_synthetic(paths: Paths, recipe: Recipe) -> pd.DataFrame:
    """Write the recipe's synthetic images into the output folder, ready for training."""
    folder = paths.output / "synthetic" / "raw"
    write_cohort(folder, n=recipe.synthetic_images, seed=recipe.seed)
    images = find_images(folder)
    if paths.use_processed:
        processed = paths.output / "synthetic" / "processed"
        reader = make_reader(Preprocessing.of_processed(recipe))
        preprocess_folder(images, processed, recipe, reader=reader)
        images = {image_id: processed / f"{image_id}.png" for image_id in images}
    samples = match_images(read_labels(find_labels(folder)), images)
    return samples.assign(image_id="synthetic-" + samples["image_id"], split="train")


def load_trained(paths: Paths, checkpoint: Path | None) -> tuple[Checkpoint, pd.DataFrame]:
    """Load a checkpoint with the images of the split that it was trained with.

    Args:
        paths: Where images, labels and the run are.
        checkpoint: A trained model; by default the best one in the output folder.

    Returns:
        The checkpoint, and one row an image with its `split`.

    Raises:
        CheckpointError: If checkpoint, split and images do not belong together.
    """
    path = checkpoint or paths.output / BEST
    trained = load_checkpoint(path)
    samples, stored_size = load_samples(paths, trained.recipe)
    if paths.use_processed and stored_size != trained.preprocessing.stored_size:
        remedy = (
            f"Run `boneage preprocess --image-size {trained.preprocessing.stored_size}`, or leave"
            if trained.preprocessing.stored_size
            else "It was trained on raw images: leave"
        )
        raise CheckpointError(
            f"{paths.processed} holds {stored_size}-px images; {path} was trained from "
            f"{trained.preprocessing.stored_size or 'raw'} ones. {remedy} --use-processed out."
        )
    return trained, _recall_split(paths, path, samples, trained.provenance)


def _recall_split(
    paths: Paths, checkpoint: Path, samples: pd.DataFrame, provenance: Mapping[str, Any]
) -> pd.DataFrame:
    """Give each image the part it had in training, if split and labels are still the same.

    Raises:
        CheckpointError: If they are not.
    """
    split_file = paths.output / "split.csv"
    if not split_file.is_file():
        raise CheckpointError(
            f"{split_file} does not exist; without it, test images cannot be distinguished from "
            "training images. Restore the file, or train again."
        )
    split = pd.read_csv(split_file, dtype=str, keep_default_na=False)
    if split_sha256(split["image_id"], split["split"]) != provenance["split_sha256"]:
        raise CheckpointError(
            f"{split_file} is not the split that {checkpoint} was trained with. Restore that "
            "file, or train again."
        )
    known = samples.merge(split, on="image_id", validate="one_to_one")
    for part in HELD_OUT:
        wanted, found = (int((table["split"] == part).sum()) for table in (split, known))
        if found == 0:
            raise CheckpointError(
                f"none of the {part} images of {checkpoint} is in {paths.data}. Pass the folder of "
                "the images that it was trained with as --data."
            )
        if found < wanted:
            logger.warning("only %d of the %d %s images are here", found, wanted, part)
    held_out = known[known["split"] != "train"]
    if len(held_out) == (split["split"] != "train").sum():
        expected = provenance.get("held_out_sha256")
        if expected not in (None, data_sha256(held_out)):
            raise CheckpointError(
                f"the ages or sexes of the val and test images have changed since {checkpoint} was "
                "trained. Restore the labels, or train again."
            )
    return known


def make_loaders(
    samples: pd.DataFrame,
    splits: Sequence[str],
    recipe: Recipe,
    reader: Reader | None,
    runtime: Runtime,
) -> dict[str, DataLoader[Batch]]:
    """Make a loader of each part of a split; only "train" is shuffled and augmented.

    Args:
        samples: One row an image, with its `split`.
        splits: Parts to load.
        recipe: Gives the size, the augmentation and the batches.
        reader: Reads raw images; None if `path` points to processed ones.
        runtime: Gives the number of processes that read images.
    """
    loaders = {}
    for split in splits:
        dataset = BoneAgeDataset(
            samples[samples["split"] == split],
            get_transforms(split, recipe),
            reader,
            seed=recipe.seed,
        )
        loaders[split] = make_loader(
            dataset, recipe, shuffle=split == "train", workers=count_workers(runtime)
        )
    return loaders
