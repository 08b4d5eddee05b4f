import numpy as np
import pytest

from boneage.inference.familiarity import FamiliarityModel, measure_distance


def make_embedding(n: int = 500, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).normal(0.0, scale, (n, 20))


def test_an_average_image_has_distance_1() -> None:
    assert measure_distance(make_embedding()).mean() == pytest.approx(1.0, abs=0.02)


def test_familiarity_is_the_proportion_of_images_as_far_away() -> None:
    embedding = make_embedding()
    model = FamiliarityModel.fit(measure_distance(embedding), 0.01)
    distances = measure_distance(embedding)
    assert model.rate(0.0) == 1.0
    assert model.rate(float(np.median(distances))) == pytest.approx(0.5, abs=0.01)
    assert model.rate(float(distances.max()) + 1.0) == 0.0
    rates = [model.rate(distance) for distance in np.linspace(0.2, 2.0, 30)]
    assert rates == sorted(rates, reverse=True)


def test_a_model_comes_back_from_its_values() -> None:
    model = FamiliarityModel.fit(measure_distance(make_embedding()), 0.02)
    again = FamiliarityModel.from_values(model.to_values())
    np.testing.assert_array_equal(again.distances, model.distances)
    assert again.warn_below == 0.02
