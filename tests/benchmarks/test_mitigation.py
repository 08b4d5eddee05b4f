"""Methods to narrow the gap between the sexes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from boneage.config import Recipe
from boneage.data.dataset import BoneAgeDataset, get_transforms
from boneage.errors import ConfigError
from boneage.imaging.preprocess import Preprocessing
from boneage.stages import stage_from_years
from boneage.training.model import BoneAgePredictor
from builders import load_script

mitigation = load_script("benchmarks/mitigation.py")
METHODS, fit_heads, predict = mitigation.METHODS, mitigation.fit_heads, mitigation.predict


def make_images(n: int, girls: float, seed: int, noise: float = 1.0) -> Any:
    """Images whose features contain the age, with more noise for the rarer girls."""
    rng = np.random.default_rng(seed)
    sex = np.where(rng.random(n) < girls, -1.0, 1.0)
    years = rng.uniform(2.0, 17.0, n)
    noisy = years + sex + rng.normal(0.0, np.where(sex < 0, noise, 0.3 * noise))
    vectors = noisy[:, None] - 10.0 + rng.normal(0.0, 1.0, (n, 512))
    return mitigation.Features(
        torch.tensor(vectors, dtype=torch.float32),
        torch.tensor(sex, dtype=torch.float32),
        torch.tensor(years, dtype=torch.float32),
        torch.tensor(stage_from_years(years)),
    )


@pytest.fixture(scope="module")
def model() -> BoneAgePredictor:
    torch.manual_seed(0)
    model = BoneAgePredictor(sex_input=True, image_size=32)
    assert model.age_head is not None
    nn.init.constant_(model.age_head.bias, 10.0)  # as with age_bias mean
    return model


@pytest.fixture(scope="module")
def images() -> list[Any]:
    return [make_images(1500, 0.2, seed=0), make_images(600, 0.5, seed=1)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_age_and_stage(
    model: BoneAgePredictor, images: list[Any], method: str
) -> None:
    heads = fit_heads(model, images[0], method, seed=0, epochs=60)
    years, stages = predict(heads, images[1])
    truth = images[1].years.numpy()
    assert np.abs(years - truth).mean() < 0.35 * np.abs(truth - truth.mean()).mean()
    assert np.mean(stages == images[1].stage.numpy()) > 0.8


def test_every_method_but_the_correction_changes_the_heads(
    model: BoneAgePredictor, images: list[Any]
) -> None:
    first = {
        method: predict(fit_heads(model, images[0], method, 0, 2), images[1])[0]
        for method in METHODS
    }
    plain = first.pop("nothing changed")
    assert np.array_equal(first.pop("correction by sex"), plain)
    for method, years in first.items():
        assert np.abs(years - plain).max() > 1e-4, method


def test_the_same_seed_gives_the_same_heads_another_one_others_and_the_model_keeps_its_own(
    model: BoneAgePredictor, images: list[Any]
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, again, other = (predict(fit_heads(model, images[0], METHODS[0], seed, 2), images[1])[0]
                         for seed in (3, 3, 4))  # fmt: skip
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_balanced_sampling_and_reweighting_lower_the_error_of_the_rarer_sex(
    model: BoneAgePredictor,
) -> None:
    """Both sexes share one bias; the sex that a method favours has the smaller error."""
    n = 2000
    girls = np.arange(n) % 20 == 0
    years = np.random.default_rng(0).normal(5.0, 0.1, n) - 2.0 * girls
    sex = torch.tensor(np.where(girls, -1.0, 1.0), dtype=torch.float32)
    reference = torch.tensor(years, dtype=torch.float32)
    images = mitigation.Features(torch.zeros(n, 512), sex, reference, torch.zeros(n).long())
    assert images.group.unique().tolist() == [0, 3]

    def error(method: str) -> float:
        predicted, _ = predict(fit_heads(model, images, method, 0, 2), images)
        return np.abs(predicted - years)[girls].mean()

    unchanged = error("nothing changed")
    for method in ("balanced sampling", "loss reweighting", "group regularisation"):
        assert error(method) < unchanged, method


def test_the_correction_by_sex_takes_a_line_for_each() -> None:
    predicted = np.linspace(2.0, 16.0, 40)
    sex = np.where(np.arange(40) % 2 == 0, 1.0, -1.0)
    reference = np.where(sex > 0, 1.1 * predicted - 0.5, 0.9 * predicted + 0.25)
    lines = mitigation.correct_by_sex(reference, predicted, sex)
    assert lines[1] == pytest.approx((1.1, -0.5))
    assert lines[-1] == pytest.approx((0.9, 0.25))


def test_features_are_those_that_the_network_predicts_from(samples: pd.DataFrame) -> None:
    recipe = Recipe(
        image_size=48, init="none", backbone="timm:test_resnet", sex_input=True, tta_mirror=True
    )
    torch.manual_seed(0)
    model = BoneAgePredictor.from_recipe(recipe).eval()
    raw = Preprocessing(image_size=48, stored_size=None, invert="never")
    data = BoneAgeDataset(samples.head(20), get_transforms("val", recipe), raw)
    images = mitigation.extract_features(model, data)
    assert model.age_head is not None
    assert images.vectors.shape == (20, model.age_head.in_features)
    with torch.no_grad():
        expected, _ = model(torch.stack([data[i]["image"] for i in range(20)]), images.sex)
        age, _ = model.apply_heads(images.vectors, images.sex)
    assert age is not None
    assert expected is not None
    assert torch.allclose(age, expected, atol=1e-5)
    assert images.years.tolist() == pytest.approx(samples["age_years"].head(20).tolist())
    assert images.stage.tolist() == samples["stage"].head(20).tolist()


@pytest.mark.parametrize("settings", [{"tasks": "age", "sex_input": True}, {}], ids=str)
def test_a_model_without_both_heads_and_the_sex_or_an_unknown_method_is_refused(
    model: BoneAgePredictor, settings: dict[str, Any], images: list[Any]
) -> None:
    with pytest.raises(ConfigError, match="both heads and the sex"):
        fit_heads(BoneAgePredictor(image_size=32, **settings), images[0], METHODS[0], 0)
    with pytest.raises(ConfigError, match="method is 'magic'; expected one of nothing changed, "):
        fit_heads(model, images[0], "magic", 0)
