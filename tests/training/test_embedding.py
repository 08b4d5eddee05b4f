from pathlib import Path

import numpy as np
import pytest
import torch

from boneage.inference.familiarity import FamiliarityModel, measure_distance
from boneage.inference.predictor import Predictor
from boneage.training.embedding import Embedding
from boneage.training.export import export_onnx
from builders import make_checkpoint, write_hands


def make_features(n: int = 400) -> torch.Tensor:
    """Features of which 5 of 60 directions vary much."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.cat([torch.full((5,), 4.0), torch.full((55,), 0.3)])
    mixed = torch.linalg.qr(torch.randn(60, 60, generator=generator))[0]
    return 7.0 + (torch.randn(n, 60, generator=generator) * scale) @ mixed


def test_an_embedding_has_variance_1_and_no_correlation() -> None:
    features = make_features()
    numbers = Embedding.fit(features, 5)(features)
    assert numbers.shape == (400, 6)
    covariance = torch.cov(numbers[:, :5].T)
    torch.testing.assert_close(covariance, torch.eye(5), rtol=0, atol=1e-4)
    assert numbers[:, 5].square().mean().item() == pytest.approx(1.0, abs=1e-3)


def test_features_beside_the_components_are_far_away() -> None:
    features = make_features()
    embedding = Embedding.fit(features, 5)
    away = features + 3.0 * torch.randn(60, generator=torch.Generator().manual_seed(1))
    near, far = (measure_distance(embedding(f).numpy()).mean() for f in (features, away))
    assert far > 2 * near


def test_a_served_model_tells_how_familiar_an_image_is(tmp_path: Path) -> None:
    paths = list(write_hands(tmp_path / "raw").values())
    checkpoint = make_checkpoint(backbone="timm:test_resnet", sex_input=True)
    features = torch.cat(
        [checkpoint.model.features(torch.rand(8, 3, 48, 48)).detach() for _ in range(8)]
    )
    embedding = Embedding.fit(features, 4)
    home = FamiliarityModel.fit(measure_distance(embedding(features).numpy()), warn_below=0.5)
    model = tmp_path / "model.onnx"
    export_onnx(checkpoint, model, paths[:1], embedding=embedding, familiarity=home)
    predictor = Predictor(model, threads=1)
    assert predictor.contract.outputs[-1] == "embedding"
    assert predictor.contract.familiarity is not None
    prediction = predictor.predict(paths[0], "M", force=True)
    raw = predictor.predict_raw(predictor.read(paths[0]), "M").outputs
    assert raw.distance is not None
    assert prediction.familiarity == pytest.approx(home.rate(float(raw.distance[0])), abs=1e-6)
    codes = prediction.reason_codes
    assert prediction.familiarity is not None
    assert (prediction.familiarity < 0.5) == ("unlike_training" in codes)
    preprocessing = predictor.contract.preprocessing
    grey = preprocessing.to_array(preprocessing.read(paths[0]))[None]
    alone = predictor.run(grey, ["M"])["embedding"]
    both = predictor.run(np.concatenate([grey, grey]), ["M", "F"])["embedding"]
    np.testing.assert_allclose(both[0], alone[0], rtol=1e-4, atol=1e-4)


def test_a_model_without_an_embedding_tells_no_familiarity(tmp_path: Path) -> None:
    paths = list(write_hands(tmp_path / "raw").values())
    export_onnx(make_checkpoint(backbone="timm:test_resnet"), tmp_path / "model.onnx", paths[:1])
    predictor = Predictor(tmp_path / "model.onnx", threads=1)
    assert predictor.predict(paths[0], force=True).familiarity is None
