from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image, ImageFilter

from boneage.inference.appearance import SIDE, AppearanceModel, describe
from boneage.inference.predictor import Predictor
from builders import draw_radiograph


@pytest.fixture(scope="module")
def model() -> AppearanceModel:
    found = Predictor(threads=1).contract.appearance
    assert found is not None
    return found


def test_a_description_does_not_depend_on_the_exposure() -> None:
    image = Image.fromarray(draw_radiograph(400))
    darker = image.point([value // 2 for value in range(256)])
    assert describe(darker) == pytest.approx(describe(image), abs=0.15)


def test_sharpening_and_equalising_show_in_it(model: AppearanceModel) -> None:
    image = Image.fromarray(draw_radiograph(400))
    sharpened = image.filter(ImageFilter.UnsharpMask(8, 300, 0))
    assert model.p_processed(describe(image)) < model.processed_above
    assert model.p_processed(describe(sharpened)) > model.p_processed(describe(image))


def test_noise_is_unlike_the_training_images(model: AppearanceModel) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8)
    assert model.distance(describe(Image.fromarray(noise))) > model.unlike_above
    assert model.distance(model.mean) == 0.0


def test_an_image_of_one_grey_has_a_finite_description(model: AppearanceModel) -> None:
    flat = describe(Image.new("L", (SIDE, SIDE), 7))
    assert np.isfinite(flat).all()
    assert model.distance(flat) > model.unlike_above


def test_a_model_survives_as_plain_values(model: AppearanceModel) -> None:
    again = AppearanceModel.from_values(model.to_values())
    for name, value in asdict(model).items():
        assert np.array_equal(getattr(again, name), value)
    with pytest.raises(KeyError, match="precision"):
        AppearanceModel.from_values({"mean": [0.0]})
