"""Checked samples -> tensors: `BoneAgeDataset`, `get_transforms` and the loaders."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from boneage.config import Recipe
from boneage.data.split import SPLITS
from boneage.errors import BoneAgeError
from boneage.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, stretch_grey
from boneage.sex import SEX_CODE


def get_transforms(split: str, recipe: Recipe = Recipe()) -> v2.Compose:
    """Build the transform of one split: 8-bit image -> float32 tensor (3, S, S).

    It takes a PIL image, or uint8 values as an array (H, W) or (H, W, 3) or a tensor (C, H, W);
    colour is reduced to grey.

    Every split is resized to `image_size` and normalised with ImageNet's statistics. Training
    images are varied at random as well; val and test never are.

    Args:
        split: "train", "val" or "test".
        recipe: Gives the size and what is varied: mirroring, rotation, zoom, shift, brightness.

    Raises:
        BoneAgeError: If there is no such split, or, on use, if the image is not of 8 bits.

    Example:
        >>> get_transforms("val")(np.zeros((400, 300), np.uint8)).shape
        torch.Size([3, 256, 256])
    """
    if split not in SPLITS:
        raise BoneAgeError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    size = recipe.image_size
    bilinear = v2.InterpolationMode.BILINEAR
    steps: list[Any] = [v2.Lambda(_to_grey)]
    if recipe.stretch_grey:
        steps.append(v2.Lambda(stretch_grey))
    if split == "train" and recipe.early_rotation:
        turn = v2.RandomRotation(recipe.rotation, interpolation=bilinear)
        steps.append(v2.RandomApply([turn], p=recipe.early_rotation))
    steps.append(v2.Resize((size, size), antialias=True))
    if split == "train":
        if recipe.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        if recipe.rotation or recipe.zoom or recipe.shift:
            steps.append(
                v2.RandomAffine(
                    recipe.rotation,
                    translate=(recipe.shift, recipe.shift),
                    scale=(1.0 - recipe.zoom, 1.0 + recipe.zoom),
                    interpolation=bilinear,
                )
            )
        if recipe.brightness:
            # Downwards only: upwards would clip the brightest bones of an image of full range.
            darker = (1.0 - recipe.brightness, 1.0)
            steps.append(v2.ColorJitter(brightness=darker, contrast=darker))
    steps += [
        v2.RGB(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    return v2.Compose(steps)


def _to_grey(image: Any) -> Image.Image:
    """Give the 8-bit grey image of a PIL image, an array or a tensor.

    Other pixels than those of 8 bits are refused: torchvision would clip or wrap them, and it
    lets an array pass all steps without resizing it.
    """
    kind = getattr(image, "dtype", type(image).__name__)
    if isinstance(image, np.ndarray | torch.Tensor) and kind in (np.uint8, torch.uint8):
        image = v2.functional.to_pil_image(image)
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


class BoneAgeDataset(Dataset[dict[str, Any]]):
    """Radiographs with their bone age, stage and sex, one dict an image.

    The RSNA 2017 training set that this was written for has 12,611 left-hand images, 54% of boys,
    labelled with one clinical report each (1 to 228 months, mean 127); its ages are heaped on
    the plates of the Greulich-Pyle atlas, 21 are above 18 years and all of those are male.
    Source: Halabi et al., Radiology 2019, doi 10.1148/radiol.2018180736.

    Args:
        samples: One row an image: `image_id, path, sex, age_years, stage`.
        transform: Of `get_transforms`.
        preprocessing: How raw images are read; None if `path` points to processed ones.
        seed: Of the augmentation, which depends on seed, epoch and row alone, so that neither
            the number of workers nor an interruption changes it.

    Each item holds `image` float32 (3, S, S), `sex` float32 (+1 male, -1 female, 0 unknown),
    `age_years` float32, `stage` int64 and `image_id` str.
    """

    def __init__(
        self,
        samples: pd.DataFrame,
        transform: v2.Compose,
        preprocessing: Preprocessing | None = None,
        seed: int = 0,
    ) -> None:
        self.samples = samples.reset_index(drop=True)
        self.epoch = 0
        self._rows = self.samples.to_dict("records")
        self._transform = transform
        self._preprocessing = preprocessing
        self._seed = seed

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        image = self.read_image(index)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would reseed the GPU as well.
            torch.default_generator.manual_seed(hash((self._seed, self.epoch, index)))
            tensor = self._transform(image)
        return {
            "image": tensor,
            "sex": torch.tensor(SEX_CODE[row["sex"]]),
            "age_years": torch.tensor(row["age_years"], dtype=torch.float32),
            "stage": torch.tensor(row["stage"]),
            "image_id": row["image_id"],
        }

    def with_transform(self, transform: v2.Compose) -> "BoneAgeDataset":
        """Give the same images seen through another transform."""
        return BoneAgeDataset(self.samples, transform, self._preprocessing, self._seed)

    def read_image(self, index: int) -> Image.Image:
        """Read one image as training sees it, before resizing to the network and augmentation."""
        path = self._rows[index]["path"]
        if self._preprocessing is not None:
            return self._preprocessing.read(path)
        with Image.open(path) as image:
            return image.convert("L")


def make_loader(
    dataset: BoneAgeDataset, recipe: Recipe, *, shuffle: bool = False, workers: int = 0
) -> DataLoader[dict[str, Any]]:
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
