"""The synthetic cohort is the fixture: small films, drawn once a test session."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from boneage.checkpoint import Checkpoint
from boneage.config import Films, Paths, Recipe, Runtime
from boneage.labels import find_images, find_labels, match_images, read_labels, split_samples
from boneage.model import BoneAgePredictor
from boneage.phantom import write_cohort
from boneage.preprocess import Preprocessing, preprocess_folder

TINY = {"image_size": 48, "init": "none", "batch_size": 16, "epochs": 2, "learning_rate": 1e-3}


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
