"""The coded reasons why a prediction is missing or to be read with care, and what gives them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from boneage.imaging.orientation import UPRIGHT
from boneage.imaging.radiograph import Radiograph
from boneage.inference.hand_view import ShownHand
from boneage.sex import ProvidedSex, Sex
from boneage.stages import STAGES, stage_from_years

USUAL_YEARS = (2.0, 17.0)
"""Predicted ages outside these are noted: the training data are few there."""

Status = Literal["ok", "warn", "reject", "error"]


class Severity(StrEnum):
    """What a reason means for the prediction."""

    INFO = "info"
    """Worth knowing; the status stays as it is."""
    WARN = "warn"
    """The prediction may be wrong."""
    REJECT = "reject"
    """There is no prediction."""


class ReasonCode(StrEnum):
    """What a reason says, in a word that programs can rely on."""

    INVERTED = "inverted"
    """The image had dark bones and was inverted."""
    ORIENTATION_CORRECTED = "orientation_corrected"
    """The image was rotated or inverted, and was corrected."""
    FIELD_CORRECTED = "field_corrected"
    """The hand's size or place on the image is unusual, and the part around it was predicted."""
    PROPORTIONS_CORRECTED = "proportions_corrected"
    """The image was stretched, as to a square, and its true proportions were restored."""
    NO_HAND = "no_hand"
    """The image shows no hand."""
    SEVERAL_HANDS = "several_hands"
    """The image shows more than one hand."""
    HAND_CUT_OFF = "hand_cut_off"
    """The wrist, or most fingers, are not on the image."""
    OVEREXPOSED = "overexposed"
    """Much of the hand is white."""
    TOO_DARK = "too_dark"
    """The hand has hardly any contrast."""
    HEAVILY_PROCESSED = "heavily_processed"
    """The image was sharpened or equalised after its exposure."""
    UNLIKE_TRAINING = "unlike_training"
    """The image's grey values or sharpness are unlike those of the training images."""
    OUTSIDE_USUAL_AGES = "outside_usual_ages"
    """The predicted age is one at which errors are larger."""
    SEX_CONTRADICTS_FILE = "sex_contradicts_file"
    """The sex provided is not the one that the DICOM file states."""
    SEX_NOT_UNDERSTOOD = "sex_not_understood"
    """The DICOM file's word for the sex is not known."""
    SEX_CONTRADICTS_IMAGE = "sex_contradicts_image"
    """The image looks like one of the other sex."""
    STAGE_CONTRADICTS_AGE = "stage_contradicts_age"
    """The most likely stage is not the one in which the predicted age falls."""
    IMAGE_TOO_SMALL = "image_too_small"
    """The image has too few pixels to show the bones."""
    TOO_FEW_GREYS = "too_few_greys"
    """The image has too few grey values to show the bones, as one of black and white only."""
    NOT_A_RADIOGRAPH = "not_a_radiograph"
    """The DICOM file says that it comes from another kind of device, such as a CT scanner."""
    SEVERAL_FRAMES = "several_frames"
    """The DICOM file holds several images; a forced prediction is that of the first."""
    FORCED = "forced"
    """The image was to be rejected, and was predicted on demand."""
    BODY_PART_NOT_HAND = "body_part_not_hand"
    """The DICOM file names another part of the body."""
    VIEW_NOT_FRONTAL = "view_not_frontal"
    """The DICOM file names a view from the side."""
    AGE_OUT_OF_RANGE = "age_out_of_range"
    """The DICOM file's age or dates say that the patient is an adult."""
    AGE_CONTRADICTS_DATES = "age_contradicts_dates"
    """The DICOM file's age is not that of its dates."""
    WINDOW_LEFT_OUT = "window_left_out"
    """A window or VOI LUT of the DICOM file shows little of the image."""
    VOI_FUNCTION_UNKNOWN = "voi_function_unknown"
    """The DICOM file's VOILUTFunction is no word of the standard."""
    MODALITY_LUT_LEFT_OUT = "modality_lut_left_out"
    """The DICOM file's modality LUT or RescaleSlope cannot be meant."""
    HIGH_BIT_UNUSUAL = "high_bit_unusual"
    """The DICOM file's pixels do not stand in the lowest bits."""
    PADDING_LEFT_OUT = "padding_left_out"
    """Padding, or what a shutter covers, is none of the image."""
    SHUTTER_IGNORED = "shutter_ignored"
    """A shutter of the DICOM file covers the whole image."""
    MARKS_LEFT_OUT = "marks_left_out"
    """A strip, frame or letters of extreme grey values are none of the image."""
    UNREADABLE = "unreadable"
    """The image cannot be read."""


@dataclass(frozen=True)
class Reason:
    """One reason why a prediction is missing or is to be read with care.

    Attributes:
        code: What it says, for programs.
        severity: What it means for the prediction.
        message: What it says, for people.
    """

    code: ReasonCode
    severity: Severity
    message: str

    def __str__(self) -> str:
        """Give the reason as the column `reasons` has it."""
        return f"note: {self.message}" if self.severity is Severity.INFO else self.message


def find_status(reasons: Iterable[Reason]) -> Status:
    """Give the status that follows from reasons: the gravest severity, or `error` if unreadable."""
    found = list(reasons)
    if any(reason.code is ReasonCode.UNREADABLE for reason in found):
        return "error"
    severities = {reason.severity for reason in found}
    if Severity.REJECT in severities:
        return "reject"
    return "warn" if Severity.WARN in severities else "ok"


def force_prediction(reasons: Iterable[Reason]) -> list[Reason]:
    """Turn the reasons to reject an image into warnings of a prediction made all the same."""
    found = [replace(reason, severity=Severity.WARN) for reason in reasons]
    message = "the image was to be rejected; it was predicted because you asked for it (force)"
    return [*found, Reason(ReasonCode.FORCED, Severity.WARN, message)] if found else []


def check_image(radiograph: Radiograph, shown: ShownHand) -> Iterator[Reason]:
    """Give a reason for each change of an image before the prediction, and each note of reading.

    Args:
        radiograph: The image.
        shown: What the network was shown of it.
    """
    if radiograph.was_inverted:
        yield Reason(
            ReasonCode.INVERTED,
            Severity.WARN,
            "bones were dark: the image was inverted before the prediction",
        )
    if shown.orientation != UPRIGHT:
        yield Reason(
            ReasonCode.ORIENTATION_CORRECTED,
            Severity.WARN,
            f"the image is {shown.orientation.describe()}: it was corrected before the prediction",
        )
    if shown.to_view is not None and shown.is_unusual:
        yield Reason(
            ReasonCode.FIELD_CORRECTED,
            Severity.WARN if shown.is_far else Severity.INFO,
            "the hand is larger, smaller, or elsewhere on the image than on the training images: "
            "the prediction is that of the part around it",
        )
    if shown.aspect != 1.0:
        yield Reason(
            ReasonCode.PROPORTIONS_CORRECTED,
            Severity.INFO,
            f"the image is {shown.aspect:.2f} times as wide as its hand should be: its proportions "
            "were corrected before the prediction",
        )
    for note in radiograph.notes:
        yield Reason(ReasonCode(note.code), Severity.INFO, note.message)


def check_sex(
    radiograph: Radiograph,
    provided: ProvidedSex | None,
    used: Sex | None,
    p_male: float | None,
    warn_above: float,
) -> Iterator[Reason]:
    """Compare the sex that the model was given with the file and with the image.

    Args:
        radiograph: The image.
        provided: The sex that the caller provided; None leaves it to the file.
        used: The sex that the model was given.
        p_male: Probability that the image is of a boy; None if the model does not predict it.
        warn_above: Probability of the other sex above which the image contradicts `used`.
    """
    header = radiograph.header
    if provided in ("M", "F") and header.sex not in (None, provided):
        yield Reason(
            ReasonCode.SEX_CONTRADICTS_FILE,
            Severity.WARN,
            f"sex was entered as {provided}, but the file says {header.sex}",
        )
    if header.sex_not_understood is not None:
        was_needed = provided is None
        yield Reason(
            ReasonCode.SEX_NOT_UNDERSTOOD,
            Severity.WARN if was_needed else Severity.INFO,
            f"the file's PatientSex is {header.sex_not_understood!r}, "
            + ("which is not understood: the sex was taken as unknown" if was_needed
               else "not understood"),
        )  # fmt: skip
    if p_male is None or used is None:
        return
    p_other, other = (p_male, "boy") if used == "F" else (1.0 - p_male, "girl")
    if p_other > warn_above:
        yield Reason(
            ReasonCode.SEX_CONTRADICTS_IMAGE,
            Severity.WARN,
            f"the sex used is {used}, but the image looks like a {other}'s "
            f"(probability {p_other:.0%})",
        )


def check_age(years: float | None) -> Iterator[Reason]:
    """Note a predicted age in years at which the training data are few and errors larger."""
    low, high = USUAL_YEARS
    if years is not None and not low <= years <= high:
        message = f"{years:.1f} years lies outside {low:.0f} to {high:.0f}, where errors are larger"
        yield Reason(ReasonCode.OUTSIDE_USUAL_AGES, Severity.INFO, message)


def check_stage(
    years: float | None, stage: str | None, probability: float | None
) -> Iterator[Reason]:
    """Give a reason where the predicted age and stage contradict each other; both stay.

    Args:
        years: Predicted age in years; None without an age head.
        stage: Predicted stage.
        probability: Its probability; None without a stage head.
    """
    if years is None or probability is None:
        return
    by_age = STAGES[int(stage_from_years(years))]
    if by_age != stage:
        yield Reason(
            ReasonCode.STAGE_CONTRADICTS_AGE,
            Severity.INFO,
            f"age and stage differ: {years:.2f} years is {by_age}, but the most likely stage is "
            f"{stage} (probability {probability:.0%})",
        )
