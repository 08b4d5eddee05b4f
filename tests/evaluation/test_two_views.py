"""`evaluate` and `audit` are two views of the figures of one prediction table."""

from pathlib import Path
from typing import Any

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


NAMES = {"bias_months": "signed_error_months"}
"""Names in `audit.json` that differ from those in `metrics_<split>.json`."""


def with_intervals(figures: dict[str, Any], name: str) -> dict[str, Any]:
    low, high = figures[f"{name}_ci"]
    return {"value": figures[name], "low": low, "high": high}


def audit_file(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    table.to_csv(folder / "table.csv", index=False)
    return audit([read_predictions(folder / "table.csv")])


def test_both_give_the_same_figures_and_intervals_to_the_last_digit(tmp_path: Path) -> None:
    table = make_table()
    report, result = evaluate_table(table), audit_file(tmp_path, table)
    accuracy = result["accuracy"]
    months = [name for name in accuracy if NAMES.get(name, name) in report["regression"]]
    assert {"mae_months", "rmse_months", "bias_months", "r2", "within_18_months"} <= set(months)
    for name in months:
        ours = with_intervals(report["regression"], NAMES.get(name, name))
        assert ours == accuracy[name], name
    for name in ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted", "qwk"):
        assert with_intervals(report["classification"], name) == accuracy[name], name
    approaches = report["approaches"]
    assert with_intervals(approaches, "difference") == result["approaches"]["accuracy_difference"]
    for name in ("direct_accuracy", "threshold_accuracy"):
        assert with_intervals(approaches, name) == result["approaches"][name], name
    assert with_intervals(report["stage_calibration"], "ece") == result["calibration"]["ece"]


def test_both_give_the_same_figures_of_each_group(tmp_path: Path) -> None:
    table = make_table()
    report, result = evaluate_table(table), audit_file(tmp_path, table)
    groups = {(row["by"], row["group"]): row["figures"] for row in result["groups"]}
    rows = [("sex", sex, report["gender_bias"]["regression"][sex]) for sex in ("male", "female")]
    rows += [("age", row["group"], row) for row in report["by_age"]]
    assert len(rows) == 7
    for kind, name, row in rows:
        for figure in ("mae_months", "bias_months"):
            ours = with_intervals(row, NAMES.get(figure, figure))
            assert ours == groups[kind, name][figure], (name, figure)


def test_the_order_of_the_rows_changes_nothing(tmp_path: Path) -> None:
    table = make_table()
    shuffled = table.sample(frac=1.0, random_state=0)
    assert evaluate_table(shuffled) == evaluate_table(table)
    assert audit_file(tmp_path, shuffled) == audit_file(tmp_path, table)


def test_the_intervals_follow_from_the_content() -> None:
    table = make_table()
    other = table.assign(image_id="other-" + table["image_id"])
    first, second = (evaluate_table(t)["regression"] for t in (table, other))
    assert first["mae_years"] == second["mae_years"]
    assert first["mae_years_ci"] != second["mae_years_ci"]
    assert first["mae_years_ci"] == pytest.approx(second["mae_years_ci"], rel=0.05)
