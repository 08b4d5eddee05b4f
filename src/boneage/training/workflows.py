"""Training, evaluation, explanation and export as the commands run them, with all their files."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pandas as pd

from boneage.config import Paths, Recipe, Runtime
from boneage.data.dataset import BoneAgeDataset, get_dataset
from boneage.data.labels import find_images
from boneage.data.split import SPLITS, describe_small_parts, read_split, split_samples, split_sha256
from boneage.errors import BoneAgeError
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
from boneage.imaging.preprocess import Preprocessing
from boneage.inference.calibration import load_calibration
from boneage.inference.calibration_fit import describe_lacks
from boneage.inference.hand_view import make_reader
from boneage.phantom.cohort import write_cohort
from boneage.training.checkpoint import BEST, LAST, load_checkpoint
from boneage.training.device import pick_device
from boneage.training.export import Parity, export_onnx
from boneage.training.gradcam import GradCAM, predicted_age, predicted_stage
from boneage.training.initial_weights import build_model, take_over
from boneage.training.predict import evaluate_loader, predict_loader
from boneage.training.samples import (
    HELD_OUT,
    choose_training,
    describe_data,
    load_samples,
    load_trained,
    make_loaders,
    make_synthetic,
)
from boneage.training.train import Trainer

logger = logging.getLogger(__name__)

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
        paths: Where images, labels and results are.
        recipe: What to train.
        runtime: How to compute.
        split: CSV of `image_id` and `split` to use instead of a split by the seed.
        resume: Whether to continue the run in the output folder.
        tensorboard: Whether to write the history for TensorBoard too.
        evaluated: Parts to evaluate at the end; with ("val",) no test image is predicted.

    Returns:
        Their reports.

    Raises:
        BoneAgeError: If data, settings or a checkpoint do not fit; nothing is moved then.
    """
    recipe = take_over(recipe)
    samples, stored_size = load_samples(paths, recipe)
    samples["split"] = _assign_split(samples, recipe, split)
    training = choose_training(samples, recipe)
    held_out = samples[samples["split"] != "train"]
    mean_age = float(training["age_years"].mean())
    model = build_model(recipe, "none" if resume else recipe.init, mean_age)
    provenance = describe_data(samples, training)
    if recipe.synthetic_images:
        training = pd.concat([training, make_synthetic(paths, recipe)], ignore_index=True)
    preprocessing = Preprocessing.of(recipe, stored_size)
    loaders = make_loaders(
        pd.concat([training, held_out], ignore_index=True), SPLITS, recipe,
        None if paths.use_processed else make_reader(preprocessing), runtime,
    )  # fmt: skip
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
    reports = {}
    for part in evaluated:
        reports[part] = {**trainer.evaluate(part), "provenance": trainer.provenance}
        data = get_dataset(loaders[part])
        _save_figures(paths.output, trainer.tables[part], reports[part], data)
    _save_learning_curves(paths.output)
    return reports


def _assign_split(samples: pd.DataFrame, recipe: Recipe, split: Path | None) -> pd.Series:
    """Give each image its part, by the seed or from a file; warn of parts that are small.

    Raises:
        BoneAgeError: If the recipe expects another split.
    """
    parts = split_samples(samples, recipe.seed) if split is None else read_split(split, samples)
    fingerprint = split_sha256(samples["image_id"], parts)
    if recipe.split_sha256 not in (None, fingerprint):
        raise BoneAgeError(
            f"the split of these {len(samples)} images has sha256 {fingerprint}; the recipe "
            f"expects {recipe.split_sha256}. Use the same images, labels and seed or split file, "
            "or leave split_sha256 out."
        )
    assigned = samples.assign(split=parts)
    for phrase in (*_describe_small_validation(assigned), *describe_small_parts(assigned)):
        logger.warning("%s", phrase)
    return parts


def _describe_small_validation(samples: pd.DataFrame) -> list[str]:
    """Say what the validation images, which calibrate the model, are too few for."""
    val = samples[samples["split"] == "val"]
    n_of_sex = [int((val["sex"] == sex).sum()) for sex in ("M", "F")]
    lacks = describe_lacks(len(val), min(n_of_sex))
    text = f"the validation part, {len(val)} images, is too few for {'; for '.join(lacks)}"
    return [text] if lacks else []


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
    reader = None if paths.use_processed else make_reader(trained.preprocessing)
    reports = {}
    for split, loader in make_loaders(samples, HELD_OUT, trained.recipe, reader, runtime).items():
        table, report = evaluate_loader(
            trained.model,
            loader,
            pick_device(runtime.device),
            split,
            baseline_years=trained.provenance.get("train_median_years"),
        )
        reports[split] = {**report, "provenance": trained.provenance}
        _save_figures(paths.output, table, reports[split], get_dataset(loader))
    _save_learning_curves(paths.output)
    return reports


def explain_model(
    paths: Paths,
    runtime: Runtime = Runtime(),
    *,
    checkpoint: Path | None = None,
    head: Literal["stage", "age"] = "stage",
    cases: int = 6,
) -> list[Path]:
    """Plot Grad-CAM maps of test images, half with a correct and half with a wrong prediction.

    With the stage head, a prediction is wrong if its stage is; with the age head, the images are
    those with the smallest and the largest errors. Writes `plots/gradcam_example_<i>.png`.

    Returns:
        The files written.

    Raises:
        BoneAgeError: If checkpoint, split and images do not belong together, or `cases` is below 1.
    """
    if cases < 1:
        raise BoneAgeError(f"cases is {cases}; expected 1 image or more.")
    trained, samples = load_trained(paths, checkpoint)
    device = pick_device(runtime.device)
    reader = None if paths.use_processed else make_reader(trained.preprocessing)
    (loader,) = make_loaders(samples, ("test",), trained.recipe, reader, runtime).values()
    data, plots = get_dataset(loader), paths.output / "plots"
    saved = paths.output / "predictions_test.csv"
    table = load_table(saved) if checkpoint is None and saved.is_file() else None
    if table is None or list(table["image_id"]) != list(data.samples["image_id"]):
        table = predict_loader(trained.model, loader, device)
    model = trained.model.to(device)
    written: list[Path] = []
    target = predicted_stage if head == "stage" else predicted_age
    with GradCAM(model, trained.recipe.image_size) as cam:
        for i, row in enumerate(_choose_cases(table, head, cases), start=1):
            item = data[row]
            (heatmap,) = cam(item["image"][None].to(device), item["sex"][None].to(device), target)
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
        calibration: Fitted to an earlier export of that checkpoint, to store in the file.
        images: Folder of images to compare on, the first `PARITY_IMAGES` of them by id; by default
            synthetic images of every age.

    Returns:
        The largest differences between the two.

    Raises:
        BoneAgeError: If there is no such checkpoint, the outputs differ, or the calibration was
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
    """Choose the rows of n images, right and wrong ones, spread over the ages."""
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


def _save_figures(output: Path, table: pd.DataFrame, report: Report, data: BoneAgeDataset) -> None:
    """Write the prediction table, the report and the plots of one split."""
    plots, split = output / "plots", report["split"]
    save_evaluation(output, table, report)
    save_report_plots(plots, split, table, report)
    save_worst_cases(plots / f"worst_cases_{split}.png", report, data)


def _save_learning_curves(output: Path) -> None:
    history = output / "history.csv"
    if history.is_file():
        save_learning_curves(output / "plots" / "learning_curves.png", pd.read_csv(history))
