"""Predictions of perturbed images: made, kept in a CSV for a later run, and summarised."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd

from boneage.audit.perturbations import Perturbation
from boneage.clinical.growth import classify_both
from boneage.errors import BoneAgeError
from boneage.evaluation.bootstrap import mean_estimate
from boneage.evaluation.cases import MONTHS
from boneage.evaluation.statistics import holm, mcnemar, wilcoxon_p_value, wilson
from boneage.files import hash_file, hash_text, name_path, save_text
from boneage.imaging.radiograph import INVERTED_BELOW, Radiograph, polarity_score
from boneage.inference.batch import ImageRecord
from boneage.inference.prediction import Prediction
from boneage.inference.predictor import Predictor
from boneage.sex import ProvidedSex
from boneage.stages import STAGES, stage_from_years

CLEAN = "clean"
"""Family of the image as it is."""

COLUMNS = ("model", "path", "image_sha256", "image_id", "sex", "family", "level",
           "reference_months", "predicted_months", "predicted_stage", "status")  # fmt: skip
_NUMBERS = ("reference_months", "predicted_months")
_SAVE_EVERY_S = 60.0
_OTHER: dict[str | None, ProvidedSex] = {"M": "F", "F": "M"}
_ROUNDING_MONTHS = 1e-3  # smaller differences are those of the arithmetic

Rows = Sequence[Mapping[str, object]]


def can_be_perturbed(record: ImageRecord) -> bool:
    """Whether an image has what the comparison needs: a sex and a reference age."""
    return record.sex in _OTHER and record.reference_years is not None


def predict_perturbed(
    predictor: Predictor,
    record: ImageRecord,
    radiograph: Radiograph,
    clean: Prediction,
    perturbations: Sequence[Perturbation],
) -> list[dict[str, object]]:
    """Predict one image under every perturbation.

    Args:
        predictor: The model.
        record: With sex and reference.
        radiograph: The decoded image.
        clean: Its prediction, of `predict_record`.
        perturbations: What to try.

    Returns:
        A row a prediction with all of `COLUMNS` but `model`; the first is the clean prediction.
    """
    known = {
        "path": name_path(record.path),
        "image_sha256": clean.image_sha256,
        "image_id": record.image_id,
        "sex": record.sex,
        "reference_months": _reference_months(record),
    }
    found = [(CLEAN, "", clean)]
    for each in perturbations:
        perturbed = _perturb(predictor, radiograph, each)
        sex = {None: record.sex, "wrong": _OTHER[record.sex], "unknown": "unknown"}[each.sex]
        found.append((each.family, each.level, predictor.predict(perturbed, sex)))
    return [
        {
            **known,
            "family": family,
            "level": level,
            "predicted_months": prediction.predicted_months,
            "predicted_stage": prediction.predicted_stage,
            "status": prediction.status,
        }
        for family, level, prediction in found
    ]


def _perturb(predictor: Predictor, radiograph: Radiograph, each: Perturbation) -> Radiograph:
    """Change an image, and read the result as a file of such pixels would be read."""
    pixels = np.asarray(each.change(radiograph.to_image()), dtype=np.float32) / 255.0
    is_inverted = (
        predictor.contract.preprocessing.invert == "auto"
        and polarity_score(pixels) < INVERTED_BELOW
    )
    return replace(
        radiograph, pixels=1.0 - pixels if is_inverted else pixels, was_inverted=is_inverted
    )


def _reference_months(record: ImageRecord) -> float:
    return 12.0 * float(record.reference_years or 0.0)


class PerturbedPredictions:
    """The predictions of a run's images under every perturbation, kept in a CSV.

    A later run takes the file up: rows of the same model, perturbations, image file, sex and
    reference stay. Rows of images that are not in this run stay as well. As a context manager it
    saves the file when the block ends, however it ends.

    Args:
        path: The CSV.
        records: The images of this run that are to be perturbed, see `can_be_perturbed`.
        fingerprint: `Predictor.fingerprint`.
        perturbations: What is tried.

    Raises:
        BoneAgeError: If there is no image, or the file is something else.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[ImageRecord],
        fingerprint: Mapping[str, str],
        perturbations: Sequence[Perturbation],
    ) -> None:
        if not records:
            raise BoneAgeError(
                "no image has both a sex and a reference; there is nothing to perturb. Add them to "
                "the labels, or leave --stress out."
            )
        self.perturbations = perturbations
        self._path = path
        self._model = hash_text(" ".join(fingerprint.values()))[:12]
        self._records = {name_path(record.path): record for record in records}
        self._rows = self._read() if path.exists() else {}
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._save()

    def needs(self, record: ImageRecord) -> bool:
        """Whether an image of this run is still to be predicted."""
        path = name_path(record.path)
        return path in self._records and path not in self._rows

    def add(self, record: ImageRecord, rows: Rows) -> None:
        """Add the rows of one image; the file is saved now and then."""
        self._rows[name_path(record.path)] = [{"model": self._model, **row} for row in rows]
        if time.monotonic() - self._saved_at > _SAVE_EVERY_S:
            self._save()

    def to_table(self) -> pd.DataFrame:
        """Give the rows of this run's images in their order, a row a prediction, `COLUMNS`."""
        return _to_table([self._rows.get(path, []) for path in self._records])

    def _save(self) -> None:
        table = _to_table(list(self._rows.values()))
        save_text(self._path, table.to_csv(index=False, lineterminator="\n"))
        self._saved_at = time.monotonic()

    def _read(self) -> dict[str, Rows]:
        """Read the rows that still hold, by path."""
        try:
            # As text first: pandas' own reading of numbers may be off by the last bit.
            table = pd.read_csv(
                self._path, dtype=str, keep_default_na=False, na_values={"predicted_months": ""}
            ).astype(dict.fromkeys(_NUMBERS, float))
        except (ValueError, KeyError):  # no table, words that should be numbers, other columns
            table = pd.DataFrame()
        if list(table.columns) != list(COLUMNS):
            raise BoneAgeError(
                f"{self._path} is no file of such a run. Move it away, or pass another --out."
            )
        plan = [(CLEAN, ""), *((each.family, each.level) for each in self.perturbations)]
        kept: dict[str, Rows] = {}
        for path, rows in table[table["model"] == self._model].groupby("path", sort=False):
            is_whole = list(zip(rows["family"], rows["level"], strict=True)) == plan
            record = self._records.get(str(path))
            if is_whole and (record is None or _holds(rows.iloc[0], record)):
                kept[str(path)] = [
                    {str(name): value for name, value in row.items()}
                    for row in rows.to_dict("records")
                ]
        return kept


def _to_table(images: Sequence[Rows]) -> pd.DataFrame:
    table = pd.DataFrame([row for rows in images for row in rows], columns=COLUMNS)
    return table.astype(dict.fromkeys(_NUMBERS, float))


def _holds(row: pd.Series, record: ImageRecord) -> bool:
    """Whether an earlier row is of the image as it is now."""
    if (row["sex"], row["reference_months"]) != (record.sex, _reference_months(record)):
        return False
    return record.path.is_file() and row["image_sha256"] == hash_file(record.path)


def summarise_robustness(
    table: pd.DataFrame,
    *,
    resamples: int,
    chronological_years: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Compare the predictions under each perturbation with the clean ones of the same images.

    Args:
        table: Of `PerturbedPredictions.to_table`.
        resamples: Bootstrap resamples of the intervals; 0 leaves them out.
        chronological_years: By image id, for the proportion of clinically significant errors.

    Returns:
        One row a perturbation, in order: `family, level, n, n_unanswered`; `mae_months`,
        `mae_change_months` (paired) and `moved_months` (mean absolute difference of the two
        predictions) with intervals; `wilcoxon_p` of the absolute errors and `p_corrected` (Holm,
        over all perturbations); `stage_changed`, the proportion of images whose predicted stage
        differs, and `mcnemar_p` of its being right; `warned`, the proportion of predictions of
        status `warn`; `clinical`, the proportion of images whose class (delayed, normal, advanced)
        the error changes, clean and perturbed, with its `mcnemar_p`, or None.

    Raises:
        BoneAgeError: If no image has a prediction.
    """
    clean = table[table["family"] == CLEAN]
    if clean["predicted_months"].isna().all():
        raise BoneAgeError("the model predicted none of the images; there is nothing to perturb.")
    rows = []
    for (family, level), perturbed in table.groupby(["family", "level"], sort=False):
        if family == CLEAN:
            continue
        both = clean.merge(perturbed, on="path", suffixes=("", "_perturbed"))
        months = both[["predicted_months", "predicted_months_perturbed"]]
        is_predicted = months.notna().all(axis=1)
        rows.append(
            {
                "family": family,
                "level": level,
                "n": int(is_predicted.sum()),
                "n_unanswered": int((~is_predicted).sum()),
                **_compare(both[is_predicted], resamples, chronological_years or {}),
            }
        )
    corrected = holm([row["wilcoxon_p"] for row in rows])
    return [{**row, "p_corrected": p} for row, p in zip(rows, corrected, strict=True)]


def _compare(
    both: pd.DataFrame, resamples: int, chronological_years: Mapping[str, float]
) -> dict[str, Any]:
    reference = both["reference_months"]
    clean, perturbed = both["predicted_months"], both["predicted_months_perturbed"]
    clean_error, perturbed_error = (
        (predicted - reference).abs().to_numpy(float) for predicted in (clean, perturbed)
    )
    moved = (perturbed - clean).abs().to_numpy(float)
    stages = [both[f"predicted_stage{suffix}"].to_numpy() for suffix in ("", "_perturbed")]
    truth = np.array(STAGES)[stage_from_years(reference.to_numpy(float) / 12.0)]
    change = perturbed_error - clean_error
    return {
        "mae_months": mean_estimate(perturbed_error, resamples),
        "mae_change_months": mean_estimate(change, resamples),
        "moved_months": mean_estimate(moved, resamples),
        "wilcoxon_p": wilcoxon_p_value(change, _ROUNDING_MONTHS),
        "stage_changed": wilson(int((stages[0] != stages[1]).sum()), len(both)),
        "mcnemar_p": mcnemar(stages[0] == truth, stages[1] == truth)["mcnemar_p"],
        "warned": wilson(int((both["status_perturbed"] == "warn").sum()), len(both)),
        "clinical": _compare_classes(both, chronological_years),
    }


def _compare_classes(
    both: pd.DataFrame, chronological_years: Mapping[str, float]
) -> dict[str, Any] | None:
    ages = both["image_id"].map(chronological_years).astype(float)
    changed = []
    for suffix in ("", "_perturbed"):
        cases = both[["sex"]].assign(
            reference_years=both["reference_months"] / MONTHS,
            predicted_years=both[f"predicted_months{suffix}"] / MONTHS,
            chronological_age_years=ages,
        )
        reader, model = classify_both(cases) or (np.empty(0, str), np.empty(0, str))
        is_known = reader != ""
        changed.append((reader != model)[is_known])
    n = len(changed[0])
    if n == 0:
        return None
    return {
        "n": n,
        "clean": wilson(int(changed[0].sum()), n),
        "stressed": wilson(int(changed[1].sum()), n),
        "mcnemar_p": mcnemar(~changed[0], ~changed[1])["mcnemar_p"],
    }
