import numpy as np
import pytest
import scipy.stats

from boneage.evaluation.bootstrap import estimate, mean_estimate, resample, seed_of, weighted_median

SEEDS = range(4)


def test_resampling_takes_as_many_cases_as_there_are_and_the_same_each_time() -> None:
    weights = np.concatenate([*resample(17, 250, 3)])
    assert weights.shape == (250, 17)
    assert (weights.sum(axis=1) == 17).all()
    assert weights.var() == pytest.approx(1 - 1 / 17, rel=0.1)  # a multinomial's
    np.testing.assert_array_equal(weights, np.concatenate([*resample(17, 250, 3)]))
    assert not np.array_equal(weights, np.concatenate([*resample(17, 250, 4)]))
    assert [*resample(17, 0, 3)] == []


def test_an_undefined_figure_and_resamples_that_are_all_the_same_have_no_interval() -> None:
    assert estimate(np.nan, [1.0, 2.0]) == {"value": None, "low": None, "high": None}
    assert estimate(0.1, np.full(9, 0.1)) == {"value": 0.1, "low": None, "high": None}
    assert estimate(0.1, []) == {"value": 0.1, "low": None, "high": None}


def test_an_interval_leaves_out_undefined_resamples_and_a_fortieth_at_each_end() -> None:
    resampled = [*np.arange(101.0), np.nan, np.nan]
    assert estimate(50.0, resampled) == pytest.approx({"value": 50.0, "low": 2.5, "high": 97.5})


def test_a_seed_follows_from_the_content_alone() -> None:
    columns = ["a", "b"], [1.0, 2.0]
    assert seed_of(*columns) == seed_of(("a", "b"), (1.0, 2.0))
    others = [(["a"], [1.0, 2.0]), (["a", "b"], [1.0, 2.5]), (["a", "b", "1.0", "2.0"],)]
    assert len({seed_of(*columns), *(seed_of(*other) for other in others)}) == 4


def test_the_interval_of_a_mean_does_not_depend_on_the_order_of_the_values() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert mean_estimate(values[::-1], 300) == mean_estimate(values, 300)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_weighted_median_is_numpys_of_repeated_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=11), rng.integers(0, 4, (50, 11))
    expected = [np.median(np.repeat(values, row)) for row in weights]
    np.testing.assert_allclose(weighted_median(values, weights.astype(np.float32)), expected)


def test_the_median_of_nothing_is_undefined() -> None:
    assert np.isnan(weighted_median(np.array([1.0, 2.0]), np.zeros((1, 2)))).all()


def test_the_interval_of_a_mean_is_scipys_percentile_bootstrap() -> None:
    difference = np.random.default_rng(3).exponential(2.0, 70)
    found = mean_estimate(difference, 9000)
    low, high = scipy.stats.bootstrap(
        (difference,), np.mean, method="percentile", rng=np.random.default_rng(8)
    ).confidence_interval
    assert found["value"] == pytest.approx(difference.mean())
    assert found["low"] == pytest.approx(low, abs=0.04 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.04 * (high - low))


def test_a_mean_of_no_case_or_one_or_without_resamples_has_no_interval() -> None:
    nothing = {"value": None, "low": None, "high": None}
    assert mean_estimate(np.empty(0), 9) == mean_estimate(np.empty(0), 0) == nothing
    assert mean_estimate(np.array([2.5]), 9) == nothing | {"value": 2.5}
    assert mean_estimate(np.array([2.0, 3.0]), 0) == nothing | {"value": 2.5}
