import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from boneage.errors import ConfigError
from boneage.inference.calibration import (
    Calibration,
    Outputs,
    Spread,
    join_outputs,
    load_calibration,
)
from boneage.inference.calibration_fit import (
    MIN_IMAGES,
    MIN_IMAGES_OF_GROUP,
    MIN_IMAGES_SPREAD,
    expected_coverage,
    find_contradiction,
    fit_calibration,
)
from boneage.stages import stage_from_years
from builders import make_calibration

Array = npt.NDArray[np.float64]
BIAS = {1.0: 0.5, -1.0: -0.25}


def coverage(truth: Any, low: Any, high: Any) -> float:
    """Proportion of references in their interval, both ends included."""
    return float(((low <= truth) & (truth <= high)).mean())


def _images(n: int, seed: int = 0, sharpness: float = 1.0) -> tuple[Outputs, Outputs, Array]:
    """Make outputs with and without the sex, and references.

    Boys are predicted half a year too old, girls a quarter too young, all one year too old without
    their sex; errors grow with the age and with an undecided stage.
    """
    rng = np.random.default_rng(seed)
    truth = rng.uniform(2.0, 18.5, n)
    sex = rng.choice([-1.0, 1.0], n)
    doubt = rng.uniform(0.0, 1.0, n)
    probabilities = np.full((n, 3), doubt[:, None] / 3.0)
    probabilities[np.arange(n), stage_from_years(truth)] += 1.0 - doubt
    probabilities **= sharpness
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    noise = rng.normal(0.0, 0.2 + 0.02 * truth + 0.8 * doubt)
    p_male = (np.where(sex > 0, 0.8, 0.2) + rng.normal(0.0, 0.2, n)).clip(0.01, 0.99)
    years = truth + np.where(sex > 0, BIAS[1.0], BIAS[-1.0]) + noise
    return (
        Outputs(sex, years, probabilities, p_male),
        Outputs(np.zeros(n), truth + 1.0 + 1.5 * noise, probabilities, p_male),
        truth,
    )


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    with_sex, without_sex, truth = _images(2000)
    return fit_calibration(with_sex, without_sex, truth, "abc")


def test_the_bias_is_found_by_sex_and_taken_off(fitted: Calibration) -> None:
    with_sex, without_sex, truth = _images(2000, seed=1)
    for raw, groups in ((with_sex, (1.0, -1.0)), (without_sex, (0.0,))):
        outputs, _, _ = fitted.apply(raw)
        for code in groups:
            rows = raw.sex == code
            assert abs((raw.years - truth)[rows].mean()) > 0.2
            assert abs((outputs.years - truth)[rows].mean()) < 0.1
    assert (fitted.images, fitted.level, fitted.graph_sha256) == (2000, 0.9, "abc")


def test_the_interval_covers_90_percent_of_new_images_of_each_group(fitted: Calibration) -> None:
    with_sex, without_sex, truth = _images(4000, seed=1)
    boys, girls = with_sex.sex > 0, with_sex.sex < 0
    for raw in (with_sex, without_sex):
        _, low, high = fitted.apply(raw)
        assert coverage(truth, low, high) == pytest.approx(0.9, abs=0.02)
        by_width = np.argsort(high - low)
        for rows in (by_width[:1000], by_width[-1000:], boys, girls, truth < 6):
            assert coverage(truth[rows], low[rows], high[rows]) > 0.85


def test_the_interval_is_wide_where_errors_are_large(fitted: Calibration) -> None:
    with_sex, without_sex, _ = _images(1000, seed=1)
    _, low, high = fitted.apply(with_sex)
    width = high - low
    assert np.quantile(width, 0.95) > 2.0 * np.quantile(width, 0.05)
    _, low_unknown, high_unknown = fitted.apply(without_sex)
    assert (high_unknown - low_unknown).mean() > 1.2 * width.mean()


def test_another_level_gives_another_coverage() -> None:
    half = fit_calibration(*_images(2000), "abc", level=0.5)
    new, _, truth = _images(2000, seed=1)
    _, low, high = half.apply(new)
    assert coverage(truth, low, high) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("sharpness", "low", "high"), [(3.0, 2.5, 3.6), (1.0, 0.8, 1.25)])
def test_overconfident_probabilities_are_tempered_and_calibrated_ones_left(
    sharpness: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(2.0, 22.0, 3000)
    honest = rng.dirichlet([1.0, 1.0, 1.0], 3000)
    sampled = np.array([rng.choice(3, p=p) for p in honest])
    truth = np.array([6.0, 15.0, 20.0])[sampled]
    sharp = honest**sharpness / (honest**sharpness).sum(axis=1, keepdims=True)
    with_sex = Outputs(np.ones(3000), truth, sharp)
    fitted = fit_calibration(with_sex, replace(with_sex, sex=np.zeros(3000)), truth, "abc")
    assert low < fitted.temperature < high
    tempered = fitted.apply(with_sex)[0].probabilities
    assert tempered is not None
    np.testing.assert_allclose(tempered, honest, atol=0.06)
    np.testing.assert_array_equal(tempered.argmax(axis=1), sharp.argmax(axis=1))


def test_the_interval_of_a_known_sex_comes_from_images_of_known_sex() -> None:
    with_sex, without_sex, truth = _images(2000)
    is_known = np.arange(2000) < 1000
    # Images of unknown sex among them, far worse predicted.
    errors = (with_sex.years - truth) * np.where(is_known, 1.0, 6.0)
    mixed = replace(with_sex, sex=np.where(is_known, with_sex.sex, 0.0), years=truth + errors)
    fitted = fit_calibration(mixed, without_sex, truth, "abc")
    new, _, references = _images(2000, seed=1)
    _, low, high = fitted.apply(new)
    assert coverage(references, low, high) == pytest.approx(0.9, abs=0.03)


def probability_of_the_other_sex(outputs: Outputs) -> Array:
    assert outputs.p_male is not None
    return np.where(outputs.sex > 0, 1.0 - outputs.p_male, outputs.p_male)


def test_one_right_image_in_a_hundred_is_warned_of_as_contradicting_its_sex_if_it_looks_so(
    fitted: Calibration,
) -> None:
    p_other = probability_of_the_other_sex(_images(2000, seed=1)[0])
    assert (p_other > fitted.sex_warning_above).mean() == pytest.approx(0.01, abs=0.007)
    with_sex, without_sex, truth = _images(2000)
    plain = replace(with_sex, p_male=np.where(with_sex.sex > 0, 0.9, 0.1))
    assert fit_calibration(plain, without_sex, truth, "abc").sex_warning_above == 0.5


def test_images_of_one_stage_fix_nothing_of_the_probabilities(fitted: Calibration) -> None:
    with_sex, without_sex, _ = _images(400)
    of_one = Outputs(
        with_sex.sex, with_sex.years, np.tile([0.7, 0.2, 0.1], (400, 1)), with_sex.p_male
    )
    own = fit_calibration(of_one, without_sex, np.full(400, 6.0), "abc", base=fitted)
    assert own.temperature == fitted.temperature


def test_an_age_beside_another_likeliest_stage_is_given_as_predicted(fitted: Calibration) -> None:
    calibration = replace(fitted, bias_male_years=0.0)
    years = np.array([11.7, 12.3, 11.7, 11.4, 17.8, 5.0])
    probabilities = np.eye(3)[[1, 0, 0, 1, 2, 2]]
    outputs, low, high = calibration.apply(Outputs(np.ones(6), years, probabilities))
    np.testing.assert_array_equal(outputs.years, years)
    np.testing.assert_allclose((low + high)[:5] / 2, years[:5])


def test_a_model_of_the_age_alone_is_calibrated_too() -> None:
    with_sex, without_sex, truth = _images(400)
    with_sex, without_sex = (
        replace(a, probabilities=None, p_male=None) for a in (with_sex, without_sex)
    )
    fitted = fit_calibration(with_sex, without_sex, truth, "abc")
    assert (fitted.temperature, fitted.sex_warning_above) == (1.0, 1.0)
    outputs, low, high = fitted.apply(with_sex)
    assert outputs.probabilities is None
    assert coverage(truth, low, high) == pytest.approx(0.9, abs=0.03)


def test_few_images_scale_the_intervals_that_the_model_came_with(fitted: Calibration) -> None:
    with_sex, without_sex, truth = _images(100, seed=2)
    own = fit_calibration(with_sex, without_sex, truth, "abc", base=fitted)
    assert own.known.coefficients == fitted.known.coefficients
    assert own.unknown.coefficients == fitted.unknown.coefficients
    assert own.known.quantile != fitted.known.quantile
    assert own.known.quantile == pytest.approx(fitted.known.quantile, rel=0.4)
    assert own.temperature == fitted.temperature
    assert own.sex_warning_above == fitted.sex_warning_above
    assert own.bias_male_years != fitted.bias_male_years


def test_few_images_without_such_a_model_have_intervals_of_one_width() -> None:
    with_sex, without_sex, truth = _images(MIN_IMAGES_SPREAD - 1, seed=2)
    fitted = fit_calibration(with_sex, without_sex, truth, "abc")
    assert set(fitted.known.coefficients) == {0.0}
    assert fitted.temperature == 1.0
    bias = np.where(with_sex.sex > 0, fitted.bias_male_years, fitted.bias_female_years)
    sizes = np.sort(np.abs(with_sex.years - truth - bias))
    assert fitted.known.quantile == pytest.approx(sizes[269])  # the ceil(0.9 x 300)th of 299


def test_a_sex_of_few_images_takes_the_bias_of_all() -> None:
    with_sex, without_sex, truth = _images(200)
    sex = np.ones(200)
    sex[: MIN_IMAGES_OF_GROUP - 1] = -1.0
    fitted = fit_calibration(replace(with_sex, sex=sex), without_sex, truth, "abc")
    assert fitted.bias_female_years == pytest.approx((with_sex.years - truth).mean())
    assert fitted.bias_male_years == pytest.approx(
        (with_sex.years - truth)[MIN_IMAGES_OF_GROUP - 1 :].mean()
    )


def test_too_few_images_are_refused() -> None:
    fit_calibration(*_images(MIN_IMAGES), "abc")
    with pytest.raises(ConfigError, match=r"19 labelled images are too few .* expected 20 or more"):
        fit_calibration(*_images(MIN_IMAGES - 1), "abc")


def test_no_age_is_below_0_years() -> None:
    calibration = make_calibration("abc", bias_male_years=3.0)
    outputs, low, high = calibration.apply(Outputs(np.ones(2), np.array([1.0, 4.0])))
    assert outputs.years.tolist() == [0.0, 1.0]
    assert low.tolist() == [0.0, 0.0]
    assert high.tolist() == [1.5, 2.5]


def test_an_image_is_calibrated_the_same_alone_and_among_others(fitted: Calibration) -> None:
    with_sex, _, _ = _images(5)
    outputs, low, high = fitted.apply(with_sex)
    for i in range(5):
        one = Outputs(*(v if v is None else v[i : i + 1] for v in vars(with_sex).values()))  # type: ignore[arg-type]
        alone, low_alone, high_alone = fitted.apply(one)
        found = (alone.years[0], low_alone[0], high_alone[0])
        assert found == pytest.approx((outputs.years[i], low[i], high[i]))


def test_outputs_are_joined_in_their_order() -> None:
    with_sex, without_sex, _ = _images(3)
    joined = join_outputs([with_sex, without_sex])
    assert joined.years.tolist() == [*with_sex.years, *without_sex.years]
    assert joined.probabilities is not None
    assert joined.probabilities.shape == (6, 3)
    assert join_outputs([with_sex, replace(without_sex, p_male=None)]).p_male is None
    assert len(join_outputs([]).years) == 0


def test_a_calibration_comes_back_from_its_file_of_plain_toml_as_it_was(
    fitted: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "site.toml"
    fitted.save(path)
    assert load_calibration(path) == fitted
    assert [p.name for p in path.parent.iterdir()] == ["site.toml"]
    assert path.read_text().startswith("# Bias and intervals of a bone-age model, fitted on 2000")
    make_calibration("abc", known=Spread((0.5,) * 12, 1e-7)).save(path)
    values = tomllib.loads(path.read_text())
    assert values["bias_male_years"] == -10.0
    assert values["known"] == {"coefficients": [0.5] * 12, "quantile": 1e-7}


def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    with pytest.raises(ConfigError, match=r"site\.toml does not exist; expected a file of"):
        load_calibration(path)
    make_calibration("abc").save(path)
    whole = path.read_text()
    for found, changed, message in (
        ("temperature = 2.0", "temperature = ", "Invalid value"),
        ("temperature = 2.0\n", "", "temperature"),
        ("temperature = 2.0", "temperature = 0.0", "temperature is 0.0"),
        ("temperature = 2.0", "temperature = nan", "temperature is nan"),
        ("temperature = 2.0", "temperature = 2.0\nheat = 1", "heat"),
        ("quantile = 1.5", "quantile = inf", "known holds what is no finite number"),
        ("[0.0, ", "[", "known has 11 coefficients"),
        ("[known]", "[other]", "known"),
    ):
        text = whole.replace(found, changed, 1)
        assert text != whole
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"site\.toml is not a calibration \(.*{message}"):
            load_calibration(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not a calibration"):
        load_calibration(path)


@pytest.mark.parametrize("n", [MIN_IMAGES_OF_GROUP, 100, MIN_IMAGES_SPREAD])
def test_few_images_fix_when_a_sex_is_warned_of_if_the_model_came_without(n: int) -> None:
    own = fit_calibration(*_images(n, seed=3), "abc")
    p_other = probability_of_the_other_sex(_images(4000, seed=4)[0])
    assert (p_other > own.sex_warning_above).mean() < 0.05
    assert (1.0 - p_other > own.sex_warning_above).mean() > 0.3  # of entered sexes that are wrong


def test_images_as_a_whole_that_contradict_their_sexes_are_described() -> None:
    with_sex, without_sex, truth = _images(40, seed=5)
    assert find_contradiction(with_sex, without_sex, truth) is None
    assert find_contradiction(without_sex, without_sex, truth) is None
    found = find_contradiction(replace(with_sex, sex=-with_sex.sex), without_sex, truth)
    assert re.fullmatch("3[0-9] of 40 look like the other sex's", str(found))


def test_ages_that_the_sexes_make_worse_contradict_them_without_a_head_for_the_sex() -> None:
    with_sex, without_sex, truth = _images(40, seed=5)
    blind = replace(with_sex, p_male=None)
    assert find_contradiction(blind, without_sex, truth) is None
    worse = replace(blind, years=truth + 2.0 * with_sex.sex)
    found = str(find_contradiction(worse, without_sex, truth))
    assert found.startswith("with the sexes given the mean error is 24.0 months, without them 1")


def test_the_coverage_to_expect_narrows_with_the_images() -> None:
    widths = [high - low for low, high in map(expected_coverage, (20, 100, 1000))]
    assert widths == sorted(widths, reverse=True)
    low, high = expected_coverage(1000)
    assert low < 0.9 < high
    assert widths[-1] < 0.05


def test_the_fingerprint_changes_with_every_value(fitted: Calibration) -> None:
    assert replace(fitted).sha256 == fitted.sha256
    assert replace(fitted, temperature=fitted.temperature + 1e-9).sha256 != fitted.sha256


def test_intervals_are_wider_far_from_the_training_images(tmp_path: Path) -> None:
    with_sex, without_sex, truth = _images(2000)
    rng = np.random.default_rng(5)
    distance = rng.uniform(0.8, 3.0, len(truth))
    off = rng.normal(0.0, 1.2, len(truth)) * (distance - 0.8)
    known, unknown = (
        replace(outputs, years=outputs.years + off, distance=distance)
        for outputs in (with_sex, without_sex)
    )
    fitted = fit_calibration(known, unknown, truth, "abc")
    fitted.save(tmp_path / "site.toml")
    assert load_calibration(tmp_path / "site.toml") == fitted
    _, low, high = fitted.apply(known)
    width = high - low
    assert width[distance > 2.5].mean() > 1.5 * width[distance < 1.2].mean()
    for group in (distance > 2.5, distance < 1.2):
        covered = (low <= truth) & (truth <= high)
        assert covered[group].mean() == pytest.approx(0.9, abs=0.05)


def test_changed_looks_teach_the_width_and_leave_the_coverage_at_home() -> None:
    with_sex, without_sex, truth = _images(1200)
    near, rng = np.ones(len(truth)), np.random.default_rng(7)
    known, unknown = (replace(o, distance=near) for o in (with_sex, without_sex))
    far = rng.uniform(1.5, 3.0, len(truth))
    off = rng.normal(0.0, 1.0, len(truth)) * far
    seen, unseen = (replace(o, years=o.years + off, distance=far) for o in (with_sex, without_sex))
    plain = fit_calibration(known, unknown, truth, "abc")
    taught = fit_calibration(known, unknown, truth, "abc", changed=(seen, unseen, truth))
    assert taught.bias_male_years == plain.bias_male_years
    for fitted in (plain, taught):
        _, low, high = fitted.apply(known)
        assert coverage(truth, low, high) == pytest.approx(0.9, abs=0.02)
    covered = [coverage(truth, *fitted.apply(seen)[1:]) for fitted in (plain, taught)]
    assert covered[0] < 0.75
    assert covered[1] > 0.82
