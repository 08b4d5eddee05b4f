"""The synthetic cohort is the fixture: small images, written once a test session."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from boneage.config import ImageSettings, Paths, Recipe, Runtime
from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.data.processed import preprocess_folder
from boneage.data.split import split_samples
from boneage.inference.batch import ImageRecord
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import write_cohort
from boneage.sex import ProvidedSex
from builders import TINY, make_checkpoint, make_full_table


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty synthetic images in the RSNA layout."""
    folder = tmp_path_factory.mktemp("cohort") / "raw"
    write_cohort(folder, n=80, seed=1, height=96, workers=2)
    return folder


@pytest.fixture(scope="session")
def processed(raw: Path) -> Path:
    """Those images at 64 px."""
    folder = raw.parent / "processed"
    preprocess_folder(find_images(raw), folder, ImageSettings(image_size=64), workers=1)
    return folder


@pytest.fixture
def paths(raw: Path, processed: Path, tmp_path: Path) -> Paths:
    return Paths(data=raw, processed=processed, use_processed=True, output=tmp_path / "output")


@pytest.fixture
def recipe() -> Recipe:
    """A recipe that runs in a second or two."""
    return Recipe(**TINY)  # type: ignore[arg-type]


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(device="cpu", workers=0)


@pytest.fixture
def samples(raw: Path) -> pd.DataFrame:
    """The cohort's labels with images and split."""
    table = match_images(read_labels(find_labels(raw)), find_images(raw))
    return table.assign(split=split_samples(table))


@pytest.fixture(scope="session")
def exported(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model with every head there is, of images stored at 64 px."""
    from boneage.training.export import export_onnx

    checkpoint = make_checkpoint(sex_input=True, sex_weight=0.1, tta_mirror=True, stretch_grey=True)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(checkpoint, path, [min(raw.rglob("*.png"))])
    return path


@pytest.fixture(scope="session")
def exported_with_view(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that sees a hand in a view of its own."""
    from boneage.training.export import export_onnx

    path = tmp_path_factory.mktemp("with_view") / "model.onnx"
    export_onnx(make_checkpoint(crop="hand"), path, [min(raw.rglob("*.png"))])
    return path


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
    """The grey values of the first of them."""
    return np.asarray(Image.open(records[0].path).convert("L")).astype(np.int64)


@pytest.fixture(scope="session")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The audit of a table that has every column."""
    from boneage.audit.figures import audit
    from boneage.evaluation.prediction_table import read_predictions

    path = tmp_path_factory.mktemp("audit") / "table.csv"
    make_full_table().to_csv(path, index=False)
    return audit([read_predictions(path, ["site"])], resamples=100)
