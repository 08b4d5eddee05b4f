"""The workflows behind the commands: what is read, in which order, and every file written."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
import torch
from torch.utils.data import DataLoader

from boneage.config import Paths, Recipe, Runtime
from boneage.data.dataset import BoneAgeDataset, get_transforms, make_loader
from boneage.data.labels import (
    data_sha256,
    find_images,
    find_labels,
    join_images,
    match_images,
    pair_images,
    read_labels,
)
from boneage.data.split import SPLITS, describe_small_parts, read_split, split_samples, split_sha256
from boneage.errors import BoneAgeError, CheckpointError, ConfigError
from boneage.evaluation.evaluate import Report, save_evaluation
from boneage.evaluation.plots import (
    plot_heatmap,
    save_figure,
    save_learning_curves,
    save_report_plots,
    save_worst_cases,
)
from boneage.evaluation.prediction_table import load_table
from boneage.files import save_text
from boneage.imaging.preprocess import Preprocessing, find_processed, preprocess_folder
from boneage.inference.calibration import load_calibration
from boneage.inference.calibration_fit import describe_lacks
from boneage.inference.predictor import Predictor
from boneage.inference.registry import MODELS
from boneage.phantom.cohort import write_cohort
from boneage.training.checkpoint import Checkpoint, load_checkpoint
from boneage.training.export import Parity, export_onnx, load_exported
from boneage.training.gradcam import GradCAM, predicted_age, predicted_stage
from boneage.training.model import BoneAgePredictor
from boneage.training.train import BEST, LAST, Batch, Trainer, loaded_data, pick_device

logger = logging.getLogger(__name__)

TAKEN_OVER = (
    "backbone", "tasks", "sex_input", "unknown_sex_weight", "sex_weight", "orientation_head",
    "tta_mirror", "tta_zoom", "image_size", "sampled_size", "stretch_grey",
)  # fmt: skip
"""Settings that follow from the weights started from."""

HELD_OUT = ("val", "test")
"""The parts of a split that a model never learns from."""

PARITY_IMAGES = 32
"""Images on which an exported model is compared with its checkpoint."""

_RUN_FILES = ("models", "plots", "tensorboard", "split.csv", "history.csv",
              "predictions_val.csv", "predictions_test.csv",
              "metrics_val.json", "metrics_test.json")  # fmt: skip


def train_model(
    paths: Paths,
    recipe: Recipe,
    runtime: Runtime = Runtime(),
    *,
    split: Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    evaluated: Sequence[str] = HELD_OUT,
) -> dict[str, Report]:
    """Train on the raw or processed images, then evaluate the best checkpoint on val and test.

    Writes split, history, models, predictions, metrics and plots to `paths.output`; an earlier
    run there is moved to `paths.output/previous/` first, unless it is resumed.

    Args:
        paths: Where images, labels and results lie.
        recipe: What to train.
        runtime: How to compute.
        split: CSV of `image_id` and `split` to use instead of a split by the seed.
        resume: Whether to go on with the run in the output folder.
        tensorboard: Whether to write the history for TensorBoard too.
        evaluated: Parts to evaluate at the end; ("val",) leaves the test images unseen.

    Returns:
        Their reports.

    Raises:
        BoneAgeError: If data, settings or a checkpoint do not fit; nothing is moved then.
    """
    if recipe.init in MODELS:
        recipe = take_over(recipe)
    samples, stored_size = load_samples(paths, recipe)
    samples["split"] = (
        split_samples(samples, recipe.seed) if split is None else read_split(split, samples)
    )
    fingerprint = split_sha256(samples["image_id"], samples["split"])
    if recipe.split_sha256 not in (None, fingerprint):
        raise BoneAgeError(
            f"the split of these {len(samples)} images has sha256 {fingerprint}; the recipe "
            f"expects {recipe.split_sha256}. Use the same images, labels and seed or split file, "
            "or leave split_sha256 out."
        )
    for phrase in (*_describe_small_validation(samples), *describe_small_parts(samples)):
        logger.warning("%s", phrase)
    training = choose_training(samples, recipe)
    provenance = {
        "n_by_split": {**samples["split"].value_counts().to_dict(), "train": len(training)},
        "data_sha256": data_sha256(samples),
        "split_sha256": fingerprint,
        "held_out_sha256": data_sha256(samples[samples["split"] != "train"]),
        "train_median_years": float(training["age_years"].median()),
    }
    preprocessing = Preprocessing.of(recipe, stored_size)
    mean_age = float(training["age_years"].mean())
    model = _build_model(recipe, "none" if resume else recipe.init, mean_age)
    if recipe.synthetic_images:
        training = pd.concat([training, _draw_training(paths, recipe)], ignore_index=True)
    used = pd.concat([training, samples[samples["split"] != "train"]], ignore_index=True)
    loaders = _make_loaders(used, SPLITS, recipe, runtime, _reader(paths, preprocessing))
    trainer = Trainer(
        model, loaders, recipe, preprocessing, paths.output,
        runtime=runtime, provenance=provenance, tensorboard=tensorboard,
    )  # fmt: skip
    if resume:
        trainer.resume()
    else:
        _set_aside(paths.output)
    save_text(
        paths.output / "split.csv",
        samples[["image_id", "split"]].to_csv(index=False, lineterminator="\n"),
    )
    trainer.fit()
    return _evaluate_and_save(trainer, paths, evaluated)


def evaluate_model(
    paths: Paths, runtime: Runtime = Runtime(), *, checkpoint: Path | None = None
) -> dict[str, Report]:
    """Evaluate a trained model on the val and test images of its own split.

    Settings come from the checkpoint. The split is read from `paths.output/split.csv` and must
    be, by its fingerprint, the one that the model was trained with.

    Returns:
        The reports of "val" and "test".

    Raises:
        BoneAgeError: If checkpoint, split and images do not belong together.
    """
    trained, samples = load_trained(paths, checkpoint)
    reader = _reader(paths, trained.preprocessing)
    loaders = _make_loaders(samples, HELD_OUT, trained.recipe, runtime, reader)
    trainer = Trainer(
        trained.model, loaders, trained.recipe, trained.preprocessing, paths.output,
        runtime=runtime, provenance=trained.provenance,
    )  # fmt: skip
    return _evaluate_and_save(trainer, paths)


def explain_model(
    paths: Paths,
    runtime: Runtime = Runtime(),
    *,
    checkpoint: Path | None = None,
    head: Literal["stage", "age"] = "stage",
    cases: int = 6,
) -> list[Path]:
    """Draw Grad-CAM maps of test images, half of them answered right and half wrong.

    With the stage head, wrong is a wrong stage; with the age head, the images are those with the
    smallest and the largest error. Writes `plots/gradcam_example_<i>.png`.

    Returns:
        The files written.

    Raises:
        BoneAgeError: If checkpoint, split and images do not belong together, or `cases` is below 1.
    """
    if cases < 1:
        raise BoneAgeError(f"cases is {cases}; expected 1 image or more.")
    trained, samples = load_trained(paths, checkpoint)
    reader = _reader(paths, trained.preprocessing)
    loaders = _make_loaders(samples, ("test",), trained.recipe, runtime, reader)
    trainer = Trainer(
        trained.model, loaders, trained.recipe, trained.preprocessing, paths.output,
        runtime=runtime, provenance=trained.provenance,
    )  # fmt: skip
    data, plots = loaded_data(loaders["test"]), paths.output / "plots"
    saved = paths.output / "predictions_test.csv"
    table = load_table(saved) if checkpoint is None and saved.is_file() else None
    if table is None or list(table["image_id"]) != list(data.samples["image_id"]):
        trainer.evaluate("test", resamples=0)
        table = trainer.tables["test"]
    written: list[Path] = []
    target = predicted_stage if head == "stage" else predicted_age
    with GradCAM(trained.model, trained.recipe.image_size) as cam:
        for i, row in enumerate(_choose_cases(table, head, cases), start=1):
            item = data[row]
            (heatmap,) = cam(
                item["image"][None].to(trainer.device), item["sex"][None].to(trainer.device), target
            )
            case = table.iloc[row]
            subject = f"{case.predicted_stage} (stage head)" if head == "stage" else "a higher age"
            figure = plot_heatmap(data.read_image(row), heatmap, case, evidence_for=subject)
            written.append(plots / f"gradcam_example_{i}.png")
            save_figure(figure, written[-1])
    for earlier in set(plots.glob("gradcam_example_*.png")) - set(written):
        earlier.unlink()
    return written


def export_model(
    paths: Paths,
    out: Path,
    *,
    checkpoint: Path | None = None,
    calibration: Path | None = None,
    images: Path | None = None,
) -> Parity:
    """Write a trained model as ONNX and compare the two on images.

    Args:
        paths: Where the checkpoint is, if it is not given.
        out: File to write.
        checkpoint: A trained model; by default the best one in the output folder.
        calibration: Fitted to an earlier export of that checkpoint, to put inside.
        images: Folder of images to compare on, the first `PARITY_IMAGES` of them by id; by default
            they are drawn, of every age.

    Returns:
        How far the answers are apart.

    Raises:
        BoneAgeError: If there is no such checkpoint, the answers differ, or the calibration was
            fitted to another model.
    """
    trained = load_checkpoint(checkpoint or paths.output / BEST)
    fitted = None if calibration is None else load_calibration(calibration)
    with TemporaryDirectory() as folder:
        if images is None:
            images = Path(folder)
            write_cohort(images, n=PARITY_IMAGES, workers=1)
        used = list(find_images(images).values())[:PARITY_IMAGES]
        return export_onnx(trained, out, used, fitted)


def _choose_cases(table: pd.DataFrame, head: str, n: int) -> list[int]:
    """Row numbers of n images: right and wrong ones by turns, spread over the ages."""
    if head == "stage":
        is_right = table["predicted_stage"] == table["reference_stage"]
        order = table["reference_years"].rank(method="first").astype(int)
        # A fixed shuffle of the age order, so that a handful does not come from one age.
        spread = (order * 7919) % len(table)
        right = spread[is_right].sort_values().index
        wrong = spread[~is_right].sort_values().index
    else:
        error = (table["predicted_years"] - table["reference_years"]).abs().sort_values()
        right, wrong = error.index[: len(error) // 2], error.index[::-1][: -(-len(error) // 2)]
    n_wrong = min(len(wrong), max(n // 2, n - len(right)))
    return [*right[: n - n_wrong], *wrong[:n_wrong]]


def take_over(recipe: Recipe) -> Recipe:
    """Give a recipe the backbone, input and heads of the model in the package.

    Raises:
        ConfigError: If the recipe asks for others, beyond what the defaults are.
    """
    packaged = Recipe(**Predictor(recipe.init, threads=1).contract.recipe)
    for name in TAKEN_OVER:
        asked, default, there = (getattr(r, name) for r in (recipe, Recipe(), packaged))
        if asked not in (default, there):
            raise ConfigError(
                f"{name} is {asked}, but init {recipe.init} has {there}. Leave {name} out, or "
                "start from other weights."
            )
    taken = {name: getattr(packaged, name) for name in TAKEN_OVER}
    logger.info(
        "init %s: %s. It has learned RSNA's images: test figures on those would flatter.",
        recipe.init,
        ", ".join(f"{name} {value}" for name, value in taken.items()),
    )
    return replace(recipe, **taken)


def _describe_small_validation(samples: pd.DataFrame) -> list[str]:
    """Say for what the validation part, which calibrates the model, holds too few images."""
    val = samples[samples["split"] == "val"]
    n_of_sex = [int((val["sex"] == sex).sum()) for sex in ("M", "F")]
    lacks = describe_lacks(len(val), min(n_of_sex))
    text = f"the validation part, {len(val)} images, is too few for {'; for '.join(lacks)}"
    return [text] if lacks else []


def choose_training(samples: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Give the training part of a split without the images that are held out of it.

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


def _draw_training(paths: Paths, recipe: Recipe) -> pd.DataFrame:
    """Draw the recipe's synthetic images into the output folder, ready for training."""
    folder = paths.output / "drawn" / "raw"
    write_cohort(folder, n=recipe.synthetic_images, seed=recipe.seed)
    images = find_images(folder)
    if paths.use_processed:
        processed = paths.output / "drawn" / "processed"
        preprocess_folder(images, processed, recipe)
        images = {image_id: processed / f"{image_id}.png" for image_id in images}
    drawn = match_images(read_labels(find_labels(folder)), images)
    return drawn.assign(image_id="drawn-" + drawn["image_id"], split="train")


def load_samples(paths: Paths, recipe: Recipe) -> tuple[pd.DataFrame, int | None]:
    """Read the labels and match each row with its image.

    Returns:
        One row an image, sorted by id, and the side of the processed images or None if raw.
    """
    labels = read_labels(
        paths.labels or find_labels(paths.data),
        unknown_sex="drop" if recipe.drop_unknown_sex else "error",
        group_column=recipe.group_column,
    )
    if not paths.use_processed:
        return match_images(labels, find_images(paths.data)), None
    raw = find_images(paths.data, required=False)
    # A processed image has the name of its raw one, which the table may know by another end of it.
    file_of = {path: name for name, path in raw.items()}
    names = {i: file_of[path] for i, path in pair_images(labels, raw).items()}
    sources = {name: raw.get(name) for name in (names.get(i, i) for i in labels["image_id"])}
    images, stored_size = find_processed(paths.processed, sources, recipe)
    images = {i: images[name] for i in labels["image_id"] if (name := names.get(i, i)) in images}
    # Sampled images are what they would be without the folder: nothing more was done to them.
    return join_images(labels, images), None if recipe.sampled_size else stored_size


def load_trained(paths: Paths, checkpoint: Path | None) -> tuple[Checkpoint, pd.DataFrame]:
    """Load a checkpoint with the images of the split it was trained with, `split` among them."""
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
    """Give each image the part it had in training, and hold split and labels to what they were."""
    split_file = paths.output / "split.csv"
    if not split_file.is_file():
        raise CheckpointError(
            f"{split_file} does not exist; without it the test images are not known to be unseen. "
            "Restore the file, or train again."
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
            raise CheckpointError(f"none of the {part} images of {checkpoint} is in {paths.data}.")
        if found < wanted:
            logger.warning("only %d of the %d %s images are here", found, wanted, part)
    held_out = known[known["split"] != "train"]
    if len(held_out) == (split["split"] != "train").sum():
        expected = provenance.get("held_out_sha256")
        if expected not in (None, data_sha256(held_out)):
            raise CheckpointError(
                f"the ages or sexes of the held-out images are not those that {checkpoint} was "
                "trained beside. Restore the labels, or train again."
            )
    return known


def _build_model(recipe: Recipe, init: str, mean_age_years: float) -> BoneAgePredictor:
    torch.manual_seed(recipe.seed)
    if init in MODELS:
        model = BoneAgePredictor.from_recipe(recipe)
        load_exported(model, MODELS[init])
        model.init_used = init
        return model
    model = BoneAgePredictor.from_recipe(recipe, init=init)
    if recipe.age_bias == "mean" and model.age_head is not None:
        torch.nn.init.constant_(model.age_head.bias, mean_age_years)
    return model


def _reader(paths: Paths, preprocessing: Preprocessing) -> Preprocessing | None:
    return None if paths.use_processed else preprocessing


def _make_loaders(
    samples: pd.DataFrame,
    splits: tuple[str, ...],
    recipe: Recipe,
    runtime: Runtime,
    reader: Preprocessing | None,
) -> dict[str, DataLoader[Batch]]:
    workers = runtime.workers
    if workers is None:
        # On a CPU, torch's threads hold every core already and stall when one is taken away.
        on_cpu = pick_device(runtime.device).type == "cpu"
        workers = 0 if on_cpu else min(4, os.cpu_count() or 1)
    loaders = {}
    for split in splits:
        dataset = BoneAgeDataset(
            samples[samples["split"] == split],
            get_transforms(split, recipe),
            reader,
            seed=recipe.seed,
        )
        loaders[split] = make_loader(dataset, recipe, shuffle=split == "train", workers=workers)
    return loaders


def _set_aside(output: Path) -> None:
    """Move an earlier run's files to `output/previous/<time>`, so that nothing is overwritten."""
    if not (output / LAST).exists() and not (output / BEST).exists():
        return
    aside = output / "previous" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    aside.mkdir(parents=True)
    for name in _RUN_FILES:
        if (output / name).exists():
            (output / name).rename(aside / name)
    logger.warning("the earlier run in %s was moved to %s", output, aside)


def _evaluate_and_save(
    trainer: Trainer, paths: Paths, splits: Sequence[str] = HELD_OUT
) -> dict[str, Report]:
    reports = {}
    plots = paths.output / "plots"
    for split in splits:
        report = {**trainer.evaluate(split), "provenance": trainer.provenance}
        table = trainer.tables[split]
        save_evaluation(paths.output, table, report)
        save_report_plots(plots, split, table, report)
        data = loaded_data(trainer.loaders[split])
        save_worst_cases(plots / f"worst_cases_{split}.png", report, data)
        reports[split] = report
    history = paths.output / "history.csv"
    if history.is_file():
        save_learning_curves(plots / "learning_curves.png", pd.read_csv(history))
    return reports
