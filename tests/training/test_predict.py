from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from boneage.config import Recipe
from boneage.data.dataset import BoneAgeDataset, get_transforms, make_loader
from boneage.errors import BoneAgeError
from boneage.evaluation.prediction_table import COLUMNS as TABLE_COLUMNS
from boneage.imaging.preprocess import Preprocessing
from boneage.stages import STAGES
from boneage.training.losses import Outputs
from boneage.training.model import BoneAgePredictor
from boneage.training.predict import evaluate_loader, predict_loader

RAW = Preprocessing(image_size=48, stored_size=None, invert="auto")
CPU = torch.device("cpu")
SMALL = Recipe(image_size=48, init="none", batch_size=7, backbone="timm:test_resnet")


def make_model(recipe: Recipe = SMALL) -> BoneAgePredictor:
    torch.manual_seed(0)
    return BoneAgePredictor.from_recipe(recipe)


def make_dataset(samples: pd.DataFrame) -> BoneAgeDataset:
    return BoneAgeDataset(samples, get_transforms("val", SMALL), RAW)


def test_every_image_has_one_row_with_its_own_prediction_in_the_order_of_the_data_set(
    samples: pd.DataFrame,
) -> None:
    data, model = make_dataset(samples.head(10)[::-1]), make_model()
    table = predict_loader(model, make_loader(data, SMALL), CPU)
    assert list(table.columns) == list(TABLE_COLUMNS)
    for name in ("image_id", "split", "sex"):
        assert list(table[name]) == list(data.samples[name])
    assert list(table["reference_years"]) == list(data.samples["age_years"])
    assert list(table["reference_stage"]) == [STAGES[code] for code in data.samples["stage"]]
    for i in (0, 8):
        item = data[i]
        with torch.no_grad():
            age, logits = model(item["image"][None], item["sex"][None])
        assert table["predicted_years"][i] == pytest.approx(age.item(), abs=1e-5)
        probabilities = table.loc[i, ["p_child", "p_adolescent", "p_adult"]].to_numpy(float)
        np.testing.assert_allclose(probabilities, logits.softmax(dim=1)[0], atol=1e-6)
        assert table["predicted_stage"][i] == STAGES[int(logits.argmax())]


def test_a_loader_that_shuffles_and_drops_images_gives_the_same_table(
    samples: pd.DataFrame,
) -> None:
    data, model = make_dataset(samples.head(8)), make_model()  # batches of 7 leave one image over
    plain = predict_loader(model, make_loader(data, SMALL), CPU)
    shuffled = predict_loader(model, make_loader(data, SMALL, shuffle=True), CPU)
    pd.testing.assert_frame_equal(shuffled, plain)


def test_samples_without_a_split_can_be_predicted(samples: pd.DataFrame) -> None:
    data = make_dataset(samples.head(3).drop(columns="split"))
    assert predict_loader(make_model(), make_loader(data, SMALL), CPU)["split"].isna().all()


def test_predictions_are_those_of_evaluation_even_for_a_model_in_training(
    samples: pd.DataFrame,
) -> None:
    loader, model = make_loader(make_dataset(samples.head(4)), SMALL), make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = predict_loader(model.train(), loader, CPU)
    pd.testing.assert_frame_equal(predict_loader(model.eval(), loader, CPU), table)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_without_a_stage_head_stages_follow_from_the_ages(samples: pd.DataFrame) -> None:
    model = make_model(replace(SMALL, tasks="age"))
    assert model.age_head is not None
    torch.nn.init.constant_(model.age_head.bias, 15.0)
    table = predict_loader(model, make_loader(make_dataset(samples.head(3)), SMALL), CPU)
    assert table["p_child"].isna().all()
    assert set(table["predicted_stage"]) == {"Adolescent"}


def test_an_image_whose_prediction_is_not_finite_is_named(samples: pd.DataFrame) -> None:
    class Diverged(BoneAgePredictor):
        def apply_heads(self, features: torch.Tensor, sex: torch.Tensor | None = None) -> Outputs:
            age, logits = super().apply_heads(features, sex)
            assert age is not None
            age[2] = torch.inf
            return age, logits

    model = Diverged(SMALL.backbone, image_size=48)
    rows = samples.head(4)
    with pytest.raises(BoneAgeError) as stopped:
        predict_loader(model, make_loader(make_dataset(rows), SMALL), CPU)
    assert str(stopped.value) == (
        f"the prediction for image {rows['image_id'].iloc[2]} is not a finite number; training "
        "has diverged. Train again with a lower --learning-rate."
    )


def test_the_report_has_the_losses_and_the_split_s_name(samples: pd.DataFrame) -> None:
    loader = make_loader(make_dataset(samples.head(10)), SMALL)
    table, report = evaluate_loader(make_model(), loader, CPU, "mine", resamples=0)
    assert set(table["split"]) == {"mine"} == {report["split"]}
    error = (table["predicted_years"] - table["reference_years"]).abs()
    assert report["losses"]["age_loss"] == pytest.approx(error.mean(), rel=1e-6)
    losses = report["losses"]
    assert losses["loss"] == pytest.approx(losses["age_loss"] + losses["stage_loss"], rel=1e-6)
