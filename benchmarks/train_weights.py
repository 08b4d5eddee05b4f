"""Train a network on views of hands: on all images first, then on the larger ones in detail.

    python benchmarks/train_weights.py DATA LARGER --init WEIGHTS --work FOLDER

DATA is the folder of the RSNA images at 100x100 px, LARGER that of some of them at up to 640 px,
WEIGHTS the initial weights: a file for ImageNet (docs/experiments.md says where from), or an
exported model of this project with the same backbone. The recipes are
configs/boneage-pretraining.toml and configs/boneage.toml; `--set NAME=VALUE` changes a setting of
the second, for comparisons. `--skip-pretraining` starts the second stage from WEIGHTS.

An interrupted training continues where it stopped. Views are cut out once. The second stage takes
all larger training images in each epoch, and a number of the others, drawn anew each time.
"""

import argparse
import json
import logging
import tomllib
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader, Sampler

from boneage.config import ImageSettings, Paths, Recipe, Runtime
from boneage.data.dataset import Batch, BoneAgeDataset, get_transforms, make_loader
from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.data.processed import preprocess_folder
from boneage.data.split import split_samples, split_sha256
from boneage.imaging.preprocess import Preprocessing
from boneage.inference.hand_view import make_reader
from boneage.training.checkpoint import BEST, LAST, load_checkpoint
from boneage.training.export import load_exported
from boneage.training.fold_norm import fold_norm
from boneage.training.initial_weights import build_model
from boneage.training.model import BoneAgePredictor
from boneage.training.samples import choose_training, describe_data, make_synthetic
from boneage.training.train import Trainer

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL_VIEW = 192
"""Height in pixels of the views of images at 100 px."""

OTHERS = 2500
"""Images at 100 px in an epoch of the second stage."""

BIAS_IMAGES = 96

logger = logging.getLogger(__name__)


def main() -> None:
    """Cut the views out, then train both stages as far as that is not done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("larger", type=Path)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", default="second", help="folder of the second stage in --work")
    parser.add_argument("--skip-pretraining", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    changes = parse_changes(options.set)
    first, second = read_recipe("boneage-pretraining"), read_recipe("boneage", **changes)
    samples = cut_views(options.data, options.larger, options.work, second)
    start = options.init
    if not options.skip_pretraining:
        train(samples, first, options.work / "first", start, None, options.workers)
        start = options.work / "first" / BEST
    trainer = train(samples, second, options.work / options.name, start, OTHERS, options.workers)
    print(json.dumps(measure(trainer, samples), indent=1))


def parse_changes(settings: Sequence[str]) -> dict[str, Any]:
    """Read settings of the form NAME=VALUE, the values as JSON or as text."""
    return {name: _parse(value) for name, value in (s.split("=", 1) for s in settings)}


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def read_recipe(name: str, **changes: Any) -> Recipe:
    """Read a recipe of `configs`, with some settings changed."""
    settings = tomllib.loads((CONFIGS / f"{name}.toml").read_text(encoding="utf-8"))
    settings.pop("use_processed")
    return Recipe(**{**settings, "init": "none", **changes})


def cut_views(data: Path, larger: Path, work: Path, recipe: Recipe) -> pd.DataFrame:
    """Cut the hands of all images out, of the larger copy where there is one.

    Returns:
        One row an image, with its `split`: `path` is its view, `source` the image that this is cut
        from, `is_large` whether that is a larger copy, and `small` the copy at 100 px.

    Raises:
        SystemExit: If the images give another split than the recipe's.
    """
    small, large = find_images(data), find_images(larger)
    samples = match_images(read_labels(find_labels(data)), small)
    samples["split"] = split_samples(samples)
    if recipe.split_sha256 not in (None, split_sha256(samples["image_id"], samples["split"])):
        raise SystemExit(f"{data} gives another split than that of the recipe")
    samples["small"] = samples["path"]
    samples["source"] = [large.get(r.image_id, r.path) for r in samples.itertuples()]
    samples["is_large"] = samples["image_id"].isin(large)
    for is_large, images, size in (
        (False, {i: p for i, p in small.items() if i not in large}, SMALL_VIEW),
        (True, large, recipe.image_size),
    ):
        settings = ImageSettings(size, recipe.invert, crop=recipe.crop)
        folder = work / f"views{size}"
        if images:
            reader = make_reader(Preprocessing.of_processed(settings))
            preprocess_folder(images, folder, settings, reader=reader)
        rows = samples["is_large"] == is_large
        samples.loc[rows, "path"] = [folder / f"{i}.png" for i in samples.loc[rows, "image_id"]]
    return samples


class LargerFirst(Sampler[int]):
    """Draws all larger images and some of the others, in random order.

    Args:
        is_large: Of every image of the data set.
        others: Number of the others in an epoch.
        generator: Seeded by the training loop.
    """

    def __init__(self, is_large: Sequence[bool], others: int, generator: torch.Generator) -> None:
        self._large = [i for i, large in enumerate(is_large) if large]
        self._rest = [i for i, large in enumerate(is_large) if not large]
        self._others, self._generator = min(others, len(self._rest)), generator

    def __len__(self) -> int:
        return len(self._large) + self._others

    def __iter__(self) -> Iterator[int]:
        drawn = torch.randperm(len(self._rest), generator=self._generator)[: self._others]
        rows = [*self._large, *(self._rest[i] for i in drawn.tolist())]
        order = torch.randperm(len(rows), generator=self._generator)
        return (rows[i] for i in order.tolist())


def train(
    samples: pd.DataFrame,
    recipe: Recipe,
    output: Path,
    start: Path,
    others: int | None,
    workers: int = 1,
) -> Trainer:
    """Train one stage.

    Args:
        samples: Of `cut_views`, with their split.
        recipe: Of the stage.
        output: Folder of the stage.
        start: Initial weights: of ImageNet, an exported model, or a checkpoint.
        others: See `LargerFirst`; None for all images in every epoch.
        workers: Processes that read images.
    """
    training = choose_training(samples, recipe)
    provenance = describe_data(samples, training)
    if recipe.synthetic_images:
        drawn = make_synthetic(Paths(output=output.parent, use_processed=True), recipe)
        training = pd.concat([training, drawn.assign(is_large=False)], ignore_index=True)
    validation = samples[samples["split"] == "val"]
    data = {
        part: BoneAgeDataset(rows, get_transforms(part, recipe), seed=recipe.seed)
        for part, rows in (("train", training), ("val", _choose_validation(validation)))
    }
    loaders = {
        "val": make_loader(data["val"], recipe),
        "train": _load(data["train"], recipe, others, workers),
    }
    model = _start(recipe, start, training)
    preprocessing = Preprocessing.of(recipe, recipe.image_size)
    trainer = Trainer(model, loaders, recipe, preprocessing, output,
                      runtime=Runtime(workers=0), provenance=provenance)  # fmt: skip
    if (output / LAST).is_file():
        trainer.resume()
    trainer.fit()
    return trainer


def _choose_validation(validation: pd.DataFrame) -> pd.DataFrame:
    """Take the larger validation images, and a quarter of the others."""
    rest = validation[~validation["is_large"]]
    return pd.concat([validation[validation["is_large"]], rest.iloc[::4]])


def _load(
    data: BoneAgeDataset, recipe: Recipe, others: int | None, workers: int
) -> DataLoader[Batch]:
    if others is None:
        return make_loader(data, recipe, shuffle=True, workers=workers)
    generator = torch.Generator()
    sampler = LargerFirst(list(data.samples["is_large"]), others, generator)
    return DataLoader(
        data, recipe.batch_size, sampler=sampler, generator=generator, num_workers=workers
    )


def _start(recipe: Recipe, start: Path, training: pd.DataFrame) -> BoneAgePredictor:
    mean = float(training["age_years"].mean())
    if start.suffix == ".pt":
        model = build_model(recipe, "none", mean)
        earlier = load_checkpoint(start)
        model.load_state_dict(earlier.model.state_dict())
        model.init_used = str(earlier.provenance["init_used"])
    elif start.suffix == ".onnx":
        model = build_model(recipe, "none", mean)
        load_exported(model, start)
        _drop_constant(model, recipe, training)
        model.init_used = f"{start.name}, sha256 {sha256(start.read_bytes()).hexdigest()}"
    else:
        return build_model(recipe, str(start), mean)
    fold_norm(model.backbone)
    return model


@torch.no_grad()
def _drop_constant(model: BoneAgePredictor, recipe: Recipe, training: pd.DataFrame) -> None:
    """Move the constant term of the age into the weights; the mean age stays the same."""
    data = BoneAgeDataset(training.iloc[:: len(training) // BIAS_IMAGES],
                          get_transforms("val", recipe))  # fmt: skip
    images = torch.stack([data[i]["image"] for i in range(len(data))])
    model.eval()
    features = torch.cat([model.features(part) for part in images.split(16)]).mean(dim=0)
    head: Any = model.age_head
    for weight, constant in ((head.weight, head.bias), (head.sex_weight, head.sex_bias)):
        weight += constant[:, None] * features / features.square().sum()
        constant.zero_()


def measure(trainer: Trainer, samples: pd.DataFrame) -> dict[str, Any]:
    """Give the errors on the larger and on the other validation images, in months."""
    trainer.evaluate("val", resamples=0)
    table = trainer.tables["val"].merge(samples[["image_id", "is_large"]], on="image_id")
    error = 12.0 * (table["predicted_years"] - table["reference_years"])
    return {
        name: {"n": int(rows.sum()), "mae": float(error[rows].abs().mean()),
               "signed_error": float(error[rows].mean())}
        for name, rows in (("larger", table["is_large"]), ("others", ~table["is_large"]))
    }  # fmt: skip


if __name__ == "__main__":
    main()
