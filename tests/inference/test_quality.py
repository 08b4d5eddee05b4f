from pathlib import Path

import numpy as np
import pytest

from boneage.errors import ImageError
from boneage.imaging.orientation import ORIENTATIONS, UPRIGHT
from boneage.imaging.radiograph import Radiograph
from boneage.inference.prediction import Prediction, unreadable
from boneage.inference.quality import (
    Reason,
    ReasonCode,
    Severity,
    check_image,
    check_stage,
)


def make_radiograph(height: int, width: int, *, was_inverted: bool = False) -> Radiograph:
    pixels = np.linspace(0.0, 1.0, height * width, dtype=np.float32).reshape(height, width)
    return Radiograph(pixels, "7.png", "7", 8, was_inverted)


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
    assert not list(check_image(make_radiograph(50, 50), UPRIGHT))
    inverted, rotated = check_image(make_radiograph(50, 50, was_inverted=True), ORIENTATIONS[2])
    assert (inverted.code, rotated.code) == ("inverted", "orientation_corrected")
    assert {inverted.severity, rotated.severity} == {Severity.WARN}
    assert rotated.message.startswith("the image is rotated by 180°: it was corrected")


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
