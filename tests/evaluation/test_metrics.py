import itertools

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics

from boneage.evaluation.metrics import (
    accuracy_score,
    classification_figures,
    confusion_matrix,
    expected_calibration_error,
    mean_absolute_error,
    precision_recall_f1,
    quadratic_kappa_score,
    r2_score,
    reliability_bins,
    weighted_average,
)

Ages = npt.NDArray[np.float64]


pytestmark = pytest.mark.filterwarnings("error")
"""Undefined figures are values here, never warnings."""


def _ages(seed: int, n: int = 57) -> tuple[Ages, Ages]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.1, 19.0, n)
    return truth, truth + rng.normal(0.3, 1.2, n)


# Classes among the labels and among the predictions: all, some missing, only one, none in common.
CLASSES = [
    pytest.param(truth, predicted, seed, id=f"labels {truth}, predicted {predicted}, seed {seed}")
    for truth, predicted in (
        ((0, 1, 2), (0, 1, 2)), ((0, 1), (0, 1, 2)), ((0, 1, 2), (0, 1)), ((0, 1), (0, 1)),
        ((0, 2), (1,)), ((1,), (0, 1, 2)), ((0, 1, 2), (2,)), ((0,), (2,)),
    )
    for seed in (0, 1)
]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_errors_of_ages_are_scikit_learns(seed: int) -> None:
    truth, predicted = _ages(seed)
    for ages in ((truth, predicted), (truth.tolist(), predicted.tolist())):
        mae, r2 = float(mean_absolute_error(*ages)), float(r2_score(*ages))
        assert mae == pytest.approx(sklearn.metrics.mean_absolute_error(*ages), rel=1e-12)
        assert r2 == pytest.approx(sklearn.metrics.r2_score(*ages), rel=1e-12)


def test_r2_of_the_mean_is_zero_and_negative_for_predictions_worse_than_it() -> None:
    assert r2_score([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == 0.0
    assert r2_score([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == -3.0


@pytest.mark.parametrize("truth", [[7.0], [7.0, 7.0, 7.0], [125 / 12] * 10])
def test_r2_of_equal_true_values_is_undefined_whatever_their_last_bit(truth: list[float]) -> None:
    assert np.isnan(r2_score(truth, np.add(truth, 1.0)))


@pytest.mark.parametrize(("truth", "predicted", "seed"), CLASSES)
def test_figures_of_stages_are_scikit_learns(
    truth: tuple[int, ...], predicted: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    y_true, y_pred = rng.choice(truth, 41), rng.choice(predicted, 41)
    counts = confusion_matrix(y_true, y_pred, 3)
    expected = sklearn.metrics.confusion_matrix(y_true, y_pred, labels=[0, 1, 2])
    np.testing.assert_array_equal(counts, expected)
    accuracy = sklearn.metrics.accuracy_score(y_true, y_pred)
    assert float(accuracy_score(counts)) == pytest.approx(accuracy)
    by_class = sklearn.metrics.precision_recall_fscore_support(
        y_true, y_pred, labels=[0, 1, 2], zero_division=0
    )
    for ours, theirs in zip(precision_recall_f1(counts), by_class[:3], strict=True):
        np.testing.assert_allclose(ours, theirs)
    weighted = sklearn.metrics.precision_recall_fscore_support(
        y_true, y_pred, average="weighted", zero_division=0
    )
    figures = classification_figures(counts)
    names = ("precision_weighted", "recall_weighted", "f1_weighted")
    assert [float(figures[name]) for name in names] == pytest.approx(weighted[:3])
    kappa = sklearn.metrics.cohen_kappa_score(y_true, y_pred, weights="quadratic", labels=[0, 1, 2])
    assert float(quadratic_kappa_score(counts)) == pytest.approx(kappa, abs=1e-12, nan_ok=True)


def test_kappa_is_undefined_where_one_class_is_all_there_is_and_zero_for_a_constant() -> None:
    assert np.isnan(quadratic_kappa_score(confusion_matrix([1, 1], [1, 1], 3)))
    assert quadratic_kappa_score(confusion_matrix([0, 1, 2], [1, 1, 1], 3)) == 0.0
    perfect = classification_figures(confusion_matrix([0, 1, 2], [0, 1, 2], 3))
    assert {float(value) for value in perfect.values()} == {1.0}


def test_kappa_punishes_a_far_miss_more_than_a_near_one() -> None:
    truth = [0, 0, 1, 1, 2, 2]
    near = quadratic_kappa_score(confusion_matrix(truth, [0, 1, 1, 1, 2, 2], 3))
    far = quadratic_kappa_score(confusion_matrix(truth, [0, 2, 1, 1, 2, 2], 3))
    assert far < near


def test_a_class_weighs_by_its_true_cases_and_not_by_its_predictions() -> None:
    counts = confusion_matrix([0, 0, 0, 1], [1, 1, 1, 1], 2)
    assert weighted_average(np.array([1.0, 5.0]), counts) == 2.0


def test_leading_axes_of_stages_give_what_a_loop_gives() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (4, 3, 20))
    truth[1, 1] = 2
    predicted = rng.integers(0, 3, (4, 3, 20))
    predicted[1, 1] = 2
    counts = confusion_matrix(truth, predicted, 3)
    assert counts.shape == (4, 3, 3, 3)
    whole = classification_figures(counts)
    for i, j in itertools.product(range(4), range(3)):
        alone = confusion_matrix(truth[i, j], predicted[i, j], 3)
        np.testing.assert_array_equal(counts[i, j], alone)
        for name, expected in classification_figures(alone).items():
            np.testing.assert_array_equal(whole[name][i, j], expected, err_msg=name)


def test_a_probability_is_counted_in_one_bin_and_empty_bins_are_left_out() -> None:
    bins = reliability_bins([0.0, 0.05, 0.1, 0.95, 1.0], [0, 1, 1, 1, 0])
    assert [(b["n"], b["accuracy"]) for b in bins] == [(2, 0.5), (1, 1.0), (2, 0.5)]
    assert [b["confidence"] for b in bins] == pytest.approx([0.025, 0.1, 0.975])
    assert len(reliability_bins([0.3, 0.6], [1, 1], bins=2)) == 2
    assert len(reliability_bins([0.3, 0.4], [1, 1], bins=2)) == 1


def test_right_probabilities_have_no_calibration_error_and_too_high_ones_their_excess() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.3, 1.0, 20_000)
    bins = reliability_bins(probabilities, rng.random(20_000) < probabilities)
    assert expected_calibration_error(bins) < 0.02
    assert expected_calibration_error(reliability_bins([1.0] * 4, [1, 1, 1, 0])) == 0.25
    bins = reliability_bins([0.95] * 9 + [0.45], [1] * 9 + [0])  # weighed by their images
    assert expected_calibration_error(bins) == pytest.approx(0.9 * 0.05 + 0.1 * 0.45)
