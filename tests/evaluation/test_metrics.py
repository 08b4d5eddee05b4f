import doctest
import itertools
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import sklearn.metrics

import boneage.evaluation.metrics
from boneage.evaluation.metrics import (
    accuracy_score,
    bootstrap_intervals,
    classification_figures,
    confusion_matrix,
    coverage_score,
    expected_calibration_error,
    mean_absolute_error,
    mean_signed_error,
    precision_recall_f1,
    quadratic_kappa_score,
    r2_score,
    regression_figures,
    reliability_bins,
    root_mean_squared_error,
    weighted_average,
    within_score,
)

Ages = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """Undefined figures are values here, never warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _ages(seed: int, n: int = 57) -> tuple[Ages, Ages]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.1, 19.0, n)
    return truth, truth + rng.normal(0.3, 1.2, n)


# Classes among the labels and among the answers: all, some missing, only one, none in common.
CLASSES = [
    pytest.param(truth, answers, seed, id=f"labels {truth}, answers {answers}, seed {seed}")
    for truth, answers in [
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
    truth: tuple[int, ...], answers: tuple[int, ...], seed: int, n: int = 41
) -> tuple[Codes, Codes]:
    rng = np.random.default_rng(seed)
    return rng.choice(truth, n), rng.choice(answers, n)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (mean_absolute_error, sklearn.metrics.mean_absolute_error),
        (root_mean_squared_error, sklearn.metrics.root_mean_squared_error),
        (r2_score, sklearn.metrics.r2_score),
    ],
    ids=["MAE", "RMSE", "R²"],
)
def test_errors_of_ages_are_scikit_learns(
    ours: Callable[[Ages, Ages], Ages], theirs: Callable[[Ages, Ages], float], seed: int
) -> None:
    truth, answer = _ages(seed)
    assert float(ours(truth, answer)) == pytest.approx(theirs(truth, answer), rel=1e-12)


def test_the_signed_error_is_predicted_minus_true() -> None:
    assert mean_signed_error([10.0, 12.0], [11.0, 15.0]) == 2.0
    assert mean_signed_error([10.0, 12.0], [9.0, 9.0]) == -2.0


def test_r2_is_negative_for_answers_worse_than_the_mean() -> None:
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


@pytest.mark.parametrize(("truth", "answers", "seed"), CLASSES)
def test_the_confusion_matrix_is_scikit_learns(
    truth: tuple[int, ...], answers: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, answers, seed)
    expected = sklearn.metrics.confusion_matrix(y_true, y_pred, labels=[0, 1, 2])
    np.testing.assert_array_equal(confusion_matrix(y_true, y_pred, 3), expected)


@pytest.mark.parametrize(("truth", "answers", "seed"), CLASSES)
def test_accuracy_is_scikit_learns(
    truth: tuple[int, ...], answers: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, answers, seed)
    ours = accuracy_score(confusion_matrix(y_true, y_pred, 3))
    assert float(ours) == pytest.approx(sklearn.metrics.accuracy_score(y_true, y_pred))


@pytest.mark.parametrize(("truth", "answers", "seed"), CLASSES)
def test_precision_recall_and_f1_by_class_are_scikit_learns(
    truth: tuple[int, ...], answers: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, answers, seed)
    ours = precision_recall_f1(confusion_matrix(y_true, y_pred, 3))
    theirs = sklearn.metrics.precision_recall_fscore_support(
        y_true, y_pred, labels=[0, 1, 2], zero_division=0
    )
    for mine, expected in zip(ours, theirs[:3], strict=True):
        np.testing.assert_allclose(mine, expected)


@pytest.mark.parametrize(("truth", "answers", "seed"), CLASSES)
def test_weighted_figures_are_scikit_learns(
    truth: tuple[int, ...], answers: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, answers, seed)
    ours = classification_figures(confusion_matrix(y_true, y_pred, 3))
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        y_true, y_pred, average="weighted", zero_division=0
    )
    assert float(ours["precision_weighted"]) == pytest.approx(precision)
    assert float(ours["recall_weighted"]) == pytest.approx(recall)
    assert float(ours["f1_weighted"]) == pytest.approx(f1)


@pytest.mark.parametrize(("truth", "answers", "seed"), CLASSES)
def test_quadratic_kappa_is_scikit_learns(
    truth: tuple[int, ...], answers: tuple[int, ...], seed: int
) -> None:
    y_true, y_pred = _codes(truth, answers, seed)
    ours = quadratic_kappa_score(confusion_matrix(y_true, y_pred, 3))
    theirs = sklearn.metrics.cohen_kappa_score(
        y_true, y_pred, weights="quadratic", labels=[0, 1, 2]
    )
    assert float(ours) == pytest.approx(theirs, abs=1e-12)


def test_kappa_is_undefined_where_one_class_is_all_there_is() -> None:
    assert np.isnan(quadratic_kappa_score(confusion_matrix([1, 1], [1, 1], 3)))


def test_kappa_is_zero_for_a_constant_answer() -> None:
    assert quadratic_kappa_score(confusion_matrix([0, 1, 2], [1, 1, 1], 3)) == 0.0


def test_kappa_punishes_a_far_miss_more_than_a_near_one() -> None:
    truth = [0, 0, 1, 1, 2, 2]
    near = quadratic_kappa_score(confusion_matrix(truth, [0, 1, 1, 1, 2, 2], 3))
    far = quadratic_kappa_score(confusion_matrix(truth, [0, 2, 1, 1, 2, 2], 3))
    assert far < near


def test_a_class_weighs_by_its_true_cases_and_not_by_its_answers() -> None:
    counts = confusion_matrix([0, 0, 0, 1], [1, 1, 1, 1], 2)
    assert weighted_average(np.array([1.0, 5.0]), counts) == 2.0


def test_figures_of_perfect_answers_are_perfect() -> None:
    truth = np.array([1.0, 13.0, 19.0])
    stages = np.array([0, 1, 2])
    ages = regression_figures(truth, truth)
    assert {name: float(value) for name, value in ages.items()} == {
        "mae_years": 0.0,
        "rmse_years": 0.0,
        "signed_error_years": 0.0,
        "r2": 1.0,
        "within_6_months": 1.0,
        "within_12_months": 1.0,
        "within_24_months": 1.0,
    }
    classes = classification_figures(confusion_matrix(stages, stages, 3))
    assert {name: float(value) for name, value in classes.items()} == {
        "accuracy": 1.0,
        "precision_weighted": 1.0,
        "recall_weighted": 1.0,
        "f1_weighted": 1.0,
        "qwk": 1.0,
    }


def test_each_age_figure_stands_under_its_own_name() -> None:
    truth, answer = _ages(3)
    figures = regression_figures(truth, answer)
    assert figures["mae_years"] == mean_absolute_error(truth, answer)
    assert figures["rmse_years"] == root_mean_squared_error(truth, answer)
    assert figures["signed_error_years"] == mean_signed_error(truth, answer)
    assert figures["r2"] == r2_score(truth, answer)


def test_leading_axes_of_ages_give_what_a_loop_gives() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 19, (4, 3, 20))
    truth[1, 1] = 8.0
    answer = rng.uniform(0, 19, (4, 3, 20))
    whole = regression_figures(truth, answer)
    for i, j in itertools.product(range(4), range(3)):
        for name, expected in regression_figures(truth[i, j], answer[i, j]).items():
            np.testing.assert_array_equal(whole[name][i, j], expected, err_msg=name)


def test_leading_axes_of_stages_give_what_a_loop_gives() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (4, 3, 20))
    truth[1, 1] = 2
    answer = rng.integers(0, 3, (4, 3, 20))
    answer[1, 1] = 2
    counts = confusion_matrix(truth, answer, 3)
    assert counts.shape == (4, 3, 3, 3)
    whole = classification_figures(counts)
    for i, j in itertools.product(range(4), range(3)):
        alone = confusion_matrix(truth[i, j], answer[i, j], 3)
        np.testing.assert_array_equal(counts[i, j], alone)
        for name, expected in classification_figures(alone).items():
            np.testing.assert_array_equal(whole[name][i, j], expected, err_msg=name)


@pytest.mark.parametrize("name", ["mae_years", "rmse_years", "signed_error_years"])
def test_intervals_are_scipys_percentile_bootstrap(name: str) -> None:
    truth, answer = _ages(1, n=150)
    low, high = bootstrap_intervals(
        lambda rows: regression_figures(truth[rows], answer[rows]), 150, resamples=4000
    )[name]
    theirs = scipy.stats.bootstrap(
        (truth, answer),
        lambda y, p, axis: regression_figures(y, p)[name],
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(99),
    ).confidence_interval
    tolerance = 0.06 * (theirs.high - theirs.low)
    assert low == pytest.approx(theirs.low, abs=tolerance)
    assert high == pytest.approx(theirs.high, abs=tolerance)


def _counting(rows: Rows) -> dict[str, npt.NDArray[np.float64]]:
    """The draws' numbers themselves, so that their quantiles are known."""
    return {"x": np.arange(len(rows), dtype=float)}


@pytest.mark.parametrize(
    ("level", "interval"), [(0.95, (2.5, 97.5)), (0.5, (25.0, 75.0)), (0.9, (5.0, 95.0))]
)
def test_an_interval_cuts_half_of_the_rest_from_each_end(
    level: float, interval: tuple[float, float]
) -> None:
    found = bootstrap_intervals(_counting, 7, resamples=101, level=level)["x"]
    assert found == pytest.approx(interval)


def test_the_default_interval_is_of_95_percent() -> None:
    assert bootstrap_intervals(_counting, 7, resamples=101)["x"] == pytest.approx((2.5, 97.5))


def _parts(n: int, **options: int) -> list[Rows]:
    """The rows that a bootstrap asks for, part by part."""
    parts: list[Rows] = []

    def figures(rows: Rows) -> dict[str, npt.NDArray[np.float64]]:
        parts.append(rows)
        return _counting(rows)

    bootstrap_intervals(figures, n, **options)
    return parts


def _rows(n: int, **options: int) -> Rows:
    """All rows that a bootstrap asks for."""
    return np.concatenate(_parts(n, **options))


def test_by_default_there_are_2000_draws_of_seed_0() -> None:
    np.testing.assert_array_equal(_rows(5), _rows(5, resamples=2000, seed=0))


def test_each_draw_takes_as_many_cases_as_there_are_with_replacement() -> None:
    rows = _rows(n=40, resamples=300)
    assert rows.shape == (300, 40)
    assert (rows.min(), rows.max()) == (0, 39)
    assert all(len(set(row)) < 40 for row in rows)


def test_the_draws_differ_from_each_other() -> None:
    assert len({tuple(row) for row in _rows(n=40, resamples=300)}) == 300


def test_draws_that_do_not_fit_into_memory_at_once_are_drawn_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(boneage.evaluation.metrics, "_CHUNK", 100)
    parts = _parts(n=40, resamples=31)
    assert max(part.size for part in parts) <= 100
    rows = np.concatenate(parts)
    assert rows.shape == (31, 40)
    assert len({tuple(row) for row in rows}) == 31


def test_all_parts_of_the_draws_enter_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, answer = _ages(1)

    def interval() -> tuple[float, float]:
        return bootstrap_intervals(
            lambda rows: regression_figures(truth[rows], answer[rows]), len(truth), resamples=500
        )["mae_years"]

    whole = interval()
    monkeypatch.setattr(boneage.evaluation.metrics, "_CHUNK", 7 * len(truth))
    assert interval() == pytest.approx(whole, rel=0.02)


def test_more_cases_than_a_part_holds_are_still_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boneage.evaluation.metrics, "_CHUNK", 10)
    assert _rows(n=40, resamples=3).shape == (3, 40)


def test_the_same_seed_draws_the_same_cases() -> None:
    np.testing.assert_array_equal(_rows(40, resamples=20, seed=3), _rows(40, resamples=20, seed=3))


def test_another_seed_draws_other_cases() -> None:
    assert (_rows(40, resamples=20, seed=3) != _rows(40, resamples=20, seed=4)).any()


def test_figures_are_drawn_on_the_same_cases_so_that_differences_have_an_interval() -> None:
    truth, answer = _ages(1)

    def figures(rows: Rows) -> dict[str, npt.NDArray[np.float64]]:
        first = mean_absolute_error(truth[rows], answer[rows])
        second = mean_absolute_error(truth[rows], answer[rows] + 0.0)
        return {"first": first, "second": second, "difference": first - second}

    intervals = bootstrap_intervals(figures, len(truth), resamples=50)
    assert intervals["first"] == intervals["second"]
    assert intervals["difference"] == (0.0, 0.0)


def test_undefined_draws_are_left_out() -> None:
    def figures(rows: Rows) -> dict[str, npt.NDArray[np.float64]]:
        values = np.arange(len(rows), dtype=float)
        return {"x": np.where(values <= 100, values, np.nan)}

    assert bootstrap_intervals(figures, 7, resamples=150)["x"] == pytest.approx((2.5, 97.5))


def test_a_figure_without_a_defined_draw_has_no_interval() -> None:
    truth = np.full(5, 7.0)
    intervals = bootstrap_intervals(
        lambda rows: regression_figures(truth[rows], truth[rows] + 1.0), 5, resamples=20
    )
    assert np.isnan(intervals["r2"]).all()
    assert intervals["mae_years"] == (1.0, 1.0)


def test_intervals_are_plain_numbers() -> None:
    low, high = bootstrap_intervals(_counting, 7, resamples=10)["x"]
    assert (type(low), type(high)) == (float, float)


def test_an_error_of_exactly_the_limit_is_within_it() -> None:
    truth = np.array([1.0, 7.3, 12.1, 15.7])
    for error in (0.5, -0.5):
        assert within_score(truth, truth + error, 0.5) == 1.0
    assert within_score(truth, truth + np.array([0.0, 0.49, 0.51, -0.51]), 0.5) == 0.5


def test_a_reference_on_either_end_of_its_interval_is_covered() -> None:
    assert coverage_score([1.0, 2.0, 0.99, 2.01], [1.0] * 4, [2.0] * 4) == 0.5


def test_shares_keep_the_leading_axes() -> None:
    truth, answer = _ages(1)
    rows = np.random.default_rng(0).integers(0, len(truth), (7, 50))
    within = within_score(truth[rows], answer[rows], 0.5)
    covered = coverage_score(truth[rows], answer[rows] - 1.0, answer[rows] + 1.0)
    assert within.shape == covered.shape == (7,)
    assert covered[3] == coverage_score(
        truth[rows[3]], answer[rows[3]] - 1.0, answer[rows[3]] + 1.0
    )


def test_a_chance_is_counted_in_one_bin_and_empty_bins_are_left_out() -> None:
    bins = reliability_bins([0.0, 0.05, 0.1, 0.95, 1.0], [0, 1, 1, 1, 0])
    assert [(b["n"], b["accuracy"]) for b in bins] == [(2, 0.5), (1, 1.0), (2, 0.5)]
    assert [b["confidence"] for b in bins] == pytest.approx([0.025, 0.1, 0.975])
    assert len(reliability_bins([0.3, 0.6], [1, 1], bins=2)) == 2
    assert len(reliability_bins([0.3, 0.4], [1, 1], bins=2)) == 1


def test_honest_chances_have_no_calibration_error_and_boasts_their_excess() -> None:
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.3, 1.0, 20_000)
    honest = expected_calibration_error(reliability_bins(chances, rng.random(20_000) < chances))
    assert honest < 0.02
    assert expected_calibration_error(reliability_bins([1.0] * 4, [1, 1, 1, 0])) == 0.25


def test_bins_weigh_by_their_images() -> None:
    bins = reliability_bins([0.95] * 9 + [0.45], [1] * 9 + [0])
    assert expected_calibration_error(bins) == pytest.approx(0.9 * 0.05 + 0.1 * 0.45)


def test_docstring_examples_hold() -> None:
    result = doctest.testmod(boneage.evaluation.metrics)
    assert result.attempted > 0
    assert result.failed == 0
