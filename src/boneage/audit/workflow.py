"""A model and labelled images -> everything that an audit shows of them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from boneage.audit.figures import audit
from boneage.audit.gallery import ACQUISITION, Case, describe_acquisition, make_gallery
from boneage.audit.robustness import summarise_stress
from boneage.audit.saliency import measure_images, read_regions, summarise_regions
from boneage.audit.stress import stress_images
from boneage.data.labels import read_further, read_known
from boneage.errors import BoneAgeError, LabelError
from boneage.evaluation.prediction_table import keep_apart, read_predictions, refuse_sex
from boneage.evaluation.statistics import RESAMPLES
from boneage.files import locked, name_path, save_text
from boneage.imaging.discovery import Found, discover
from boneage.inference.batch import ImageRecord, make_records, predict_images
from boneage.inference.prediction import COLUMNS
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
    """Answer images and audit the answers; an interrupted run goes on where it stopped.

    Args:
        images: Folder of images.
        labels: CSV with id, bone age in months and sex; its columns of chronological age and
            those named in `by` are taken as well.
        out: Folder; answers are kept there.
        by: Columns that name further groups.
        model: File of `boneage export`; by default the model in the package.
        calibration: File of `boneage calibrate`.
        stress: Whether to answer the images again under every one of `STRESSES`.
        regions: Regions to measure the model's maps against, see `read_regions`.
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
    drawn = None if regions is None else read_regions(regions)
    found = discover([images])
    records = make_records(found.images, None, known)
    _tell_unmatched(records, known, found)
    predictor = Predictor(model, calibration=calibration, threads=1)
    with locked(out / PREDICTIONS):
        _answer(predictor, records, out / PREDICTIONS, workers)
        looks = describe_acquisition(records, workers, predictor.contract.preprocessing.invert)
        _join(out, records, [further, looks])
        predictions = read_predictions(
            out / AUDITED, [*by, *ACQUISITION], name=images.resolve().name
        )
        table = predictions.table
        result = audit([predictions], resamples=resamples)
        audited = set(table["image_id"])
        records = [record for record in records if record.image_id in audited]
        if drawn is not None:
            measured = measure_images(predictor, records, drawn, workers)
            save_text(out / REGIONS, measured.to_csv(index=False, lineterminator="\n"))
            result["regions"] = summarise_regions(measured, resamples=resamples)
        if stress:
            answers = stress_images(predictor, records, out / STRESS, workers=workers)
            ages: Mapping[str, float] = (
                dict(table.set_index("image_id")["chronological_months"].dropna())
                if "chronological_months" in table
                else {}
            )
            result["robustness"] = {
                "n": int(answers["path"].nunique()),
                "stresses": summarise_stress(
                    answers, resamples=resamples, chronological_months=ages
                ),
            }
        gallery = make_gallery(predictor, records, table, result["difficult"], result["uncertain"])
    return result, table, gallery


def _tell_unmatched(
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
    refuse_sex(by)
    further = read_further(labels, [*_CHRONOLOGICAL, *by])
    for name in by:
        is_ours = name in (*COLUMNS, *ACQUISITION)
        if not is_ours and name not in further:
            found = ", ".join(read_csv(labels).columns)
            raise LabelError(f"{labels} has no column {name!r} to group by; found: {found}.")
        if is_ours and name in further:
            raise LabelError(
                f"{labels} has a column {name!r}, and so have the answers. Rename it there."
            )
    return further


def _answer(
    predictor: Predictor, records: Sequence[ImageRecord], out: Path, workers: int | None
) -> None:
    """Answer the images that an earlier run has not, row by row."""
    file = PredictionsFile(
        out, records, with_reference=True,
        fingerprint=predictor.fingerprint,
    )  # fmt: skip
    if file.n_changed:
        logger.warning("%d images predicted again, since the file has changed", file.n_changed)
    answers = predict_images(predictor, file.missing, workers)
    for prediction in tqdm(answers, total=len(file.missing), desc="predict", unit="image"):
        file.append(prediction)


def _join(out: Path, records: Sequence[ImageRecord], tables: Sequence[pd.DataFrame]) -> None:
    """Write the predictions of these images, in their order, with what else is known of each."""
    table = pd.read_csv(out / PREDICTIONS, dtype=str, keep_default_na=False)
    # Images of an earlier run may be there as well.
    table = (
        table.set_index("path").loc[[name_path(record.path) for record in records]].reset_index()
    )
    for more in tables:
        table = table.merge(more, on="image_id", how="left")
    save_text(out / AUDITED, table.to_csv(index=False, lineterminator="\n"))
