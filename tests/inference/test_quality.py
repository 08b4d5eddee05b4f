from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from boneage.errors import ImageError
from boneage.imaging.geometry import Affine
from boneage.imaging.orientation import UPRIGHT, Orientation
from boneage.inference.hand_view import ShownHand
from boneage.inference.prediction import Prediction, unreadable
from boneage.inference.quality import (
    Reason,
    ReasonCode,
    Severity,
    check_image,
    check_stage,
)
from builders import UNCHANGED, make_radiograph


def test_the_status_follows_from_the_reasons() -> None:
    info, warn, reject = (
        Reason(ReasonCode.STAGE_CONTRADICTS_AGE, severity, "so it is") for severity in Severity
    )
    for reasons, status in (
        ((), "ok"), ((info,), "ok"), ((warn, info), "warn"), ((warn, reject), "reject"),
    ):  # fmt: skip
        assert Prediction("7", "7", reasons=reasons).status == status
    assert unreadable(Path("7.png"), ImageError("it is gone")).status == "error"


def test_only_information_is_marked_as_a_note_in_text() -> None:
    texts = [str(Reason(ReasonCode.INVERTED, severity, "so it is")) for severity in Severity]
    assert texts == ["note: so it is", "so it is", "so it is"]


def test_every_correction_of_an_image_is_a_warning() -> None:
    upright = ShownHand(Image.new("L", (50, 50)), UPRIGHT, None)
    assert not list(check_image(make_radiograph(50, 50), upright))
    turned = replace(upright, orientation=Orientation(2, is_inverted=False))
    inverted, rotated = check_image(make_radiograph(50, 50, was_inverted=True), turned)
    assert (inverted.code, rotated.code) == ("inverted", "orientation_corrected")
    assert {inverted.severity, rotated.severity} == {Severity.WARN}
    assert rotated.message.startswith("the image is rotated by 180°: it was corrected")


@pytest.mark.parametrize(
    ("view", "is_far", "severity"),
    [(None, False, None), (UNCHANGED, False, Severity.INFO), (UNCHANGED, True, Severity.WARN)],
)
def test_a_hand_far_from_its_usual_place_is_a_warning(
    view: Affine | None, is_far: bool, severity: Severity | None
) -> None:
    image = Image.new("L", (50, 50))
    shown = ShownHand(image, UPRIGHT, view, is_unusual=True, is_far=is_far)
    reasons = list(check_image(make_radiograph(50, 50), shown))
    assert [r.severity for r in reasons] == ([] if severity is None else [severity])


def test_restored_proportions_are_information() -> None:
    shown = ShownHand(Image.new("L", (50, 50)), UPRIGHT, UNCHANGED, aspect=1.27)
    (reason,) = check_image(make_radiograph(50, 50), shown)
    assert (reason.code, reason.severity) == ("proportions_corrected", Severity.INFO)
    assert "1.27 times as wide" in reason.message


@pytest.mark.parametrize(
    ("years", "stage", "probability", "n"),
    [
        (11.9, "Adolescent", 0.6, 1),
        (12.0, "Adolescent", 0.6, 0),
        (None, "Adult", 0.6, 0),
        (11.9, "Child", None, 0),
    ],
)
def test_an_age_beside_its_stage_is_information(
    years: float | None, stage: str, probability: float | None, n: int
) -> None:
    reasons = list(check_stage(years, stage, probability))
    assert [reason.code for reason in reasons] == [ReasonCode.STAGE_CONTRADICTS_AGE] * n
    assert all(reason.severity is Severity.INFO for reason in reasons)
