from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from boneage.config import Recipe
from boneage.data.dataset import BoneAgeDataset, get_transforms
from boneage.errors import BoneAgeError
from boneage.imaging.orientation import ORIENTATIONS, Orientation
from boneage.imaging.preprocess import Preprocessing
from boneage.imaging.radiograph import Radiograph, read_radiograph
from boneage.inference.predictor import Predictor
from boneage.inference.quality import ReasonCode
from boneage.training.checkpoint import Checkpoint
from boneage.training.export import export_onnx
from boneage.training.model import BoneAgePredictor
from boneage.training.orientation_head import fit_orientation_head

RAW = Preprocessing(image_size=48, stored_size=None, invert="never")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(image_size=48, init="none", tta_mirror=True, orientation_head=True)


@pytest.fixture(scope="module")
def fitted(recipe: Recipe) -> BoneAgePredictor:
    """A network that nobody trained, in evaluation mode, its statistics those of noise."""
    torch.manual_seed(0)
    model = BoneAgePredictor.from_recipe(recipe)
    model.train()(torch.rand(8, 3, 48, 48))
    return model.eval()


def orient(image: Radiograph, orientation: Orientation) -> Radiograph:
    return replace(image, pixels=np.ascontiguousarray(orientation.apply(image.pixels)))


@pytest.mark.slow
def test_rotated_and_inverted_images_are_detected_and_corrected(
    fitted: BoneAgePredictor, recipe: Recipe, samples: pd.DataFrame, tmp_path: Path
) -> None:
    training = samples[samples["split"] == "train"]
    images = BoneAgeDataset(training, get_transforms("val", recipe), RAW)
    before = {k: v.clone() for k, v in fitted.state_dict().items() if "orientation" not in k}
    assert fit_orientation_head(fitted, images) > 0.95
    for name, value in before.items():
        assert torch.equal(value, fitted.state_dict()[name]), name
    served = replace(RAW, tta=fitted.tta)
    export_onnx(
        Checkpoint(fitted, recipe, served, {}), tmp_path / "m.onnx", [training["path"].iloc[0]]
    )
    predictor = Predictor(tmp_path / "m.onnx")
    n_corrected = 0
    others = samples[samples["split"] != "train"]["path"]
    for path in others:
        image = read_radiograph(path, "never")
        plain = predictor.predict(image)
        for orientation in ORIENTATIONS[1:]:
            prediction = predictor.predict(orient(image, orientation))
            messages = [r.message for r in prediction.reasons
                        if r.code is ReasonCode.ORIENTATION_CORRECTED]  # fmt: skip
            if not any(f"is {orientation.describe()}:" in message for message in messages):
                continue
            n_corrected += 1
            assert prediction.predicted_years == pytest.approx(plain.predicted_years, abs=1e-3)
            assert prediction.saliency is not None
            assert plain.saliency is not None
            rotated_map = np.rot90(plain.saliency, orientation.quarter_turns)
            np.testing.assert_allclose(prediction.saliency, rotated_map, atol=1e-4)
    # Even untrained features detect most orientations; those of a trained network nearly all.
    assert n_corrected > 0.8 * 7 * len(others)


def test_a_model_without_the_head_has_nothing_to_fit(samples: pd.DataFrame) -> None:
    model = BoneAgePredictor(image_size=48)
    images = BoneAgeDataset(samples, get_transforms("val", Recipe(image_size=48)), RAW)
    with pytest.raises(BoneAgeError, match="built without an orientation head"):
        fit_orientation_head(model, images)
