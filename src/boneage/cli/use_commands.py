"""The verbs of those who use a model: predict, calibrate, audit. They need no PyTorch."""

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
        raise ValueError(str(error)) from None  # which makes it wrong usage


SexOption = Annotated[ProvidedSex | None, Parameter(converter=_convert_sex)]
Part = Literal["val", "test"]
Workers = Annotated[int | None, Parameter(validator=Number(gte=1))]


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
    """Turn predictions with references, ours or anyone's, into the evidence a reviewer asks for.

    Args:
        predictions: CSV files; the first is audited, further ones are compared with it.
        out: Folder for report.html, audit.json and the tables as CSV.
        by: Columns that name further groups, such as site.
        images: Folder of images to answer first, instead of a CSV.
        labels: Their CSV with id, bone age in months and sex.
        model: File of `boneage export`, if not the model in the package.
        calibration: File of `boneage calibrate`, if not the model's own.
        stress: Answer the images again turned, mirrored, inverted, darkened, blurred and so on.
        regions: CSV of boxes drawn on the images, or a folder of masks, to measure where the model
            looks.
        resamples: Bootstrap resamples for the intervals, and permutations; 0 leaves both out.
        workers: Threads; by default one a core.
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
    sex: SexOption = None,
    table: Path | None = None,
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    heatmap: Path | None = None,
    model: Path | None = None,
    calibration: Path | None = None,
    workers: Workers = None,
) -> int:
    """Estimate bone age from images: files, or folders and all below them.

    Args:
        path: PNG, JPEG, TIFF, BMP or DICOM files, or folders of them.
        sex: Sex of every image that the table does not name, M, F or unknown (male, female, boy,
            girl, 1 and 0 will do); by default a DICOM file's own word, else unknown.
        table: CSV with the sex and, where known, the reference age of each image id.
        out: CSV to write, a row as soon as it is there; an interrupted run is taken up.
        json: Print the rows as JSON; with --out, those that are answered now.
        heatmap: Folder for pictures of where the evidence lies.
        model: File of `boneage export`, if not the model in the package.
        calibration: File of `boneage calibrate`, if not the model's own.
        workers: Threads; by default one a core.
    """
    from contextlib import nullcontext

    from boneage.cli.text import Counts, describe_prediction
    from boneage.files import locked
    from boneage.imaging.discovery import discover
    from boneage.inference.batch import check_heatmaps, make_records, predict_images
    from boneage.inference.predictor import Predictor
    from boneage.inference.results_file import PredictionsFile

    if heatmap is not None:
        check_heatmaps(heatmap, path)
    found = discover(path)
    known = {}
    if table is not None:
        from boneage.data.labels import (
            read_known,
        )  # and with it pandas, which one image does not need

        known = read_known(table)
    records = make_records(found.images, sex, known, heatmap)
    predictor = Predictor(model, calibration=calibration, threads=int(len(records) > 1))
    if heatmap is not None and "age_map" not in predictor.contract.outputs:
        raise BoneAgeError(f"{model} gives no map of the age. Leave --heatmap out.")
    with_reference = any(record.reference_years is not None for record in records)
    counts = Counts(found.describe_rest())
    if known:
        n_with_row = sum(record.image_id in known for record in records)
        counts.not_in_table, counts.without_image = (
            len(records) - n_with_row,
            len(known) - n_with_row,
        )
    is_single = len(records) == 1
    with nullcontext() if out is None else locked(out):
        file = None
        if out is not None:
            file = PredictionsFile(
                out, records, with_reference=with_reference, fingerprint=predictor.fingerprint
            )
            counts.kept, counts.changed = len(records) - len(file.missing), file.n_changed
            records = file.missing
        predictions = predict_images(predictor, records, workers)
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
    return 1 if counts.has_errors else 0


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
    """Refit a model's bias and intervals to your own labelled images.

    Args:
        table: CSV with id, bone age in months and sex; by default the one in the folder of images.
        images: Folder of the images, if they are not beside the table.
        part: Take only the images in this part of the training run in --output: val for the
            validation part.
        output: Folder of the training run, for --part.
        out: TOML file to write, for `boneage predict --calibration`.
        model: File of `boneage export`, if not the model in the package.
        workers: Threads; by default one a core.
    """
    from boneage.cli.text import describe_calibration
    from boneage.data.labels import find_labels, read_known
    from boneage.imaging.discovery import discover
    from boneage.inference.batch import calibrate as fit
    from boneage.inference.batch import make_records
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
    """Print predictions as one JSON array while they pass."""
    import json

    from boneage.inference.results_file import to_plain_row

    before = "[\n"
    for prediction in predictions:
        print(before + json.dumps(to_plain_row(prediction, with_reference=with_reference)), end="")
        before = ",\n"
        yield prediction
    print("[]" if before == "[\n" else "\n]")
