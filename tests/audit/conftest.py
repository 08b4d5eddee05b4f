from pathlib import Path
from typing import Any

import pytest

from boneage.audit.figures import audit
from boneage.evaluation.prediction_table import read_predictions
from boneage.inference.predictor import Predictor
from builders import make_full_table


@pytest.fixture(scope="session")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The audit of a table that has every column."""
    path = tmp_path_factory.mktemp("audit") / "table.csv"
    make_full_table().to_csv(path, index=False)
    return audit([read_predictions(path, ["site"])], resamples=100)


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor(exported, threads=1)
