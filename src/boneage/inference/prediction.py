"""`Prediction`: what was found for one image, and its row in a predictions file."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boneage.errors import ImageError
from boneage.files import cut_suffix
from boneage.inference.quality import Reason, ReasonCode, Severity, Status, find_status
from boneage.sex import Sex
from boneage.stages import STAGES, stage_from_years

COLUMNS = (
    "image_id", "path", "sex", "predicted_years", "predicted_low_years", "predicted_high_years",
    "predicted_months", "predicted_stage", "p_child", "p_adolescent", "p_adult", "familiarity",
    "status", "reasons", "reference_years", "reference_stage", "image_sha256", "model_sha256",
    "calibration_sha256", "hand_finder_sha256", "boneage_version", "reason_codes",
)  # fmt: skip
"""Columns of a predictions file; those of the reference only where references are known."""

REFERENCE = ("reference_years", "reference_stage")
"""The columns of the reference."""

SEPARATOR = "; "
"""What stands between several reasons, or their codes, in a cell."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image. Research use only, not a medical device.

    Attributes:
        image_id: The source's name without its image suffix. In a run over several images: the id
            of the table, or the name with folders in front where names repeat.
        path: The file; for a source that is not a file, its name.
        sex: The sex that the model was given; None for unknown.
        predicted_years: Bone age in years; None without a prediction or an age head.
        predicted_low_years: Lower end of the 90% prediction interval; None without calibration.
        predicted_high_years: Its upper end.
        predicted_months: Bone age in months.
        predicted_stage: By the stage head, or by threshold on the age where there is none.
        p_child: Probability of each stage; None without a stage head.
        p_adolescent: As `p_child`.
        p_adult: As `p_child`.
        familiarity: How much the image is like those that the model learned from, 0 to 1; None if
            the model does not tell. See `FamiliarityModel.rate`.
        reasons: Why there is no prediction, or what to know when reading it.
        reference_years: Reference age, where a table gave one.
        reference_stage: Its stage.
        image_sha256: Fingerprint of the file's content; None unless a command predicted the file.
        model_sha256: Fingerprint of the network, as `Contract.graph_sha256`.
        calibration_sha256: Fingerprint of the calibration that was applied; None for none.
        hand_finder_sha256: Fingerprint of the hand finder's file.
        boneage_version: Version of the package that made the prediction.
        saliency: float32 (h, w), over the whole image as it is stored: the years that each part
            adds to the age, below 0 where it speaks for a lower one; their sum and
            `saliency_constant_years` are the age. None if the model gives none.
    """

    image_id: str
    path: Path | str
    sex: Sex | None = None
    predicted_years: float | None = None
    predicted_low_years: float | None = None
    predicted_high_years: float | None = None
    predicted_months: float | None = None
    predicted_stage: str | None = None
    p_child: float | None = None
    p_adolescent: float | None = None
    p_adult: float | None = None
    familiarity: float | None = None
    reasons: tuple[Reason, ...] = ()
    reference_years: float | None = None
    reference_stage: str | None = None
    image_sha256: str | None = None
    model_sha256: str | None = None
    calibration_sha256: str | None = None
    hand_finder_sha256: str | None = None
    boneage_version: str | None = None
    saliency: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @property
    def status(self) -> Status:
        """`ok`; `warn`: read the reasons; `reject`: no prediction; `error`: file not readable."""
        return find_status(self.reasons)

    @property
    def saliency_constant_years(self) -> float | None:
        """The part of the age that comes from no part of the image; None without a map."""
        if self.saliency is None or self.predicted_years is None:
            return None
        return self.predicted_years - float(self.saliency.sum())

    @property
    def title(self) -> str:
        """Age, interval and stage in a few words; empty without a prediction."""
        words = []
        if self.predicted_years is not None:
            words.append(f"{self.predicted_years:.1f} years")
        if self.predicted_low_years is not None and self.predicted_high_years is not None:
            low, high = self.predicted_low_years, self.predicted_high_years
            words[0] += f" ({low:.1f} to {high:.1f})"
        return ", ".join([*words, *([self.predicted_stage] if self.predicted_stage else [])])

    @property
    def stage_probability(self) -> float | None:
        """Probability of the predicted stage; None without a prediction or a stage head."""
        if self.predicted_stage is None:
            return None
        return (self.p_child, self.p_adolescent, self.p_adult)[STAGES.index(self.predicted_stage)]

    @property
    def reason_codes(self) -> list[str]:
        """The codes of the reasons, in their order."""
        return [reason.code.value for reason in self.reasons]

    def with_reference(self, years: float) -> "Prediction":
        """Add the reference age, in years."""
        stage = STAGES[int(stage_from_years(years))]
        return replace(self, reference_years=years, reference_stage=stage)

    def to_row(self, *, with_reference: bool) -> dict[str, Any]:
        """Give the columns of a predictions file, `COLUMNS`, as plain values.

        `reason_codes` is a list; a CSV has its words joined by `SEPARATOR`.
        """
        names = columns_of_run(with_reference=with_reference)
        values = {name: getattr(self, name) for name in names}
        reasons = SEPARATOR.join(map(str, self.reasons))
        return {**values, "path": str(self.path), "reasons": reasons}


def columns_of_run(*, with_reference: bool) -> tuple[str, ...]:
    """Give the columns of a predictions file, with or without those of the reference."""
    return tuple(name for name in COLUMNS if with_reference or name not in REFERENCE)


def unreadable(path: Path, error: ImageError) -> Prediction:
    """Give the prediction for a file that could not be read."""
    reason = Reason(ReasonCode.UNREADABLE, Severity.REJECT, str(error))
    return Prediction(cut_suffix(path.name), path, reasons=(reason,))
