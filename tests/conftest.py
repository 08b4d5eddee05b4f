"""The synthetic cohort is the fixture: small films, drawn once a test session."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from boneage.calibration import Calibration, Spread
from boneage.checkpoint import Checkpoint
from boneage.config import Films, Paths, Recipe, Runtime
from boneage.labels import find_images, find_labels, match_images, read_labels
from boneage.model import BoneAgePredictor
from boneage.phantom import write_cohort
from boneage.preprocess import Preprocessing, preprocess_folder
from boneage.split import split_samples

ROOT = Path(__file__).parents[1]
TINY = {"image_size": 48, "init": "none", "batch_size": 16, "epochs": 2, "learning_rate": 1e-3}


def load_script(path: str) -> Any:
    """Load a script of the repository that is no part of the package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty synthetic films in the RSNA layout."""
    folder = tmp_path_factory.mktemp("cohort") / "raw"
    write_cohort(folder, n=80, seed=1, height=96, workers=2)
    return folder


@pytest.fixture(scope="session")
def processed(raw: Path) -> Path:
    """Those films at 64 px."""
    folder = raw.parent / "processed"
    preprocess_folder(find_images(raw), folder, Films(image_size=64), workers=1)
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
    """The cohort's labels with films and split."""
    table = match_images(read_labels(find_labels(raw)), find_images(raw))
    return table.assign(split=split_samples(table))


def make_checkpoint(**settings: object) -> Checkpoint:
    """A model that nobody trained, with statistics and sex weights as if somebody had."""
    torch.manual_seed(0)
    recipe = Recipe(image_size=48, init="none", **settings)  # type: ignore[arg-type]
    model = BoneAgePredictor.from_recipe(recipe)
    model.train()(torch.rand(8, 3, 48, 48), torch.zeros(8))
    for name, parameter in model.named_parameters():
        if "sex_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return Checkpoint(model.eval(), recipe, Preprocessing(48, 64, "auto"), {"epoch": 3})


@pytest.fixture(scope="session")
def exported(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model with every output there is, which samples its films to 64 px first."""
    from boneage.export import export_onnx

    checkpoint = make_checkpoint(sex_input=True, sex_weight=0.1, mirror_average=True)
    checkpoint = replace(checkpoint, preprocessing=Preprocessing(48, None, "auto", 64, True))
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(checkpoint, path, [min(raw.rglob("*.png"))])
    return path


def make_calibration(graph_sha256: str, **changes: Any) -> Calibration:
    """A calibration that makes boys 10 years older, girls 11 and others 12."""
    flat = (0.0,) * 12
    values = Calibration(
        graph_sha256, 300, 0.9, -10.0, -11.0, -12.0, 2.0, 1.0, Spread(flat, 1.5), Spread(flat, 2.5)
    )
    return replace(values, **changes)


def save_dicom(
    path: Path, pixels: npt.NDArray[Any], *, compress: str | None = None, **tags: Any
) -> Path:
    """Write pixels as an uncompressed or compressed DICOM file, with further tags."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    if compress is not None:
        dataset.compress(compress)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
