"""The commands that make a model, from images, synthetic or real, to an exported network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from boneage.config import ImageSettings, Paths, Recipe, Runtime
from boneage.errors import BoneAgeError

if TYPE_CHECKING:
    from boneage.evaluation.evaluate import Report

Flat = Parameter(name="*")


def phantom(
    out: Path = Paths.data,
    *,
    n: int = 800,
    seed: int = Recipe.seed,
    height: int = 256,
    masks: bool = False,
    workers: int | None = Runtime.workers,
) -> None:
    """Write a cohort of synthetic hand radiographs, in the layout of the RSNA data.

    Args:
        out: Folder to write to: new, empty, or an earlier synthetic cohort, to complete or replace.
        n: Number of images.
        seed: Seed; the same seed gives the same files.
        height: Height of the images in pixels; the width varies.
        masks: Also write a mask of every bone and every open growth plate.
        workers: Number of processes; by default one per core.
    """
    from boneage.phantom.cohort import write_cohort

    folder = write_cohort(out, n, seed, height, masks, workers)
    print(f"{n} synthetic images in {folder}. They are computer drawings, not patient data.")


def preprocess(
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    settings: Annotated[ImageSettings, Flat] = ImageSettings(),
    workers: Annotated[int | None, Parameter(validator=Number(gte=0))] = Runtime.workers,
) -> None:
    """Resize the raw images once, or cut out their hands, into the processed folder.

    Of the folders only --data and --processed are used. The other options are accepted so that one
    command line can serve all commands.

    Args:
        workers: Number of processes; by default one per core.
    """
    from boneage.data.labels import find_images
    from boneage.data.processed import preprocess_folder
    from boneage.imaging.preprocess import Preprocessing
    from boneage.inference.hand_view import make_reader

    reader = make_reader(Preprocessing.of_processed(settings))
    summary = preprocess_folder(find_images(paths.data), paths.processed, settings, workers, reader)
    print(
        f"{summary.total} images: {summary.written} reduced to {settings.image_size} px, "
        f"{summary.up_to_date} up to date, {len(summary.broken)} broken; in {paths.processed}"
    )
    if summary.inverted:
        print(f"inverted because bones were dark: {', '.join(summary.inverted)}")
    for image_id, message in summary.broken.items():
        print(f"broken: {image_id}: {message}")


def train(
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    recipe: Annotated[Recipe, Flat] = Recipe(),
    runtime: Annotated[Runtime, Flat] = Runtime(),
    split: Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train a model, then evaluate its best checkpoint on the validation and test images.

    Args:
        split: CSV of image_id and split (train, val, test) to use instead of a random split;
            give it again to resume.
        resume: Continue the run in the output folder after its last finished epoch.
        tensorboard: Also log to output/tensorboard.
    """
    from boneage.training.workflows import train_model

    reports = train_model(
        paths, recipe, runtime, split=split, resume=resume, tensorboard=tensorboard
    )
    _print_reports(reports, paths)


def evaluate(
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    runtime: Annotated[Runtime, Flat] = Runtime(),
    checkpoint: Path | None = None,
) -> None:
    """Evaluate a trained model on the validation and test images of its split.

    Args:
        checkpoint: Model to evaluate, if not the best one in the output folder.
    """
    from boneage.training.workflows import evaluate_model

    _print_reports(evaluate_model(paths, runtime, checkpoint=checkpoint), paths)


def explain(
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    runtime: Annotated[Runtime, Flat] = Runtime(),
    checkpoint: Path | None = None,
    head: Literal["stage", "age"] = "stage",
    cases: int = 6,
) -> None:
    """Plot Grad-CAM saliency maps of test images with correct and with wrong predictions.

    Args:
        checkpoint: Model to explain, if not the best one in the output folder.
        head: Prediction to explain: the stage, or the age.
        cases: Number of images, half with a correct and half with a wrong prediction if possible.
    """
    from boneage.training.workflows import explain_model

    for path in explain_model(paths, runtime, checkpoint=checkpoint, head=head, cases=cases):
        print(path)


def export(
    checkpoint: Path | None = None,
    *,
    output: Path = Paths.output,
    out: Path = Path("model.onnx"),
    calibration: Path | None = None,
    images: Path | None = None,
) -> None:
    """Write a trained model as ONNX, checked against its checkpoint on 32 images.

    Args:
        checkpoint: Model to export, if not the best one in the output folder.
        output: Folder of the run.
        out: ONNX file to write.
        calibration: File of `boneage calibrate`, fitted to an earlier export of this checkpoint,
            to store in the ONNX file.
        images: Folder of images to check it on; by default, synthetic images.
    """
    from boneage.training.workflows import export_model

    parity = export_model(
        Paths(output=output), out, checkpoint=checkpoint, calibration=calibration, images=images
    )
    print(
        f"{out}: differs from its checkpoint by at most {parity.months:.2g} months and "
        f"{parity.probability:.2g} in probability on {parity.n} images"
    )


def download(out: Path = Paths.data, *, accept_terms: bool = False) -> None:
    """Download the RSNA 2017 bone-age images from Kaggle with its official client.

    Args:
        out: Folder to write to.
        accept_terms: Accept the terms of the data, which are printed first.
    """
    from boneage.data.rsna import TERMS, download_rsna

    print(TERMS)
    if not accept_terms:
        raise BoneAgeError("nothing was downloaded; to accept these terms, pass --accept-terms.")
    print(f"images in {download_rsna(out)}")


def _print_reports(reports: "dict[str, Report]", paths: Paths) -> None:
    from boneage.cli.text import summarise

    for report in reports.values():
        print(summarise(report), end="\n\n")
    print(f"tables, metrics and models in {paths.output}, plots in {paths.output / 'plots'}")
