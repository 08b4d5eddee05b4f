from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from boneage.inference.batch import ImageRecord
from boneage.inference.predictor import Predictor
from boneage.sex import ProvidedSex


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor(exported, threads=1)


@pytest.fixture(scope="session")
def records(raw: Path) -> list[ImageRecord]:
    """Six images, of boys, girls and unknown."""
    sexes: list[ProvidedSex | None] = ["M", "F", None, "unknown", "F", "M"]
    paths = sorted(raw.rglob("*.png"))[:6]
    return [ImageRecord(path, sex) for path, sex in zip(paths, sexes, strict=True)]


@pytest.fixture(scope="session")
def grey(records: list[ImageRecord]) -> npt.NDArray[np.int64]:
    """The first of them."""
    return np.asarray(Image.open(records[0].path).convert("L")).astype(np.int64)
