from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from PIL import Image, ImageFilter

from boneage.imaging.geometry import LANDMARKS, MEAN_HAND, Affine
from boneage.imaging.header import Header
from boneage.imaging.radiograph import Radiograph
from boneage.inference.faults import (
    check_appearance,
    check_exposure,
    check_hand,
    check_header,
    find_faults,
)
from boneage.inference.hand_finder import FinderFacts, FoundHand, HandFinder
from boneage.inference.predictor import Predictor
from boneage.inference.quality import ReasonCode, Severity, check_age, force_prediction
from builders import draw_radiograph


def make_radiograph(height: int = 60, width: int = 60, greys: int = 256) -> Radiograph:
    pixels = np.arange(height * width, dtype=np.float32).reshape(height, width) % greys
    return Radiograph(pixels / np.float32(255.0), "7.png", "7", 8, was_inverted=False)


@pytest.mark.parametrize(
    ("height", "width", "is_fine"), [(50, 50, True), (49, 900, False), (900, 49, False)]
)
def test_an_image_of_too_few_pixels_is_rejected(height: int, width: int, is_fine: bool) -> None:
    faults = find_faults(make_radiograph(height, width))
    assert (not faults) == is_fine
    for fault in faults:
        assert (fault.code, fault.severity) == ("image_too_small", "reject")
        assert fault.message.startswith(f"the image has {height}×{width} pixels; expected 50")


@pytest.mark.parametrize(("greys", "is_fine"), [(2, False), (31, False), (32, True), (256, True)])
def test_an_image_of_too_few_greys_is_rejected(greys: int, is_fine: bool) -> None:
    faults = find_faults(make_radiograph(greys=greys))
    assert [fault.code for fault in faults] == ([] if is_fine else ["too_few_greys"])
    if faults:
        assert faults[0].message == f"the image has {greys} grey values; expected 32 or more"


@pytest.mark.parametrize(
    ("header", "codes"),
    [
        (Header(), []),
        (Header(modality="DX", kind="Digital X-Ray Image Storage - For Presentation"), []),
        (Header(modality="CR"), []),
        (Header(modality="OT", kind="Secondary Capture Image Storage"), []),
        (Header(modality="CT"), ["not_a_radiograph"]),
        (Header(modality="mr"), ["not_a_radiograph"]),
        (Header(modality="US"), ["not_a_radiograph"]),
        (Header(kind="CT Image Storage"), ["not_a_radiograph"]),
        (Header(modality="OT", kind="Enhanced MR Image Storage"), ["not_a_radiograph"]),
        (Header(frames=3), ["several_frames"]),
        (Header(modality="NM", frames=2), ["not_a_radiograph", "several_frames"]),
    ],
)
def test_the_device_and_the_frames_decide(header: Header, codes: list[str]) -> None:
    faults = find_faults(replace(make_radiograph(), header=header))
    assert [fault.code for fault in faults] == codes
    assert {fault.severity for fault in faults} <= {Severity.REJECT}


def test_a_fault_names_what_the_file_says() -> None:
    (fault,) = find_faults(replace(make_radiograph(), header=Header(modality="CT")))
    assert fault.message == (
        "the file's Modality is CT (computed tomography); expected a radiograph of a hand"
    )


@pytest.mark.parametrize(
    ("header", "codes"),
    [
        *((Header(body_part=part), []) for part in
          ("HAND", "Left hand", "WRIST", "LT HAND BONE AGE", "EXTREMITY", "Main gauche", "OTHER")),
        *((Header(body_part=part), ["body_part_not_hand"]) for part in
          ("CHEST", "SKULL", "FOOT", "KNEE", "Thorax", "PELVIS", "LSPINE")),
        (Header(modality="MG"), ["body_part_not_hand"]),
        (Header(view_position="PA"), []),
        (Header(view_position="AP"), []),
        (Header(view_position="LL"), ["view_not_frontal"]),
        (Header(view_position="lateral"), ["view_not_frontal"]),
        (Header(age_years=20.0), []),
        (Header(age_years=21.0), ["age_out_of_range"]),
        (Header(birth_date=date(1980, 1, 1), study_date=date(2020, 1, 1)), ["age_out_of_range"]),
        (Header(age_years=10.0, birth_date=date(2010, 1, 1), study_date=date(2020, 12, 1)), []),
        (Header(age_years=6.0, birth_date=date(2010, 1, 1), study_date=date(2020, 1, 1)),
         ["age_contradicts_dates"]),
    ],
)  # fmt: skip
def test_a_header_that_fits_no_child_s_hand_gives_a_reason(
    header: Header, codes: list[str]
) -> None:
    reasons = list(check_header(header))
    assert [reason.code for reason in reasons] == codes
    for reason in reasons:
        is_info = reason.code is ReasonCode.AGE_CONTRADICTS_DATES
        assert reason.severity is (Severity.INFO if is_info else Severity.WARN)
        assert reason.message.startswith("the file's ")


def test_a_forced_prediction_is_warned_of_with_what_it_was_rejected_for() -> None:
    assert force_prediction([]) == []
    faults = find_faults(make_radiograph(20, 20))
    small, forced = force_prediction(faults)
    assert small == replace(faults[0], severity=Severity.WARN)
    assert (forced.code, forced.severity) == ("forced", "warn")


@pytest.mark.parametrize(
    ("greys", "code"),
    [((10, 200), None), ((40, 50), "too_dark"), ((10, 255), "overexposed")],
)
def test_a_hand_without_contrast_or_burnt_out_is_warned_of(
    greys: tuple[int, int], code: str | None
) -> None:
    pixels = np.full((200, 150), greys[0], np.float32)
    pixels[60:] = greys[1]
    radiograph = Radiograph(pixels / np.float32(255.0), "7.png", "7", 8, was_inverted=False)
    placement = Affine(np.array([[38.0, 0.0, 70.0], [0.0, 38.0, 150.0]]))
    sure = np.ones(len(LANDMARKS))
    counts = (0.0, 1.0, 0.0)
    inside = np.zeros(len(LANDMARKS), bool)
    hand = FoundHand(placement.apply(MEAN_HAND), sure, placement, 0.8, counts, 0.0, inside)
    reasons = list(check_exposure(radiograph, hand))
    assert [reason.code for reason in reasons] == ([code] if code else [])
    assert all(reason.severity is Severity.WARN for reason in reasons)


@pytest.fixture(scope="module")
def facts() -> FinderFacts:
    return HandFinder(threads=1).facts


def make_hand(
    p_none: float = 0.0, unseen: tuple[str, ...] = (), *, outside: bool = True
) -> FoundHand:
    """An upright hand whose landmarks are all seen but those named, which may be outside."""
    placement = Affine(np.array([[38.0, 0.0, 150.0], [0.0, 38.0, 250.0]]))
    seen = np.array([0.0 if name in unseen else 0.8 for name in LANDMARKS])
    counts = (p_none, 1.0 - p_none, 0.0)
    off = np.array([outside and name in unseen for name in LANDMARKS])
    return FoundHand(placement.apply(MEAN_HAND), seen, placement, 0.8, counts, 0.0, off)


@pytest.mark.parametrize(
    ("p_none", "unseen", "missing"),
    [
        (0.0, (), ""),
        (0.0, ("MCP5", "PIP5"), ""),
        (0.01, ("MCP5", "PIP5"), "1 of the fingers"),
        (0.01, ("PIP5", "DIP5"), ""),
        (0.0, ("MCP5", "PIP5", "MCP4", "PIP4"), "2 of the fingers"),
        (0.0, ("MCP2", "MCP3", "PIP2", "PIP3", "MCP4", "PIP4"), "3 of the fingers"),
        (0.0, ("carpus",), "the wrist"),
        (0.0, ("radius", "ulna"), "the wrist"),
        (0.0, ("ulna",), ""),
    ],
)
def test_a_hand_is_cut_off_without_its_wrist_or_fingers(
    facts: FinderFacts, p_none: float, unseen: tuple[str, ...], missing: str
) -> None:
    reasons = list(check_hand(make_hand(p_none, unseen), facts))
    assert [r.code for r in reasons] == (["hand_cut_off"] if missing else [])
    assert all(f": {missing} cannot be seen" in r.message for r in reasons)


@pytest.mark.parametrize(("p_none", "most"), [(0.01, 1), (0.0, 2)])
def test_fingers_under_others_are_not_cut_off(facts: FinderFacts, p_none: float, most: int) -> None:
    for n in (1, 2, 3):
        unseen = tuple(f"{joint}{2 + i}" for i in range(n) for joint in ("MCP", "PIP"))
        reasons = list(check_hand(make_hand(p_none, unseen, outside=False), facts))
        assert bool(reasons) == (n > most)


@pytest.mark.parametrize(
    ("score", "p_none", "is_hand"), [(0.2, 0.0, True), (0.2, 0.01, False), (0.1, 0.0, False)]
)
def test_a_faint_hand_counts_where_nothing_speaks_against_it(
    facts: FinderFacts, score: float, p_none: float, is_hand: bool
) -> None:
    hand = replace(make_hand(p_none), score=score)
    assert [r.code for r in check_hand(hand, facts)] == ([] if is_hand else ["no_hand"])


@pytest.mark.parametrize(
    ("p_none", "header", "is_rejected"),
    [
        (0.01, Header(body_part="FOOT"), True),
        (0.01, Header(view_position="LL"), True),
        (0.01, Header(body_part="HAND"), False),
        (0.0, Header(body_part="FOOT"), False),
        (0.01, Header(age_years=50.0), False),
    ],
)
def test_a_header_of_another_part_rejects_an_image_in_doubt(
    facts: FinderFacts, p_none: float, header: Header, is_rejected: bool
) -> None:
    reasons = list(check_hand(make_hand(p_none), facts, header))
    assert [(r.code, r.severity) for r in reasons] == [("no_hand", "reject")] * is_rejected


def test_images_unlike_the_training_images_are_warned_of() -> None:
    model = Predictor(threads=1).contract.appearance
    image = Image.fromarray(draw_radiograph(400))
    assert not list(check_appearance(image, model))
    assert not list(check_appearance(image, None))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8))
    (reason,) = check_appearance(noise, model)
    assert reason.code in ("unlike_training", "heavily_processed")
    hard = image.filter(ImageFilter.UnsharpMask(6, 600, 0)).filter(ImageFilter.SHARPEN)
    assert all(r.severity is Severity.WARN for r in check_appearance(hard, model))


@pytest.mark.parametrize(
    ("years", "is_noted"), [(None, False), (1.9, True), (2.0, False), (17.0, False), (17.5, True)]
)
def test_ages_at_which_errors_are_larger_are_noted(years: float | None, is_noted: bool) -> None:
    reasons = list(check_age(years))
    assert [reason.code for reason in reasons] == ["outside_usual_ages"] * is_noted
    assert all(reason.severity is Severity.INFO for reason in reasons)
