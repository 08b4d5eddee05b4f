"""`Prediction`: the answer to one image, and its row in a predictions file."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from boneage.errors import ImageError
from boneage.files import cut_suffix
from boneage.sex import Sex
from boneage.stages import STAGES, stage_from_years

COLUMNS = (
    "image_id", "path", "sex", "predicted_years", "predicted_low_years", "predicted_high_years",
    "predicted_months", "predicted_stage", "p_child", "p_adolescent", "p_adult", "status",
    "reasons", "reference_years", "reference_stage", "image_sha256", "model_sha256",
    "calibration_sha256", "boneage_version",
)  # fmt: skip
"""Columns of a predictions file; those of the reference only where references are known."""

REFERENCE = ("reference_years", "reference_stage")
"""The columns of the reference."""

NOTE = "note: "
"""How a reason begins that informs and leaves the status as it is."""

Status = Literal["ok", "warn", "reject", "error"]


@dataclass(frozen=True)
class Prediction:
    """The answer to one image. Research use only, not a medical device.

    Attributes:
        image_id: The file's name without its image suffix; in a run over several images, with as
            many folders before it as tell it from the others, or as a table has it.
        path: The file.
        sex: The sex that the model was told; None for unknown.
        predicted_years: Bone age in years; None if there is no answer or the model gives no age.
        predicted_low_years: Lower end of the 90% prediction interval; None without calibration.
        predicted_high_years: Its upper end.
        predicted_months: Bone age in months.
        predicted_stage: By the stage head, or by threshold on the age where there is none.
        p_child: Probability of each stage; None without a stage head.
        p_adolescent: As `p_child`.
        p_adult: As `p_child`.
        status: `ok`; `warn`: read the reasons; `reject`: no image to answer; `error`: unreadable.
        reasons: Why the status is not `ok`; one that begins with `NOTE` only informs.
        reference_years: Reference age, where a table gave one.
        reference_stage: Its stage.
        image_sha256: The file's content, where a run over several images has read it.
        model_sha256: The network, as `Contract.graph_sha256`.
        calibration_sha256: The calibration applied; None for none.
        boneage_version: The package that made the prediction.
        age_map: float32 (h, w), the share of each part of the image in the age, in years; None if
            the model gives none.
    """

    image_id: str
    path: Path
    sex: Sex | None = None
    predicted_years: float | None = None
    predicted_low_years: float | None = None
    predicted_high_years: float | None = None
    predicted_months: float | None = None
    predicted_stage: str | None = None
    p_child: float | None = None
    p_adolescent: float | None = None
    p_adult: float | None = None
    status: Status = "ok"
    reasons: tuple[str, ...] = ()
    reference_years: float | None = None
    reference_stage: str | None = None
    image_sha256: str | None = None
    model_sha256: str | None = None
    calibration_sha256: str | None = None
    boneage_version: str | None = None
    age_map: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def with_reference(self, years: float) -> "Prediction":
        """Add the reference age, in years."""
        stage = STAGES[int(stage_from_years(years))]
        return replace(self, reference_years=years, reference_stage=stage)

    def to_row(self, *, with_reference: bool) -> dict[str, Any]:
        """Give the columns of a predictions file, `COLUMNS`, as plain values."""
        names = columns_of_run(with_reference=with_reference)
        values = {name: getattr(self, name) for name in names}
        return {**values, "path": str(self.path), "reasons": "; ".join(self.reasons)}


def columns_of_run(*, with_reference: bool) -> tuple[str, ...]:
    """Give the columns of a predictions file, with or without those of the reference."""
    return tuple(name for name in COLUMNS if with_reference or name not in REFERENCE)


def unreadable(path: Path, error: ImageError) -> Prediction:
    """Give the row of an image that could not be read."""
    return Prediction(cut_suffix(path.name), path, status="error", reasons=(str(error),))
