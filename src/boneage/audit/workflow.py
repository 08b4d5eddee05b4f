"""A model and labelled images -> everything that an audit shows of them."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from boneage.audit.acquisition import ACQUISITION, group_acquisition, measure_acquisition
from boneage.audit.figures import audit
from boneage.audit.gallery import Case, Thumbnail, make_gallery
from boneage.audit.perturbations import PERTURBATIONS, Perturbation
from boneage.audit.robustness import (
    PerturbedPredictions,
    can_be_perturbed,
    predict_perturbed,
    summarise_robustness,
)
from boneage.audit.saliency import (
    Region,
    join_measures,
    match_regions,
    measure_regions,
    read_regions,
    summarise_regions,
)
from boneage.data.labels import read_further, read_known
from boneage.errors import BoneAgeError, ImageError, LabelError
from boneage.evaluation.bootstrap import RESAMPLES
from boneage.evaluation.prediction_table import (
    CHRONOLOGICAL,
    keep_apart,
    read_predictions,
    refuse_sex,
)
from boneage.files import locked, name_path, save_text
from boneage.imaging.discovery import Found, discover
from boneage.inference.batch import ImageRecord, make_records, map_images, predict_record
from boneage.inference.prediction import COLUMNS, Prediction
from boneage.inference.predictor import Predictor
from boneage.inference.results_file import PredictionsFile
from boneage.tables.columns import read_csv

logger = logging.getLogger(__name__)

PREDICTIONS, AUDITED = "predictions.csv", "audited.csv"
STRESS, REGIONS = "stress_answers.csv", "region_measures.csv"
_CHRONOLOGICAL = ("chronological_age_years", "chronological_age_months")


def audit_images(
    images: Path,
    labels: Path,
    out: Path,
    *,
    by: Sequence[str] = (),
    model: Path | None = None,
    calibration: Path | None = None,
    stress: bool = False,
    regions: Path | None = None,
    resamples: int = RESAMPLES,
    workers: int | None = None,
) -> tuple[dict[str, Any], pd.DataFrame, list[Case]]:
    """Predict labelled images and audit the predictions; an interrupted run is taken up.

    Each image is decoded once, and predicted once as it is. Images whose predictions an earlier
    run has left in `out` are predicted anew only where their saliency map is needed.

    Args:
        images: Folder of images.
        labels: CSV with id, bone age in months and sex; its columns of chronological age and
            those named in `by` are taken as well.
        out: Folder for the predictions.
        by: Columns that name further groups.
        model: File of `boneage export`; by default the model in the package.
        calibration: File of `boneage calibrate`.
        stress: Whether to predict the images again under every one of `PERTURBATIONS`.
        regions: Regions to measure the saliency maps against, see `read_regions`.
        resamples: Bootstrap resamples and permutations.
        workers: Threads; by default one a core.

    Returns:
        The result of `audit`, with `robustness` and `regions` where tested; the audited cases;
        pictures of the difficult ones.

    Raises:
        BoneAgeError: If there are no images or no references, or a table has faults.
    """
    keep_apart(out, [labels] if regions is None else [labels, regions])
    known = read_known(labels)
    if all(age is None for _, age in known.values()):
        raise BoneAgeError(f"{labels} has no bone age; without it there is nothing to audit.")
    further = _read_further(labels, by)
    annotations = None if regions is None else read_regions(regions)
    found = discover([images])
    records = make_records(found.images, None, known)
    _warn_unmatched(records, known, found)
    predictor = Predictor(model, calibration=calibration, threads=1)
    referenced = [record for record in records if record.reference_years is not None]
    of_image: Mapping[Path, Sequence[Region]] = {}
    if annotations is not None:
        of_image = match_regions(predictor, referenced, annotations)
    with locked(out / PREDICTIONS):
        file = _open_predictions(out, records, predictor)
        to_perturb = [record for record in referenced if can_be_perturbed(record)]
        with (
            PerturbedPredictions(out / STRESS, to_perturb, predictor.fingerprint, PERTURBATIONS)
            if stress
            else nullcontext()
        ) as perturbed:
            findings = _examine_all(predictor, records, file, of_image, perturbed, workers)
        rows = _join_cases(out, records, [further, group_acquisition(findings.acquisition)])
        predictions = read_predictions(
            out / AUDITED, [*by, *ACQUISITION], name=images.resolve().name, rows=rows
        )
        table = predictions.table
        result = audit([predictions], resamples=resamples)
        if annotations is not None:
            measured = join_measures(findings.regions)
            save_text(out / REGIONS, measured.to_csv(index=False, lineterminator="\n"))
            result["regions"] = summarise_regions(measured, resamples=resamples)
        if perturbed is not None:
            result["robustness"] = _summarise(perturbed.to_table(), table, resamples)
        gallery = make_gallery(table, result, partial(_get_thumbnail, predictor, records, findings))
    return result, table, gallery


@dataclass(frozen=True)
class _Task:
    """One image of the run, and what is wanted of it besides the acquisition characteristics."""

    record: ImageRecord
    is_missing: bool
    """Whether its prediction is not in the predictions file."""
    regions: Sequence[Region]
    perturbations: Sequence[Perturbation]


@dataclass(frozen=True)
class _Finding:
    """What one decoding of an image gives; small, as those of all images are held at once."""

    prediction: Prediction | None = None
    acquisition: Mapping[str, float] | None = None
    regions: Sequence[Mapping[str, Any]] = ()
    perturbed: Sequence[Mapping[str, object]] = ()
    thumbnail: Thumbnail | None = None


@dataclass(frozen=True)
class _Findings:
    """The findings of all images, in the tables that the audit needs."""

    acquisition: pd.DataFrame
    regions: Sequence[Mapping[str, Any]]
    thumbnails: Mapping[str, Thumbnail]


def _examine_all(
    predictor: Predictor,
    records: Sequence[ImageRecord],
    file: PredictionsFile,
    of_image: Mapping[Path, Sequence[Region]],
    perturbed: PerturbedPredictions | None,
    workers: int | None,
) -> _Findings:
    """Examine every image once; predictions go into their files as soon as they are there."""
    missing = {record.path for record in file.missing}
    tasks = [
        _Task(
            record,
            record.path in missing,
            of_image.get(record.path, ()),
            perturbed.perturbations if perturbed is not None and perturbed.needs(record) else (),
        )
        for record in records
    ]
    acquisition: list[Mapping[str, Any]] = []
    regions: list[Mapping[str, Any]] = []
    thumbnails: dict[str, Thumbnail] = {}
    found = map_images(partial(_examine, predictor), tasks, workers, progress="audit")
    for task, finding in zip(tasks, found, strict=True):
        if task.is_missing and finding.prediction is not None:
            file.append(finding.prediction)
        if perturbed is not None and finding.perturbed:
            perturbed.add(task.record, finding.perturbed)
        if finding.acquisition is not None:
            acquisition.append({"image_id": task.record.image_id, **finding.acquisition})
        if finding.thumbnail is not None:
            thumbnails[task.record.image_id] = finding.thumbnail
        regions += finding.regions
    table = pd.DataFrame(acquisition, columns=["image_id", *ACQUISITION])
    return _Findings(table, regions, thumbnails)


def _examine(predictor: Predictor, task: _Task) -> _Finding:
    """Decode an image, predict it if that is needed, and take all that is wanted of it."""
    record = task.record
    if not (task.is_missing or task.regions or task.perturbations):
        try:
            return _Finding(acquisition=measure_acquisition(predictor.read(record.path).pixels))
        except ImageError:
            return _Finding()
    radiograph, prediction = predict_record(predictor, record)
    if radiograph is None:
        return _Finding(prediction)
    acquisition = measure_acquisition(radiograph.pixels)
    if prediction.predicted_months is None or record.reference_years is None:
        return _Finding(prediction, acquisition)  # no case of the audit
    perturbed = []
    if task.perturbations:
        perturbed = predict_perturbed(predictor, record, radiograph, prediction, task.perturbations)
    return _Finding(
        prediction,
        acquisition,
        measure_regions(record, radiograph, prediction, task.regions),
        perturbed,
        Thumbnail.of(radiograph, prediction),
    )


def _get_thumbnail(
    predictor: Predictor, records: Sequence[ImageRecord], findings: _Findings, image_id: str
) -> Thumbnail:
    """Give an image's thumbnail; an image that this run has not predicted is predicted for it."""
    if image_id in findings.thumbnails:
        return findings.thumbnails[image_id]
    record = next(record for record in records if record.image_id == image_id)
    radiograph, prediction = predict_record(predictor, record)
    if radiograph is None:
        raise BoneAgeError(f"{record.path} was changed or removed during the audit. Run it again.")
    return Thumbnail.of(radiograph, prediction)


def _warn_unmatched(
    records: Sequence[ImageRecord],
    known: Mapping[str, tuple[str | None, float | None]],
    found: Found,
) -> None:
    """Count images without a row, rows without an image, and what else lies in the folder."""
    n_with_row = sum(record.image_id in known for record in records)
    if n_with_row < len(records):
        logger.warning("%d images without a row in the labels", len(records) - n_with_row)
    if n_with_row < len(known):
        logger.warning("%d rows of the labels without an image", len(known) - n_with_row)
    for phrase in found.describe_rest():
        logger.warning("%s", phrase)


def _read_further(labels: Path, by: Sequence[str]) -> pd.DataFrame:
    """Read the chronological ages of the labels, and the columns that name groups."""
    refuse_sex(by)
    further = read_further(labels, [*_CHRONOLOGICAL, *by])
    for name in by:
        is_ours = name in (*COLUMNS, *ACQUISITION)
        if not is_ours and name not in further:
            found = ", ".join(read_csv(labels).columns)
            raise LabelError(f"{labels} has no column {name!r} to group by; found: {found}.")
        if is_ours and name in further:
            raise LabelError(
                f"{labels} has a column {name!r}, and so have the predictions. Rename it there."
            )
    return further


def _open_predictions(
    out: Path, records: Sequence[ImageRecord], predictor: Predictor
) -> PredictionsFile:
    """Open the predictions of an earlier run, if there are any."""
    file = PredictionsFile(
        out / PREDICTIONS, records, with_reference=True, fingerprint=predictor.fingerprint
    )
    if file.n_changed:
        logger.warning("%d images predicted again, since the file has changed", file.n_changed)
    return file


def _join_cases(
    out: Path, records: Sequence[ImageRecord], tables: Sequence[pd.DataFrame]
) -> pd.DataFrame:
    """Join the predictions of these images, in their order, with what else is known of each.

    Returns:
        The rows of `AUDITED`, which is written, as text under their line numbers.
    """
    table = pd.read_csv(out / PREDICTIONS, dtype=str, keep_default_na=False).set_index("path")
    # The file may hold images of an earlier run as well.
    table = table.loc[[name_path(record.path) for record in records]].reset_index()
    for more in tables:
        table = table.merge(more, on="image_id", how="left")
    save_text(out / AUDITED, table.to_csv(index=False, lineterminator="\n"))
    rows = table.astype(object).fillna("").astype(str)
    return rows.set_axis(range(2, len(rows) + 2))


def _summarise(perturbed: pd.DataFrame, table: pd.DataFrame, resamples: int) -> dict[str, Any]:
    """Give the `robustness` of a result."""
    ages: Mapping[str, float] = {}
    if CHRONOLOGICAL in table:
        ages = dict(table.set_index("image_id")[CHRONOLOGICAL].dropna())
    rows = summarise_robustness(perturbed, resamples=resamples, chronological_years=ages)
    return {"n": int(perturbed["path"].nunique()), "stresses": rows}
