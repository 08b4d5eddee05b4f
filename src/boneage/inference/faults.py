"""Why an image is rejected, and what a DICOM header says against a prediction."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from boneage.imaging.geometry import JOINTS
from boneage.imaging.header import Header
from boneage.imaging.radiograph import Radiograph
from boneage.inference.appearance import AppearanceModel, describe
from boneage.inference.familiarity import FamiliarityModel
from boneage.inference.hand_finder import FinderFacts, FoundHand
from boneage.inference.quality import Reason, ReasonCode, Severity

SMALLEST_SIDE = 50
"""Images with a shorter side, in pixels, are rejected: half the side of the model's samples."""

FEWEST_GREYS = 32
"""Images of fewer grey values are rejected: black and white, dots, or palettes of 4 bits."""

OLDEST_YEARS = 20.0
"""Age in years above which a warning is given: bones are mature, and no atlas goes further."""

MOST_WHITE = 0.25
"""Proportion of white in the box around a hand above which it is overexposed."""

LEAST_CONTRAST = 12.0
"""Grey levels between percentiles 5 and 95 around a hand below which it is too dark or flat."""

_WHITE = 254

CONTRADICTION_YEARS = 1.5
"""Difference in years of PatientAge and the dates: more than rounding to years explains."""

OTHER_MODALITIES = {
    "CT": "computed tomography", "MR": "magnetic resonance", "US": "ultrasound",
    "PT": "positron emission tomography", "NM": "nuclear medicine", "BDUS": "ultrasound",
    "IVUS": "ultrasound", "OCT": "optical coherence tomography",
    "OPT": "ophthalmic tomography", "OP": "ophthalmic photography", "ES": "endoscopy",
    "SM": "slide microscopy", "GM": "microscopy",
    "DMS": "dermoscopy", "TG": "thermography", "ECG": "electrocardiography",
    "SEG": "segmentation", "RTDOSE": "radiotherapy dose", "RTIMAGE": "radiotherapy image",
}  # fmt: skip
"""Modalities that take no radiographs, in words. Source: PS3.3, section C.7.3.1.1.1."""

UNUSUAL_MODALITIES = {
    "MG": "mammography", "IO": "intra-oral radiography", "PX": "panoramic dental radiography",
    "XC": "photography", "BMD": "bone densitometry",
}  # fmt: skip
"""Modalities that take radiographs of other parts of the body, or photographs of them."""

_OTHER_KINDS = (
    "CT Image", "MR Image", "MR Color Image", "Ultrasound", "PET Image",
    "Positron Emission", "Nuclear Medicine", "Tomography", "Microscopic", "Endoscopic",
    "Microscopy", "Segmentation Storage", "RT Dose", "RT Image", "Breast", "Ophthalmic",
)  # fmt: skip

_HAND_WORDS = (
    "HAND", "WRIST", "FINGER", "THUMB", "DIGIT", "CARP", "PHALA", "BONE AGE", "BONEAGE", "EXTREM",
    "ARM", "RADIUS", "ULNA", "UPPER LIMB", "MANUS", "MAIN", "MANO", "POIGNET", "POLSO", "PULSO",
    "MUÑECA", "MUNECA", "KNOCHENALTER", "SKELETTALTER", "HÅND", "KÄSI", "RANNE", "POLS", "PUNHO",
)  # fmt: skip
_NO_PART = ("OTHER", "UNKNOWN", "UNDEFINED", "UNSPECIFIED", "NONE", "N/A", "NOT SPECIFIED",
            "SKELETON", "BODY", "WHOLE BODY", "WHOLEBODY", "BONE")  # fmt: skip

_NOT_A_HAND = (ReasonCode.BODY_PART_NOT_HAND, ReasonCode.VIEW_NOT_FRONTAL)

_SIDE_VIEWS = ("LL", "RL", "LLD", "RLD", "LAT", "LATERAL", "ML", "LM", "MLO", "LMO", "CC", "XCCL",
               "LATERO-MEDIAL", "MEDIO-LATERAL", "AXIAL", "TANGENTIAL")  # fmt: skip


def find_faults(radiograph: Radiograph) -> list[Reason]:
    """Give the reasons to reject an image without a prediction; none if it can be predicted."""
    return [*check_pixels(radiograph), *check_kind(radiograph.header)]


def check_pixels(radiograph: Radiograph) -> Iterator[Reason]:
    """Give a reason to reject an image of too few pixels or grey values."""
    height, width = radiograph.pixels.shape
    if min(height, width) < SMALLEST_SIDE:
        yield Reason(
            ReasonCode.IMAGE_TOO_SMALL,
            Severity.REJECT,
            f"the image has {height}×{width} pixels; expected {SMALLEST_SIDE} or more a side",
        )
    greys = np.count_nonzero(radiograph.to_image().histogram())
    if greys < FEWEST_GREYS:
        yield Reason(
            ReasonCode.TOO_FEW_GREYS,
            Severity.REJECT,
            f"the image has {greys} grey values; expected {FEWEST_GREYS} or more",
        )


def check_hand(hand: FoundHand, facts: FinderFacts, header: Header = Header()) -> Iterator[Reason]:
    """Give a reason to reject an image of no hand, of several, or of a part of one.

    Args:
        hand: What was found.
        facts: The limits.
        header: Of the image; where it names another part or view, the slightest doubt is enough.
    """
    none, _, several = hand.p_hands
    against = [r for r in check_header(header) if r.code in _NOT_A_HAND]
    if several > facts.most_several:
        message = "the image shows several hands; cut out one"
        yield Reason(ReasonCode.SEVERAL_HANDS, Severity.REJECT, message)
    elif none > facts.most_none or not hand.is_there(facts):
        message = (
            f"no hand was found on the image (score {hand.score:.2f}, probability of no hand "
            f"{none:.0%}); expected a radiograph of one hand"
        )
        yield Reason(ReasonCode.NO_HAND, Severity.REJECT, message)
    elif (
        hand.is_doubtful(facts)
        and facts.shape.find_aspect(hand.landmarks[: len(JOINTS)])[1] > facts.most_unlike
    ):
        message = "what was found has not the shape of a whole hand: it may be cut off or covered"
        yield Reason(ReasonCode.HAND_CUT_OFF, Severity.REJECT, message)
    elif missing := hand.find_missing(facts):
        message = f"the hand is cut off or covered: {missing} cannot be seen"
        yield Reason(ReasonCode.HAND_CUT_OFF, Severity.REJECT, message)
    elif against and hand.is_doubtful(facts):
        message = f"{against[0].message}, and the image does not surely show one"
        yield Reason(ReasonCode.NO_HAND, Severity.REJECT, message)


def check_exposure(radiograph: Radiograph, hand: FoundHand) -> Iterator[Reason]:
    """Give a reason for a hand that is overexposed, or has hardly any contrast."""
    image = radiograph.to_image()
    greys = np.asarray(image)[hand.box(image.size)]
    if not greys.size:
        return
    white = float((greys >= _WHITE).mean())
    low, high = np.percentile(greys, (5, 95))
    if white > MOST_WHITE:
        message = f"{white:.0%} of the hand are white: the image is overexposed"
        yield Reason(ReasonCode.OVEREXPOSED, Severity.WARN, message)
    elif high - low < LEAST_CONTRAST:
        message = f"the hand takes up {high - low:.0f} of 255 grey levels: it is too dark or flat"
        yield Reason(ReasonCode.TOO_DARK, Severity.WARN, message)


def check_appearance(image: Image.Image, model: AppearanceModel | None) -> Iterator[Reason]:
    """Give a reason for an image that is unlike the training images.

    Args:
        image: What the network was shown.
        model: What the training images look like; None if the model does not say.
    """
    if model is None:
        return
    description = describe(image)
    if model.p_processed(description) > model.processed_above:
        message = "the image looks sharpened or equalised by a viewer or sender; use the original"
        yield Reason(ReasonCode.HEAVILY_PROCESSED, Severity.WARN, message)
    elif model.distance(description) > model.unlike_above:
        message = "the image's grey values or sharpness are unlike those of the training images"
        yield Reason(ReasonCode.UNLIKE_TRAINING, Severity.WARN, message)


def check_familiarity(
    familiarity: float | None, model: FamiliarityModel | None
) -> Iterator[Reason]:
    """Give a reason for an image whose features lie far from the training images'."""
    if model is not None and familiarity is not None and familiarity < model.warn_below:
        message = f"the image is unlike the training images (familiarity {familiarity:.3f})"
        yield Reason(ReasonCode.UNLIKE_TRAINING, Severity.WARN, message)


def check_kind(header: Header) -> Iterator[Reason]:
    """Give the reasons to reject an image because of the device or the frames it states."""
    modality = (header.modality or "").upper()
    kind = header.kind or ""
    if modality in OTHER_MODALITIES:
        says = f"Modality is {modality} ({OTHER_MODALITIES[modality]})"
    elif any(word in kind for word in _OTHER_KINDS):
        says = f"SOPClassUID is {kind}"
    else:
        says = ""
    if says:
        message = f"the file's {says}; expected a radiograph of a hand"
        yield Reason(ReasonCode.NOT_A_RADIOGRAPH, Severity.REJECT, message)
    if header.frames > 1:
        message = f"the file holds {header.frames} frames; expected one image"
        yield Reason(ReasonCode.SEVERAL_FRAMES, Severity.REJECT, message)


def check_header(header: Header) -> Iterator[Reason]:
    """Give a reason for each fact of a header that does not fit the hand of a child."""
    part = (header.body_part or "").upper()
    if part and part not in _NO_PART and not any(word in part for word in _HAND_WORDS):
        message = f"the file's BodyPartExamined is {header.body_part}; expected a hand"
        yield Reason(ReasonCode.BODY_PART_NOT_HAND, Severity.WARN, message)
    modality = (header.modality or "").upper()
    if modality in UNUSUAL_MODALITIES:
        message = f"the file's Modality is {modality} ({UNUSUAL_MODALITIES[modality]}); expected DX"
        yield Reason(ReasonCode.BODY_PART_NOT_HAND, Severity.WARN, message)
    view = (header.view_position or "").upper()
    if view in _SIDE_VIEWS:
        message = f"the file's ViewPosition is {header.view_position}; expected PA or AP"
        yield Reason(ReasonCode.VIEW_NOT_FRONTAL, Severity.WARN, message)
    yield from _check_age(header)


def _check_age(header: Header) -> Iterator[Reason]:
    by_dates = None
    if header.birth_date is not None and header.study_date is not None:
        by_dates = (header.study_date - header.birth_date).days / 365.25
    stated = header.age_years
    if stated is not None and by_dates is not None and abs(stated - by_dates) > CONTRADICTION_YEARS:
        message = (
            f"the file's PatientAge is {stated:.1f} years, but its PatientBirthDate and StudyDate "
            f"are {by_dates:.1f} years apart"
        )
        yield Reason(ReasonCode.AGE_CONTRADICTS_DATES, Severity.INFO, message)
    name, age = ("PatientAge", stated) if stated is not None else ("age by its dates", by_dates)
    if age is not None and age > OLDEST_YEARS:
        message = f"the file's {name} is {age:.0f} years; expected {OLDEST_YEARS:.0f} or less"
        yield Reason(ReasonCode.AGE_OUT_OF_RANGE, Severity.WARN, message)
