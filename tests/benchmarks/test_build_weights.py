"""The script that builds the weights in the package: what is trained, calibrated and measured."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boneage.data.labels import find_images
from boneage.evaluation.prediction_table import check_table
from boneage.inference.calibration import Outputs
from boneage.inference.contract import OUTPUTS
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import write_cohort
from boneage.training.checkpoint import save_checkpoint
from builders import load_script, make_checkpoint, make_small, write_sizes


@pytest.fixture
def build() -> Any:
    return load_script("benchmarks/build_weights.py")


@pytest.fixture
def small_build(build: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same with networks and numbers of images that take seconds."""
    monkeypatch.setattr(build, "read_recipe", make_small(build.read_recipe))
    for name, value in (("OTHERS", 20), ("SYNTHETIC_IMAGES", 12), ("EMBEDDED_IMAGES", 60),
                        ("LOOKS", 1), ("PARITY_IMAGES", 2)):  # fmt: skip
        monkeypatch.setattr(build, name, value)
    return build


@pytest.mark.slow
def test_weights_are_trained_calibrated_exported_and_measured(
    small_build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(tmp_path / "raw", n=320, seed=3, height=128, workers=2)
    small, larger = write_sizes(tmp_path / "raw", tmp_path)
    earlier = make_checkpoint(backbone="timm:test_resnet", sex_input=True, sex_weight=0.5)
    init, out, docs = tmp_path / "init.pt", tmp_path / "out.onnx", tmp_path / "docs"
    save_checkpoint(
        init, earlier.model, earlier.recipe, earlier.preprocessing, {"init_used": "none"}
    )
    arguments = ["build_weights.py", str(small), str(larger), "--init", str(init), "--work",
                 str(tmp_path / "work"), "--out", str(out), "--docs", str(docs)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    small_build.main()
    predictor = Predictor(out)
    contract = predictor.contract
    assert contract.outputs == OUTPUTS
    assert contract.preprocessing.crop == "hand"
    assert contract.calibration is not None
    assert contract.calibration.images >= 20
    assert contract.appearance is not None
    results = json.loads((docs / "results" / "boneage.json").read_text(encoding="utf-8"))
    assert results["provenance"]["graph_sha256"] == contract.graph_sha256
    assert results["test"]["n"] + results["test"]["n_rejected"] == results["n_by_split"]["test"]
    assert results["larger"]["n"] <= len(find_images(larger))
    assert results["sizes"]["n"] > 0
    assert contract.facts["test"]["mae_months"] == results["test"]["regression"]["mae_months"]
    assert "image_id" not in json.dumps(results)
    prediction = predictor.predict(next(iter(find_images(larger).values())), "F")
    assert prediction.familiarity is not None
    assert 0.0 <= prediction.familiarity <= 1.0
    # A second call trains and calibrates nothing new.
    before = contract.graph_sha256, contract.calibration
    monkeypatch.setattr(sys, "argv", [*arguments, "--measure"])
    small_build.main()
    again = Predictor(out).contract
    assert (again.graph_sha256, again.calibration) == before


def test_the_halves_of_validation_are_apart(build: Any, samples: Any) -> None:
    chosen_on, calibrated_on = (build.choose_half(samples, half) for half in (0, 1))
    assert set(chosen_on["split"]) == set(calibrated_on["split"]) == {"val"}
    assert not set(chosen_on["image_id"]) & set(calibrated_on["image_id"])
    assert len(chosen_on) + len(calibrated_on) == (samples["split"] == "val").sum()


def test_errors_are_described_by_sex_in_months(build: Any) -> None:
    outputs = Outputs(np.array([1.0, 1.0, -1.0]), np.array([10.0, 12.0, 8.0]))
    found = build.describe_errors(outputs, np.array([9.0, 12.0, 9.0]))
    assert found["all"]["mae_months"] == pytest.approx(8.0)
    assert found["M"]["signed_error_months"] == pytest.approx(6.0)
    assert found["F"] | {"n": 1, "mae_months": 12.0, "signed_error_months": -12.0} == found["F"]


def test_a_wrong_sex_is_provided_and_the_true_one_is_in_the_table(
    build: Any, samples: Any, predictor: Predictor
) -> None:
    rows = samples.assign(source=samples["path"]).iloc[:3]
    given = [record.sex for record in build.make_images(rows, "wrong")]
    assert given == [{"M": "F", "F": "M"}[sex] for sex in rows["sex"]]
    table = build.predict(predictor, rows, "wrong")
    check_table(table.assign(split="test"))
    assert set(table["sex"]) <= set(rows["sex"])
