"""The verbs of those who use a model: predict, calibrate, audit. They need no PyTorch."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from boneage.config import Told
from boneage.errors import BoneAgeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from boneage.prediction import Prediction

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
    draws: Annotated[int, Parameter(validator=Number(gte=0))] = 2000,
    workers: Workers = None,
) -> None:
    """Turn predictions with references, ours or anyone's, into the evidence a reviewer asks for.

    Args:
        predictions: CSV files; the first is audited, further ones are compared with it.
        out: Folder for report.html, audit.json and the tables as CSV.
        by: Columns that name further groups, such as site.
        images: Folder of films to answer first, instead of a CSV.
        labels: Their CSV with id, bone age in months and sex.
        model: File of `boneage export`, if not the model in the package.
        calibration: File of `boneage calibrate`, if not the model's own.
        stress: Answer the films again turned, mirrored, inverted, darkened, blurred and so on.
        regions: CSV of boxes drawn on the films, or a folder of masks, to measure where the model
            looks.
        draws: Bootstrap draws for the intervals, and permutations; 0 leaves both out.
        workers: Threads; by default one a core.
    """
    from boneage.audit import audit as compute
    from boneage.audit_page import format_figure, save_audit
    from boneage.tables import keep_apart, read_all

    if bool(predictions) == (images is not None) or (images is None) != (labels is None):
        raise BoneAgeError("pass either CSV files of predictions, or --images with --labels.")
    if images is not None and labels is not None:
        from boneage.audit_films import audit_films

        result, table, gallery = audit_films(
            images, labels, out, by=by, model=model, calibration=calibration,
            stress=stress, regions=regions, draws=draws, workers=workers,
        )  # fmt: skip
    elif stress or regions is not None:
        raise BoneAgeError("--stress and --regions need the films; pass --images with --labels.")
    else:
        keep_apart(out, predictions)
        read = read_all(list(predictions), by)
        result, table, gallery = compute(read, draws=draws), read[0].table, []
    page = save_audit(out, result, table, gallery)
    print(f"{result['name']}, n = {result['n']}")
    for name, figure in (("MAE", "mae_months"), ("bias", "bias_months")):
        print(f"  {name:5} {format_figure(result['accuracy'][figure], 2)} months")
    print(f"report in {page}")


def predict(
    *path: Path,
    sex: Told | None = None,
    table: Path | None = None,
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    heatmap: Path | None = None,
    model: Path | None = None,
    calibration: Path | None = None,
    workers: Workers = None,
) -> int:
    """Estimate bone age from films: files, or folders and all below them.

    Args:
        path: PNG, JPEG, TIFF, BMP or DICOM files, or folders of them.
        sex: Sex of every film that the table does not name; by default a DICOM file's own word,
            else unknown.
        table: CSV with the sex and, where known, the reference age of each image id.
        out: CSV to write, a row as soon as it is there; an interrupted run is taken up.
        json: Print the rows as JSON; with --out, those that are answered now.
        heatmap: Folder for pictures of where the evidence lies.
        model: File of `boneage export`, if not the model in the package.
        calibration: File of `boneage calibrate`, if not the model's own.
        workers: Threads; by default one a core.
    """
    from boneage.batch import (
        PredictionsFile,
        check_heatmaps,
        describe_films,
        find_films,
        predict_films,
    )
    from boneage.describe import Counts, describe_prediction
    from boneage.files import cut_suffix
    from boneage.predict import Predictor

    if heatmap is not None:
        check_heatmaps(heatmap, path)
    paths, others = find_films(path)
    known = {}
    if table is not None:
        from boneage.labels import read_known  # and with it pandas, which one film does not need

        known = read_known(table)
    films = describe_films(paths, sex, known, heatmap)
    predictor = Predictor(model, calibration=calibration, threads=int(len(films) > 1))
    if heatmap is not None and "age_map" not in predictor.contract.outputs:
        raise BoneAgeError(f"{model} gives no map of the age. Leave --heatmap out.")
    with_reference = any(film.reference_years is not None for film in films)
    counts = Counts(others)
    if known:
        counts.not_in_table = sum(cut_suffix(path.name) not in known for path in paths)
    file = None
    if out is not None:
        file = PredictionsFile(
            out,
            films,
            with_reference=with_reference,
            answer=lambda film: next(predict_films(predictor, [film], 1)),
        )
        counts.kept = len(films) - len(file.missing)
        films = file.missing
    predictions = predict_films(predictor, films, workers)
    if json:
        predictions = _print_json(predictions, with_reference=with_reference)
    is_single = len(paths) == 1
    for prediction in _show_progress(predictions, len(films)):
        counts.add(prediction)
        if file is not None:
            file.append(prediction)
        elif not json:
            _print_beside_bar(describe_prediction(prediction, in_full=is_single), len(films))
    if file is not None or json or not is_single:
        print(counts.summarise(out), file=sys.stderr if json else sys.stdout)
    return 1 if counts.has_errors else 0


def calibrate(
    table: Path,
    *,
    images: Path | None = None,
    out: Path = Path("site.toml"),
    model: Path | None = None,
    workers: Workers = None,
) -> None:
    """Refit a model's bias and intervals to your own labelled films.

    Args:
        table: CSV with id, bone age in months and sex.
        images: Folder of the films, if they are not beside the table.
        out: TOML file to write, for `boneage predict --calibration`.
        model: File of `boneage export`, if not the model in the package.
        workers: Threads; by default one a core.
    """
    from boneage.batch import calibrate as fit
    from boneage.batch import describe_films, find_films, require_own_names
    from boneage.describe import describe_calibration
    from boneage.labels import read_known
    from boneage.predict import Predictor

    if out.resolve() == table.resolve():
        raise BoneAgeError(f"--out is {out}, the table itself. Pass another file.")
    known = read_known(table)
    folder = images or table.parent
    if not folder.is_dir():
        raise BoneAgeError(f"{folder} is not a folder; expected the films of {table}.")
    found, _ = find_films([folder])
    described = describe_films(found, None, known)
    films = [film for film in described if film.reference_years is not None]
    if not films:
        raise BoneAgeError(
            f"none of the {len(found)} films in {folder} has an age in {table}. Pass the folder "
            "of its films with --images."
        )
    require_own_names(films)
    predictor = Predictor(model, threads=1)
    calibration, broken = fit(predictor, films, workers)
    calibration.save(out)
    print(describe_calibration(calibration, predictor.calibration))
    for message in broken.values():
        print(f"left out: {message}")
    without = sum(years is not None for _, years in known.values()) - len(films)
    if without:
        print(f"left out: {without} labelled id{'s' * (without != 1)} without a film in {folder}")
    print(f"use it with: boneage predict --calibration {out}")


def _show_progress(predictions: "Iterator[Prediction]", total: int) -> "Iterable[Prediction]":
    if total < 2:
        return predictions
    from tqdm import tqdm

    return tqdm(predictions, total=total, desc="predict", unit="film")


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

    from boneage.batch import to_plain_row

    before = "[\n"
    for prediction in predictions:
        print(before + json.dumps(to_plain_row(prediction, with_reference=with_reference)), end="")
        before = ",\n"
        yield prediction
    print("[]" if before == "[\n" else "\n]")
