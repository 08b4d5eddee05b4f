"""`evaluate` and `audit` are two views of the figures of one prediction table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from boneage.audit.figures import audit
from boneage.evaluation.evaluate import evaluate_table
from boneage.evaluation.prediction_table import read_predictions
from boneage.stages import PROBABILITIES, STAGES, stage_from_years


def make_table(n: int = 300) -> pd.DataFrame:
    """A prediction table of a split, as training writes it."""
    rng = np.random.default_rng(3)
    reference = rng.uniform(1.0, 19.0, n).round(2)
    predicted = (reference + rng.normal(0.1, 0.9, n)).clip(0.1)
    probabilities = rng.dirichlet([1.0, 1.0, 1.0], n)
    stages = np.array(STAGES)
    return pd.DataFrame(
        {
            "image_id": [f"case-{i}" for i in range(n)],
            "split": "test",
            "sex": rng.choice(["M", "F"], n),
            "reference_years": reference,
            "predicted_years": predicted,
            "reference_stage": stages[stage_from_years(reference)],
            "predicted_stage": stages[probabilities.argmax(axis=1)],
            **dict(zip(PROBABILITIES, probabilities.T, strict=True)),
        }
    )


def test_both_give_the_same_errors_and_accuracy(tmp_path: Path) -> None:
    table = make_table()
    table.to_csv(tmp_path / "table.csv", index=False)
    report = evaluate_table(table, resamples=0)
    result = audit([read_predictions(tmp_path / "table.csv")], resamples=0)["accuracy"]
    for key, ours in (("mae_months", "mae_months"), ("rmse_months", "rmse_months"),
                      ("signed_error_months", "bias_months"), ("r2", "r2")):  # fmt: skip
        assert report["regression"][key] == pytest.approx(result[ours]["value"], rel=1e-9), key
    for key in ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted", "qwk"):
        assert report["classification"][key] == pytest.approx(result[key]["value"], rel=1e-9), key
