import itertools
from collections.abc import Callable

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
Codes = npt.NDArray[np.int64]


pytestmark = pytest.mark.filterwarnings("error")
"""Undefined figures are values here, never warnings."""


def _ages(seed: int, n: int = 57) -> tuple[Ages, Ages]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.1, 19.0, n)
    return truth, truth + rng.normal(0.3, 1.2, n)


# Classes among the labels and among the predictions: all, some missing, only one, none in common.
CLASSES = [
    pytest.param(truth, predicted, seed, id=f"labels {truth}, predicted {predicted}, seed {seed}")
    for truth, predicted in [
        ((0, 1, 2), (0, 1, 2)),
        ((0, 1), (0, 1, 2)),
        ((0, 1, 2), (0, 1)),
        ((0, 1), (0, 1)),
        ((0, 2), (1,)),
        ((1,), (0, 1, 2)),
        ((0, 1, 2), (2,)),
        ((0,), (2,)),
    ]
    for seed in (0, 1)
]


def _codes(
    truth: tuple[int, ...], predicted: tuple[int, ...], seed: int, n: int = 41
) -> tuple[Codes, Codes]:
    rng = np.random.default_rng(seed)
    return rng.choice(truth, n), rng.choice(predicted, n)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (mean_absolute_error, sklearn.metrics.mean_absolute_error),
        (r2_score, sklearn.metrics.r2_score),
    ],
    ids=["MAE", "R²"],
)
def test_errors_of_ages_are_scikit_learns(
    ours: Callable[[Ages, Ages], Ages], theirs: Callable[[Ages, Ages], float], seed: int
) -> None:
    truth, predicted = _ages(seed)
    assert float(ours(truth, predicted)) == pytest.approx(theirs(truth, predicted), rel=1e-12)


def test_r2_is_negative_for_predictions_worse_than_the_mean() -> None:
    assert r2_score([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == -3.0


def test_r2_of_the_mean_is_zero() -> None:
    assert r2_score([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == 0.0


@pytest.mark.parametrize("truth", [[7.0], [7.0, 7.0, 7.0]])
def test_r2_of_equal_true_values_is_undefined(truth: list[float]) -> None:
    assert np.isnan(r2_score(truth, [7.5] * len(truth)))


def test_r2_of_equal_true_values_is_undefined_whatever_their_last_bit() -> None:
    truth = np.full(10, 125 / 12)
    assert np.isnan(r2_score(truth, truth + 1.0))


def test_lists_are_accepted_as_arrays_are() -> None:
    assert mean_absolute_error([1, 2], [2, 4]) == mean_absolute_error(
        np.array([1, 2]), np.array([2, 4])
    )


@pytest.mark.parametrize(("truth", "predicted", "seed"), CLASSES)
def test_the_confusion_matrix_is_scikit_learns(
    truth: tuple[int, ...], predicted: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, predicted, seed)
    expected = sklearn.metrics.confusion_matrix(y_true, y_pred, labels=[0, 1, 2])
    np.testing.assert_array_equal(confusion_matrix(y_true, y_pred, 3), expected)


@pytest.mark.parametrize(("truth", "predicted", "seed"), CLASSES)
def test_accuracy_is_scikit_learns(
    truth: tuple[int, ...], predicted: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, predicted, seed)
    ours = accuracy_score(confusion_matrix(y_true, y_pred, 3))
    assert float(ours) == pytest.approx(sklearn.metrics.accuracy_score(y_true, y_pred))


@pytest.mark.parametrize(("truth", "predicted", "seed"), CLASSES)
def test_precision_recall_and_f1_by_class_are_scikit_learns(
    truth: tuple[int, ...], predicted: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, predicted, seed)
    ours = precision_recall_f1(confusion_matrix(y_true, y_pred, 3))
    theirs = sklearn.metrics.precision_recall_fscore_support(
        y_true, y_pred, labels=[0, 1, 2], zero_division=0
    )
    for mine, expected in zip(ours, theirs[:3], strict=True):
        np.testing.assert_allclose(mine, expected)


@pytest.mark.parametrize(("truth", "predicted", "seed"), CLASSES)
def test_weighted_figures_are_scikit_learns(
    truth: tuple[int, ...], predicted: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, predicted, seed)
    ours = classification_figures(confusion_matrix(y_true, y_pred, 3))
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        y_true, y_pred, average="weighted", zero_division=0
    )
    assert float(ours["precision_weighted"]) == pytest.approx(precision)
    assert float(ours["recall_weighted"]) == pytest.approx(recall)
    assert float(ours["f1_weighted"]) == pytest.approx(f1)


@pytest.mark.parametrize(("truth", "predicted", "seed"), CLASSES)
def test_quadratic_kappa_is_scikit_learns(
    truth: tuple[int, ...], predicted: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, predicted, seed)
    ours = quadratic_kappa_score(confusion_matrix(y_true, y_pred, 3))
    theirs = sklearn.metrics.cohen_kappa_score(
        y_true, y_pred, weights="quadratic", labels=[0, 1, 2]
    )
    assert float(ours) == pytest.approx(theirs, abs=1e-12)


def test_kappa_is_undefined_where_one_class_is_all_there_is() -> None:
    assert np.isnan(quadratic_kappa_score(confusion_matrix([1, 1], [1, 1], 3)))


def test_kappa_is_zero_for_a_constant_prediction() -> None:
    assert quadratic_kappa_score(confusion_matrix([0, 1, 2], [1, 1, 1], 3)) == 0.0


def test_kappa_punishes_a_far_miss_more_than_a_near_one() -> None:
    truth = [0, 0, 1, 1, 2, 2]
    near = quadratic_kappa_score(confusion_matrix(truth, [0, 1, 1, 1, 2, 2], 3))
    far = quadratic_kappa_score(confusion_matrix(truth, [0, 2, 1, 1, 2, 2], 3))
    assert far < near


def test_a_class_weighs_by_its_true_cases_and_not_by_its_predictions() -> None:
    counts = confusion_matrix([0, 0, 0, 1], [1, 1, 1, 1], 2)
    assert weighted_average(np.array([1.0, 5.0]), counts) == 2.0


def test_figures_of_perfect_predictions_are_perfect() -> None:
    stages = np.array([0, 1, 2])
    classes = classification_figures(confusion_matrix(stages, stages, 3))
    assert {name: float(value) for name, value in classes.items()} == {
        "accuracy": 1.0,
        "precision_weighted": 1.0,
        "recall_weighted": 1.0,
        "f1_weighted": 1.0,
        "qwk": 1.0,
    }


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
    error = expected_calibration_error(
        reliability_bins(probabilities, rng.random(20_000) < probabilities)
    )
    assert error < 0.02
    assert expected_calibration_error(reliability_bins([1.0] * 4, [1, 1, 1, 0])) == 0.25


def test_bins_weigh_by_their_images() -> None:
    bins = reliability_bins([0.95] * 9 + [0.45], [1] * 9 + [0])
    assert expected_calibration_error(bins) == pytest.approx(0.9 * 0.05 + 0.1 * 0.45)
