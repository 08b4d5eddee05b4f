"""Checked samples -> tensors: `BoneAgeDataset`, `get_transforms` and the loaders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from boneage.config import Recipe
from boneage.data.augmentation import Augmentation, dim, move, row_seed
from boneage.data.film import FilmLook, change_look
from boneage.data.split import SPLITS
from boneage.errors import BoneAgeError
from boneage.imaging.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Reader,
    resize,
    stretch_grey,
)
from boneage.sex import SEX_CODE

Batch = dict[str, Any]
"""Items of a `BoneAgeDataset`, stacked."""

Transform = Callable[[Any], torch.Tensor]


def get_transforms(split: str, recipe: Recipe = Recipe()) -> Transform:
    """Build the transform of one split: 8-bit image -> float32 tensor (3, S, S).

    It takes a PIL image, or uint8 values as an array (H, W) or (H, W, 3) or a tensor (C, H, W);
    colour is reduced to grey.

    Every split is resized to `image_size` and normalised with ImageNet's statistics. Training
    images are also augmented, at random by torch's global generator; val and test images never are.

    Args:
        split: "train", "val" or "test".
        recipe: Gives the size and the augmentation: mirroring, rotation, zoom, shift, brightness.

    Raises:
        BoneAgeError: If there is no such split, or, on use, if the image is not of 8 bits.

    Example:
        >>> get_transforms("val")(np.zeros((400, 300), np.uint8)).shape
        torch.Size([3, 256, 256])
    """
    if split not in SPLITS:
        raise BoneAgeError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    return _Transform(recipe, is_augmented=split == "train")


@dataclass(frozen=True)
class _Transform:
    """What `get_transforms` gives; a class, so that it can be sent to other processes."""

    recipe: Recipe
    is_augmented: bool

    def __call__(self, given: Any) -> torch.Tensor:
        tensor, _ = self.with_outline(given)
        return tensor

    def with_outline(self, given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform an image, and the outline of its hand with it: (1, S, S) in [0, 1].

        The alpha channel of a view is the outline; without one, the hand may be anywhere.
        """
        image, size = _to_grey(given), self.recipe.image_size
        has_outline = isinstance(given, Image.Image) and given.mode == "LA"
        outline = given.getchannel("A") if has_outline else Image.new("L", image.size, 255)
        if self.recipe.stretch_grey:
            image = stretch_grey(image, outline)
        if not self.is_augmented:
            grey, hand = (_to_tensor(resize(layer, size)) for layer in (image, outline))
            return normalise(grey)[0], hand[0]
        augmentation = Augmentation.draw(self.recipe, [None])
        look = FilmLook.draw(self.recipe, [None])
        layers = torch.cat([_to_tensor(resize(layer, size)) for layer in (image, outline)], dim=1)
        grey, hand = move(layers, augmentation).split(1, dim=1)
        grey = dim(grey, augmentation)
        if look.changes:
            grey = change_look(grey, hand, look)
        return normalise(grey)[0], hand[0]


def normalise(grey: torch.Tensor) -> torch.Tensor:
    """Turn grey images (B, 1, S, S) in [0, 1] into a network's input (B, 3, S, S)."""
    mean, std = (
        torch.tensor(values, device=grey.device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (grey - mean) / std


def _to_tensor(image: Image.Image) -> torch.Tensor:
    """Give an 8-bit grey image as (1, 1, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None, None]


def _to_grey(image: Any) -> Image.Image:
    """Give the 8-bit grey image of a PIL image, an array or a tensor.

    Pixels of other than 8 bits are refused: conversion would clip or wrap them.
    """
    kind = getattr(image, "dtype", type(image).__name__)
    if isinstance(image, np.ndarray | torch.Tensor) and kind in (np.uint8, torch.uint8):
        image = functional.to_pil_image(image)
    if isinstance(image, Image.Image):
        if image.mode == "L":
            return image
        if image.mode[0] not in "FI":
            return image.convert("L")
        kind = f"of mode {image.mode}"
    raise BoneAgeError(
        f"the image is {kind}; expected a PIL image or an array of 8-bit grey values (uint8). "
        "`read_radiograph(path).to_image()` gives one of any file."
    )


class BoneAgeDataset(Dataset[Batch]):
    """Radiographs with their bone age, stage and sex, one dict an image.

    The RSNA 2017 training set that this was written for has 12,611 left-hand images, 54% of boys,
    labelled with one clinical report each (1 to 228 months, mean 127). Most ages are exactly those
    of a plate of the Greulich-Pyle atlas; 21 are above 18 years, and all of those are male.
    Source: Halabi et al., Radiology 2019, doi 10.1148/radiol.2018180736.

    Args:
        samples: One row an image: `image_id, path, sex, age_years, stage`.
        transform: Of `get_transforms`.
        reader: Reads raw images; None if `path` points to processed ones.
        seed: Of the augmentation, which depends on seed, epoch and row alone: neither the number
            of workers nor an interruption changes it.

    Each item holds `image` float32 (3, S, S), `sex` float32 (+1 male, -1 female, 0 unknown),
    `age_years` float32, `stage` int64, `image_id` str, and with a transform of `get_transforms`
    `outline` float32 (1, S, S), 1 where the hand may be.

    Attributes:
        samples: As given, its rows numbered from 0.
        epoch: Epoch whose augmentation is applied; the training loop sets it.
    """

    def __init__(
        self,
        samples: pd.DataFrame,
        transform: Transform,
        reader: Reader | None = None,
        seed: int = 0,
    ) -> None:
        self.samples = samples.reset_index(drop=True)
        self.epoch = 0
        self._rows = self.samples.to_dict("records")
        self._transform = transform
        self._reader = reader
        self._seed = seed

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        image = self._open(index)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would reseed the GPU as well.
            torch.default_generator.manual_seed(row_seed(self._seed, self.epoch, index))
            if isinstance(self._transform, _Transform):
                tensor, outline = self._transform.with_outline(image)
            else:
                tensor, outline = self._transform(image.convert("L")), None
        extra = {} if outline is None else {"outline": outline}
        return {
            "image": tensor,
            **extra,
            "sex": torch.tensor(SEX_CODE[row["sex"]]),
            "age_years": torch.tensor(row["age_years"], dtype=torch.float32),
            "stage": torch.tensor(row["stage"]),
            "image_id": row["image_id"],
        }

    def with_transform(self, transform: Transform) -> "BoneAgeDataset":
        """Give the same images with another transform."""
        return BoneAgeDataset(self.samples, transform, self._reader, self._seed)

    def read_image(self, index: int) -> Image.Image:
        """Read one image as training reads it, before it is augmented and resized."""
        return self._open(index).convert("L")

    def _open(self, index: int) -> Image.Image:
        """Read one image with the outline of its hand, where it has one."""
        path = self._rows[index]["path"]
        if self._reader is not None:
            return self._reader.read(path)
        with Image.open(path) as image:
            return image.convert("LA" if image.mode == "LA" else "L")


def get_dataset(loader: DataLoader[Batch]) -> BoneAgeDataset:
    """Give the data set behind a loader.

    Raises:
        TypeError: If it is not a `BoneAgeDataset`.
    """
    dataset = loader.dataset
    if not isinstance(dataset, BoneAgeDataset):
        raise TypeError(f"a loader holds a {type(dataset).__name__}, not a BoneAgeDataset")
    return dataset


def make_loader(
    dataset: BoneAgeDataset, recipe: Recipe, *, shuffle: bool = False, workers: int = 0
) -> DataLoader[Batch]:
    """Batch a data set; shuffling follows the loader's own generator, which `Trainer` seeds."""
    # A last batch of one image has no variance for batch normalisation to divide by.
    leaves_one = len(dataset) > 1 and len(dataset) % recipe.batch_size == 1
    return DataLoader(
        dataset,
        batch_size=recipe.batch_size,
        shuffle=shuffle,
        drop_last=shuffle and leaves_one,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
