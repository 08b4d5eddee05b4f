from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch

from boneage.config import Runtime
from boneage.data.dataset import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BoneAgeDataset,
    get_transforms,
    make_loader,
)
from boneage.errors import BoneAgeError, CheckpointError, ConfigError
from boneage.imaging.preprocess import TestTimeAugmentation
from boneage.inference.contract import OUTPUTS
from boneage.inference.hand_view import make_reader
from boneage.inference.predictor import Predictor
from boneage.training.export import export_onnx, load_exported, measure_parity
from boneage.training.gradcam import GradCAM, predicted_age
from boneage.training.model import BoneAgePredictor
from boneage.training.train import Trainer
from builders import make_calibration, make_checkpoint

MEAN, STD = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))


@pytest.fixture
def paths(samples: pd.DataFrame) -> list[Path]:
    return list(samples["path"][:3])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sex_input": True},
        {"tasks": "age"},
        {"tasks": "stage", "sex_input": True},
        {"sex_input": True, "sex_weight": 0.1, "tta_mirror": True, "tta_zoom": 0.1},
        {"backbone": "timm:test_efficientnet", "sex_input": True},
    ],
    ids=str,
)
def test_every_kind_of_model_predicts_the_same_in_onnx(
    settings: dict[str, Any], paths: list[Path], tmp_path: Path
) -> None:
    parity = export_onnx(make_checkpoint(**settings), tmp_path / "model.onnx", paths)
    assert parity.n == 3
    assert parity.months <= 0.01
    assert parity.probability <= 0.001


@pytest.mark.slow
def test_the_age_map_is_what_each_cell_adds_to_the_age(paths: list[Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(sex_input=True, sex_weight=0.1, tta_mirror=True, tta_zoom=0.1)
    export_onnx(checkpoint, tmp_path / "model.onnx", paths)
    predictor = Predictor(tmp_path / "model.onnx")
    assert predictor.contract.outputs == tuple(name for name in OUTPUTS if name != "embedding")
    grey = checkpoint.preprocessing.to_array(checkpoint.preprocessing.read(paths[0]))
    bias = checkpoint.model.age_head.bias.item()  # type: ignore[union-attr]
    for sex, code in (("M", 1.0), ("F", -1.0), (None, 0.0)):
        outputs = predictor.run(grey[None], [sex])
        # A sex that is not provided is predicted from the image.
        p = outputs["p_male"][0]
        resolved = code or np.tanh(np.log(p / (1 - p)))
        constant = bias + resolved * checkpoint.model.age_head.sex_bias.item()  # type: ignore[union-attr, operator]
        age = outputs["age_map"].mean() + constant
        assert outputs["age_years"][0] == pytest.approx(age, abs=1e-3)
        image = (torch.from_numpy(grey)[None, None].expand(1, 3, -1, -1) - MEAN) / STD
        with GradCAM(checkpoint.model, 48) as cam:
            (grad_cam,) = cam(image, torch.tensor([code]), predicted_age)
        evidence = outputs["age_map"][0].clip(min=0)
        np.testing.assert_allclose(evidence / max(evidence.max(), 1e-9), grad_cam, atol=1e-3)


@pytest.mark.slow
def test_a_backbone_whose_features_are_no_means_has_no_age_map(
    paths: list[Path], tmp_path: Path
) -> None:
    export_onnx(make_checkpoint(backbone="vgg11"), tmp_path / "model.onnx", paths)
    assert "age_map" not in Predictor(tmp_path / "model.onnx").contract.outputs


@pytest.mark.slow
@pytest.mark.parametrize("tta_mirror", [False, True])
def test_an_exported_model_can_be_trained_on(
    paths: list[Path], tmp_path: Path, tta_mirror: bool
) -> None:
    checkpoint = make_checkpoint(sex_input=True, sex_weight=0.1, tta_mirror=tta_mirror)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():  # as training would, make all differ
            parameter.add_(0.01 * torch.randn_like(parameter))
    export_onnx(checkpoint, tmp_path / "model.onnx", paths)
    model = BoneAgePredictor.from_recipe(checkpoint.recipe)
    load_exported(model, tmp_path / "model.onnx")
    size = checkpoint.recipe.image_size
    given = torch.rand(4, 3, size, size), torch.tensor([1.0, -1.0, 0.0, 0.0])
    for found, expected in zip(model.eval()(*given), checkpoint.model.eval()(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    with pytest.raises(CheckpointError, match="does not hold the weights backbone"):
        load_exported(BoneAgePredictor("resnet34"), tmp_path / "model.onnx")


def test_an_exported_file_names_no_file_of_its_maker_and_has_its_own_fingerprint(
    paths: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(make_checkpoint(), path, paths)
    written = path.read_bytes()
    for words in (b'.py"', b"boneage/", str(Path.home()).encode()):
        assert words not in written
    model = onnx.load(path)
    del model.metadata_props[:]
    fingerprint = sha256(model.SerializeToString(deterministic=True)).hexdigest()
    assert Predictor(path).contract.graph_sha256 == fingerprint


@pytest.mark.slow
def test_a_calibration_goes_inside_only_with_its_own_model(
    paths: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(make_checkpoint(), path, paths)
    fitted = make_calibration(Predictor(path).contract.graph_sha256)
    export_onnx(make_checkpoint(), path, paths, fitted, {"terms": "none"})
    contract = Predictor(path).contract
    assert contract.calibration == fitted
    assert contract.facts == {"terms": "none"}
    with pytest.raises(ConfigError, match="fitted to another model"):
        export_onnx(make_checkpoint(sex_input=True), path, paths, fitted)
    assert Predictor(path).contract == contract


def test_a_corrupted_export_fails_the_comparison(paths: list[Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(sex_input=True)
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint, path, paths)
    model = onnx.load(path)
    weights = next(w for w in model.graph.initializer if list(w.dims) == [64, 3, 7, 7])
    values = onnx.numpy_helper.to_array(weights).copy()
    values[0] *= 1.05
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(model, path)
    parity = measure_parity(checkpoint, Predictor(path), paths)
    assert parity.months > 0.01


def test_a_model_that_differs_is_not_written(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier model")
    checkpoint = make_checkpoint()
    run = Predictor.run

    def off(self: Predictor, images: np.ndarray, sexes: list[str]) -> dict[str, np.ndarray]:
        outputs = run(self, images, sexes)
        return {**outputs, "age_years": outputs["age_years"] + np.float32(0.01)}

    monkeypatch.setattr(Predictor, "run", off)
    with pytest.raises(BoneAgeError, match=r"differs from its checkpoint by 0\.12 months"):
        export_onnx(checkpoint, path, paths)
    assert path.read_bytes() == b"an earlier model"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_is_no_number_does_not_pass(paths: list[Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    with torch.no_grad():
        next(checkpoint.model.parameters()).fill_(float("nan"))
    with pytest.raises(BoneAgeError, match="differs from its checkpoint by nan"):
        export_onnx(checkpoint, tmp_path / "model.onnx", paths)


def test_no_file_is_written_without_images_or_for_other_views_than_the_network_averages(
    paths: list[Path], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tta_mirror=True)
    with pytest.raises(BoneAgeError, match="no image to compare"):
        export_onnx(checkpoint, tmp_path / "model.onnx", [])
    other = replace(checkpoint.preprocessing, tta=TestTimeAugmentation(zoom=0.1))
    with pytest.raises(ConfigError, match=r"preprocessing has .*zoom=0\.1.*mirror=True"):
        export_onnx(replace(checkpoint, preprocessing=other), tmp_path / "model.onnx", paths)
    assert not list(tmp_path.iterdir())


SHIPPED = {
    "sex_input": True, "sex_weight": 0.1, "tta_mirror": True, "tta_zoom": 0.07,
    "crop": "hand", "stretch_grey": True, "output_stride": 16,
    "backbone": "timm:test_efficientnet",
}  # fmt: skip
"""Switches of the recipe of the weights in the package, and the views that may be averaged."""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"sex_input": True}, SHIPPED], ids=str)
def test_the_trainer_s_table_is_the_predictor_s(
    samples: pd.DataFrame, tmp_path: Path, settings: dict[str, Any]
) -> None:
    checkpoint = make_checkpoint(**settings)
    held_out = samples[samples["split"] == "test"]
    transform = get_transforms("test", checkpoint.recipe)
    data = BoneAgeDataset(held_out, transform, make_reader(checkpoint.preprocessing))
    trainer = Trainer(
        checkpoint.model,
        {"test": make_loader(data, checkpoint.recipe)},
        checkpoint.recipe,
        checkpoint.preprocessing,
        tmp_path,
        runtime=Runtime(device="cpu"),
    )
    trainer.evaluate("test", resamples=0)
    export_onnx(checkpoint, tmp_path / "model.onnx", list(held_out["path"][:1]))
    predictor = Predictor(tmp_path / "model.onnx")
    for row, path in zip(trainer.tables["test"].itertuples(), held_out["path"], strict=True):
        prediction = predictor.predict(path, row.sex)  # type: ignore[arg-type]
        assert prediction.image_id == row.image_id
        assert prediction.predicted_years == pytest.approx(row.predicted_years, abs=1e-4)
        assert prediction.predicted_stage == row.predicted_stage
        for name in ("p_child", "p_adolescent", "p_adult"):
            assert getattr(prediction, name) == pytest.approx(getattr(row, name), abs=1e-4)
