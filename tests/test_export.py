from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from conftest import make_checkpoint

from boneage.config import Runtime
from boneage.dataset import BoneAgeDataset, get_transforms, make_loader
from boneage.errors import BoneAgeError
from boneage.export import export_onnx, measure_parity
from boneage.predict import Predictor
from boneage.train import Trainer


@pytest.fixture
def films(samples: pd.DataFrame) -> list[Path]:
    return list(samples["path"][:3])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sex_input": True},
        {"tasks": "age"},
        {"tasks": "stage", "sex_input": True},
        {"backbone": "timm:test_efficientnet", "sex_input": True},
    ],
    ids=str,
)
def test_every_kind_of_model_answers_alike_in_onnx(
    settings: dict[str, object], films: list[Path], tmp_path: Path
) -> None:
    parity = export_onnx(make_checkpoint(**settings), tmp_path / "model.onnx", films)
    assert parity.n == 3
    assert parity.months <= 0.01
    assert parity.probability <= 0.001


def test_a_corrupted_export_fails_the_comparison(films: list[Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(sex_input=True)
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, films)
    model = onnx.load(path)
    weights = next(w for w in model.graph.initializer if list(w.dims) == [64, 3, 7, 7])
    values = onnx.numpy_helper.to_array(weights).copy()
    values[0] *= 1.05
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(model, path)
    parity = measure_parity(checkpoint, Predictor(path), films)
    assert parity.months > 0.01


def test_a_model_that_differs_is_not_written(
    films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier model")
    checkpoint = make_checkpoint()
    run = Predictor.run

    def off(self: Predictor, images: np.ndarray, sexes: list[str]) -> dict[str, np.ndarray]:
        answers = run(self, images, sexes)
        return {**answers, "age_years": answers["age_years"] + np.float32(0.01)}

    monkeypatch.setattr(Predictor, "run", off)
    with pytest.raises(BoneAgeError, match=r"differs from its checkpoint by 0\.12 months"):
        export_onnx(checkpoint, path, films)
    assert path.read_bytes() == b"an earlier model"
    assert list(tmp_path.iterdir()) == [path]


def test_an_answer_that_is_no_number_does_not_pass(films: list[Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    with torch.no_grad():
        next(checkpoint.model.parameters()).fill_(float("nan"))
    with pytest.raises(BoneAgeError, match="differs from its checkpoint by nan"):
        export_onnx(checkpoint, tmp_path / "model.onnx", films)


def test_without_films_nothing_is_exported(tmp_path: Path) -> None:
    with pytest.raises(BoneAgeError, match="no film to compare"):
        export_onnx(make_checkpoint(), tmp_path / "model.onnx", [])


@pytest.mark.parametrize("sex_input", [False, True])
def test_the_trainer_s_table_is_the_predictor_s(
    samples: pd.DataFrame, tmp_path: Path, sex_input: bool
) -> None:
    checkpoint = make_checkpoint(sex_input=sex_input)
    held_out = samples[samples["split"] == "test"]
    transform = get_transforms("test", checkpoint.recipe)
    data = BoneAgeDataset(held_out, transform, checkpoint.preprocessing)
    trainer = Trainer(
        checkpoint.model,
        {"test": make_loader(data, checkpoint.recipe)},
        checkpoint.recipe,
        checkpoint.preprocessing,
        tmp_path,
        runtime=Runtime(device="cpu"),
    )
    trainer.evaluate("test", draws=0)
    export_onnx(checkpoint, tmp_path / "model.onnx", list(held_out["path"][:1]))
    predictor = Predictor(tmp_path / "model.onnx")
    for row, path in zip(trainer.tables["test"].itertuples(), held_out["path"], strict=True):
        answer = predictor.predict(path, row.sex)  # type: ignore[arg-type]
        assert answer.image_id == row.image_id
        assert answer.predicted_years == pytest.approx(row.predicted_years, abs=1e-4)
        assert answer.predicted_stage == row.predicted_stage
        for name in ("p_child", "p_adolescent", "p_adult"):
            assert getattr(answer, name) == pytest.approx(getattr(row, name), abs=1e-4)
