"""The commands for using a model: predict, calibrate, audit. They need no PyTorch."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from boneage.errors import BoneAgeError
from boneage.sex import ProvidedSex, parse_provided_sex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cyclopts import Token

    from boneage.inference.prediction import Prediction
    from boneage.inference.predictor import Predictor

    Known = dict[str, tuple[str | None, float | None]]


def _convert_sex(_: object, tokens: "Sequence[Token]") -> ProvidedSex | None:
    try:
        return parse_provided_sex(tokens[0].value)
    except BoneAgeError as error:
        raise ValueError(str(error)) from None  # cyclopts reports this as wrong usage


SexOption = Annotated[ProvidedSex | None, Parameter(converter=_convert_sex)]
Part = Literal["val", "test"]
Workers = Annotated[int | None, Parameter(validator=Number(gte=1))]

EXAMPLE = Path(__file__).parent / "example" / "synthetic_boy_11_years.png"
"""Synthetic radiograph for `predict --example`; SYNTHETIC.txt beside it says how it was drawn."""

EXAMPLE_SEX: ProvidedSex = "M"
EXAMPLE_YEARS = 11.0


def audit(
    *predictions: Path,
    out: Path = Path("audit"),
    by: tuple[str, ...] = (),
    images: Path | None = None,
    labels: Path | None = None,
    model: Path | None = None,
    calibration: Path | None = None,
    stress: Annotated[bool, Parameter(negative="")] = False,
    regions: Path | None = None,
    resamples: Annotated[int, Parameter(validator=Number(gte=0))] = 2000,
    workers: Workers = None,
) -> None:
    """Report how accurate, calibrated, fair and robust the predictions of any model are.

    Args:
        predictions: CSV files of predictions with reference ages. The first is audited, each
            further one is compared with it.
        out: Folder for report.html, audit.json and the tables as CSV.
        by: Columns whose values form further groups, such as site.
        images: Folder of images to predict first, instead of a CSV of predictions.
        labels: CSV of these images with id, bone age in months and sex.
        model: Name of a model in the package, or a file of `boneage export`; by default boneage.
        calibration: File of `boneage calibrate` to use instead of the model's own calibration.
        stress: Predict the images again after rotation, mirroring, inversion, blur and so on.
        regions: CSV of boxes that readers marked on the images, or a folder of masks; the audit
            measures how much of each saliency map lies in them.
        resamples: Bootstrap resamples for the intervals and permutations for the tests; 0 omits
            both.
        workers: Threads; by default one per core.
    """
    from boneage.audit.figures import audit as compute
    from boneage.audit.report import describe_run, save_audit
    from boneage.audit.wording import describe_differences, format_figure
    from boneage.evaluation.prediction_table import keep_apart, read_all

    if bool(predictions) == (images is not None) or (images is None) != (labels is None):
        raise BoneAgeError("pass either CSV files of predictions, or --images with --labels.")
    if images is not None and labels is not None:
        from boneage.audit.workflow import PREDICTIONS, audit_images

        result, table, gallery = audit_images(
            images, labels, out, by=by, model=model, calibration=calibration,
            stress=stress, regions=regions, resamples=resamples, workers=workers,
        )  # fmt: skip
        inputs = [out / PREDICTIONS, labels]
    elif stress or regions is not None:
        raise BoneAgeError("--stress and --regions need the images; pass --images with --labels.")
    else:
        keep_apart(out, predictions)
        read = read_all(list(predictions), by)
        result, table, gallery = compute(read, resamples=resamples), read[0].table, []
        inputs = list(predictions)
    result |= describe_run(["boneage", *sys.argv[1:]], inputs)
    page = save_audit(out, result, table, gallery)
    print(f"{result['name']}, n = {result['n']}")
    for name, figure in (("MAE", "mae_months"), ("bias", "bias_months")):
        print(f"  {name:5} {format_figure(result['accuracy'][figure], 2)} months")
    for sentence in describe_differences(result):
        print(f"  {sentence}")
    print(f"report in {page}")


def predict(
    *path: Path,
    example: Annotated[bool, Parameter(negative="")] = False,
    sex: SexOption = None,
    table: Path | None = None,
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    heatmap: Path | None = None,
    model: Path | None = None,
    calibration: Path | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    workers: Workers = None,
) -> int:
    """Estimate bone age from hand radiographs: files, or folders and all folders below them.

    Images that do not show one whole hand are rejected without an age. Disease, fractures and other
    views of the hand are not recognised.

    Args:
        path: PNG, JPEG, TIFF, BMP or DICOM files, or folders of them.
        example: Predict the synthetic radiograph in the package instead, a boy of 11 years.
        sex: Sex of every image that the table does not name: M, F or unknown (also male, female,
            boy, girl, 1, 0). By default the sex in a DICOM file, else unknown.
        table: CSV with the sex and, where known, the reference age of each image id.
        out: CSV to write, row by row. An interrupted run continues in the same file.
        json: Print the rows as JSON; with --out, only the rows that this run adds.
        heatmap: Folder for saliency maps, one picture per image.
        model: Name of a model in the package, or a file of `boneage export`; by default boneage.
        calibration: File of `boneage calibrate` to use instead of the model's own calibration.
        force: Predict also images that are rejected, such as one of no hand or a CT.
        workers: Threads; by default one per core.
    """
    from contextlib import nullcontext

    from boneage.cli.text import Counts, describe_prediction
    from boneage.files import locked
    from boneage.imaging.discovery import discover
    from boneage.inference.batch import check_heatmaps, make_records, predict_images
    from boneage.inference.predictor import Predictor
    from boneage.inference.results_file import PredictionsFile

    known: Known = {}
    if example:
        if path or table is not None:
            raise BoneAgeError("--example brings its own image. Pass no images and no --table.")
        path, known = (EXAMPLE,), _describe_example(sex)
    elif not path:
        raise BoneAgeError("there is nothing to predict; pass images or folders, or --example.")
    elif table is not None:
        # Loads pandas, which a single image does not need.
        from boneage.data.labels import read_known

        known = read_known(table)
    if heatmap is not None:
        check_heatmaps(heatmap, path)
    found = discover(path)
    records = make_records(found.images, sex, known, heatmap)
    predictor = Predictor(model, calibration=calibration, threads=int(len(records) > 1))
    if heatmap is not None and "age_map" not in predictor.contract.outputs:
        raise BoneAgeError(f"{model} gives no map of the age. Leave --heatmap out.")
    with_reference = any(record.reference_years is not None for record in records)
    counts = Counts(found.describe_rest())
    if known:
        n_with_row = sum(record.image_id in known for record in records)
        counts.not_in_table = len(records) - n_with_row
        counts.without_image = len(known) - n_with_row
    is_single = len(records) == 1
    with nullcontext() if out is None else locked(out):
        file = None
        if out is not None:
            file = PredictionsFile(
                out, records, with_reference=with_reference,
                fingerprint=predictor.fingerprint, force=force,
            )  # fmt: skip
            counts.kept, counts.changed = len(records) - len(file.missing), file.n_changed
            records = file.missing
        predictions = predict_images(predictor, records, workers, force=force)
        if json:
            predictions = _print_json(predictions, with_reference=with_reference)
        for prediction in _show_progress(predictions, len(records)):
            counts.add(prediction)
            if file is not None:
                file.append(prediction)
            elif not json:
                _print_beside_bar(describe_prediction(prediction, in_full=is_single), len(records))
    if file is not None or json or not is_single:
        print(counts.summarise(out), file=sys.stderr if json else sys.stdout)
    if heatmap is not None:
        print(f"saliency maps in {heatmap}", file=sys.stderr)
    return 1 if counts.has_errors else 0


def _describe_example(sex: ProvidedSex | None) -> "Known":
    """Say what the example is, and give its row as `read_known` would."""
    print(
        "This example is a computer drawing of a boy's hand at 11 years. It shows no person.",
        file=sys.stderr,
    )
    provided = sex or EXAMPLE_SEX
    return {EXAMPLE.stem: (None if provided == "unknown" else provided, EXAMPLE_YEARS)}


def calibrate(
    table: Path | None = None,
    *,
    images: Path | None = None,
    part: Part | None = None,
    output: Path = Path("output"),
    out: Path = Path("site.toml"),
    model: Path | None = None,
    workers: Workers = None,
) -> None:
    """Fit a model's bias and intervals to labelled images of your own.

    Args:
        table: CSV with id, bone age in months and sex; by default the one in the folder of images.
        images: Folder of the images; by default the folder of the table.
        part: Use only the validation images (val) or the test images of a training run.
        output: Folder of that training run, for --part.
        out: TOML file to write, for `boneage predict --calibration`.
        model: Name of a model in the package, or a file of `boneage export`; by default boneage.
        workers: Threads; by default one per core.
    """
    from boneage.cli.text import describe_calibration
    from boneage.data.labels import find_labels, read_known
    from boneage.imaging.discovery import discover
    from boneage.inference.batch import calibrate as fit, make_records
    from boneage.inference.predictor import Predictor

    if table is None:
        if images is None:
            raise BoneAgeError("pass a table of labels, or --images with a folder that holds one.")
        table = find_labels(images)
    if out.resolve() == table.resolve():
        raise BoneAgeError(f"--out is {out}, the table itself. Pass another file.")
    known = read_known(table)
    folder = images or table.parent
    if not folder.is_dir():
        raise BoneAgeError(f"{folder} is not a folder; expected the images of {table}.")
    predictor = Predictor(model, threads=1)
    if part is not None:
        known = _keep_part(known, output, part, predictor)
    found = discover([folder])
    described = make_records(found.images, None, known)
    records = [record for record in described if record.reference_years is not None]
    if not records:
        raise BoneAgeError(
            f"none of the {len(found.images)} images in {folder} has an age in {table}. Pass the "
            "folder of its images with --images."
        )
    calibration, broken = fit(predictor, records, workers)
    calibration.save(out)
    print(describe_calibration(calibration, predictor.calibration))
    for message in broken.values():
        print(f"left out: {message}")
    without = sum(years is not None for _, years in known.values()) - len(records)
    if without:
        print(f"left out: {without} labelled id{'s' * (without != 1)} without an image in {folder}")
    unlabelled = len(described) - len(records)
    if unlabelled and part is None:
        print(f"left out: {unlabelled} image{'s' * (unlabelled != 1)} without an age in {table}")
    for phrase in found.describe_rest():
        print(phrase)
    print(f"use it with: boneage predict --calibration {out}")


def _keep_part(known: "Known", output: Path, part: str, predictor: "Predictor") -> "Known":
    """Keep the rows of one part of the split that a model was trained with."""
    from boneage.data.split import read_part

    ids = read_part(output, part, str(predictor.contract.provenance.get("split_sha256", "")))
    return {image_id: facts for image_id, facts in known.items() if image_id in ids}


def _show_progress(predictions: "Iterator[Prediction]", total: int) -> "Iterable[Prediction]":
    if total < 2:
        return predictions
    from tqdm import tqdm

    return tqdm(predictions, total=total, desc="predict", unit="image")


def _print_beside_bar(text: str, total: int) -> None:
    """Print above the progress bar, if there is one."""
    if total < 2:
        print(text)
        return
    from tqdm import tqdm

    tqdm.write(text)


def _print_json(
    predictions: "Iterator[Prediction]", *, with_reference: bool
) -> "Iterator[Prediction]":
    """Pass predictions on, and print them as one JSON array on the way."""
    import json

    from boneage.inference.results_file import to_plain_row

    before = "[\n"
    for prediction in predictions:
        print(before + json.dumps(to_plain_row(prediction, with_reference=with_reference)), end="")
        before = ",\n"
        yield prediction
    print("[]" if before == "[\n" else "\n]")
