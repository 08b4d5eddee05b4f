from pathlib import Path

import numpy as np
import pytest

from boneage.data.landmarks import read_landmarks
from boneage.errors import LabelError
from boneage.imaging.geometry import JOINTS, MEAN_HAND

REGIONS = {"carpus": "Wrist", "radius": "Radius", "ulna": "Ulna"}


def write_boxes(path: Path, points: dict[str, np.ndarray], reader: str = "a") -> Path:
    """Boxes about the joints of images of 600 by 800 pixels, in no order."""
    lines = ["id,reader,width,height,region,xmin,ymin,xmax,ymax"]
    for image_id, places in points.items():
        for name, (x, y) in sorted(zip(JOINTS, places, strict=True), key=lambda item: item[1][0]):
            region = REGIONS.get(name, name[:3])
            lines.append(f"{image_id},{reader},600,800,{region},{x - 9},{y - 5},{x + 9},{y + 5}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_fingers_are_told_apart_on_either_hand(tmp_path: Path, side: float) -> None:
    joints = MEAN_HAND[: len(JOINTS)] * (100.0 * side, 100.0) + (300.0, 500.0)
    hands = read_landmarks(write_boxes(tmp_path / "boxes.csv", {"7": joints}))
    assert hands["7"].joints == pytest.approx(joints)
    assert hands["7"].scaled_to(300, 800) == pytest.approx(joints * (0.5, 1.0))


def test_the_first_reader_counts_and_an_incomplete_hand_is_left_out(tmp_path: Path) -> None:
    joints = MEAN_HAND[: len(JOINTS)] * 100.0 + (300.0, 500.0)
    path = write_boxes(tmp_path / "boxes.csv", {"7": joints, "8": joints})
    again = write_boxes(tmp_path / "again.csv", {"7": joints + 50.0}, reader="b").read_text()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], *again.splitlines()[1:]]) + "\n")
    hands = read_landmarks(path)
    assert list(hands) == ["7"]
    assert hands["7"].joints == pytest.approx(joints)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text("id,width,height,region,xmin,ymin,xmax\n")
    with pytest.raises(LabelError, match=r"has no column 'ymax'; found: id, width"):
        read_landmarks(path)
