"""Fit a calibration on labelled images that the network was neither trained nor chosen on."""

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from boneage.errors import ConfigError
from boneage.inference.calibration import (
    Array,
    Calibration,
    Outputs,
    Spread,
    spread_features,
    temper,
)
from boneage.stages import stage_from_years

LEVEL = 0.9
"""Proportion of images whose reference is in the interval."""

MIN_IMAGES = 20
"""Fewest images to calibrate on; fewer do not determine a 90% quantile."""

MIN_IMAGES_OF_GROUP = 30
"""Fewest images of a sex for a bias of its own, and of known sex for a sex warning of their own."""

MIN_IMAGES_SPREAD = 300
"""Fewest images to learn from how the spread depends on the image."""

FOLDS = 5
"""Parts of the images, each scored by a spread that was fitted on the others."""

RIDGE = 10.0
"""Penalty on the coefficients of the spread."""

SEX_WARNING_RATE = 0.01
"""Proportion of images whose sex is right that are warned of as looking like the other sex's."""

CONTRADICTED_BEYOND = 3.0
"""Standard errors by which images must contradict the sexes provided before a warning."""

_CONTRADICTED_ODDS = 2.0
"""By how much the other sex must be likelier on average."""

_CONTRADICTED_YEARS = 0.25
"""Or by how much the ages must be worse with the sexes than without."""

_LEAST_SEX_WARNING = 0.5
"""Least probability of the other sex for a warning: it must be the likelier one."""

_SMALLEST_ERROR_YEARS = 1.0 / 12.0


def describe_lacks(n: int, n_of_rarer_sex: int) -> list[str]:
    """List what this number of images is too small for, each with the number that is needed."""
    lacks = []
    if n < MIN_IMAGES:
        lacks.append(f"any calibration, so that predictions have no interval ({MIN_IMAGES})")
    elif n_of_rarer_sex < MIN_IMAGES_OF_GROUP:
        lacks.append(f"a bias of each sex ({MIN_IMAGES_OF_GROUP} of each)")
    if n < MIN_IMAGES_SPREAD:
        lacks.append(
            f"intervals whose width depends on the image, and stage probabilities "
            f"({MIN_IMAGES_SPREAD})"
        )
    if MIN_IMAGES <= n < MIN_IMAGES_OF_GROUP:
        lacks.append(f"a warning where the sex entered is wrong ({MIN_IMAGES_OF_GROUP})")
    return lacks


def fit_calibration(
    with_sex: Outputs,
    without_sex: Outputs,
    reference_years: npt.ArrayLike,
    graph_sha256: str,
    *,
    base: Calibration | None = None,
    level: float = LEVEL,
    changed: tuple[Outputs, Outputs, npt.ArrayLike] | None = None,
) -> Calibration:
    """Fit bias, intervals and temperature on images that the network has not learned from.

    With fewer than `MIN_IMAGES_SPREAD` images only the bias and the scale of the spread are fitted;
    the rest comes from `base`: how the spread depends on the image, the temperature, the
    probability above which an image contradicts its sex. Without a `base`, the last is fitted to
    `MIN_IMAGES_OF_GROUP` images.

    Args:
        with_sex: Raw outputs with the sex, where it is known.
        without_sex: Raw outputs for the same images without the sex.
        reference_years: Reference age of each image.
        graph_sha256: The network's fingerprint.
        base: The calibration that the model came with.
        level: Coverage of the intervals.
        changed: The same for images of a changed look, from which only is learned how the spread
            depends on the image: how much wider it is where an image is unlike the training images.

    Raises:
        ConfigError: If there are fewer than `MIN_IMAGES` images.
    """
    truth = np.asarray(reference_years, dtype=np.float64)
    if len(truth) < MIN_IMAGES:
        raise ConfigError(
            f"{len(truth)} labelled images are too few to calibrate on; expected {MIN_IMAGES} or "
            "more."
        )
    error = with_sex.years - truth
    bias = {
        sex: float(error[_or_all(with_sex.sex == code)].mean())
        for sex, code in (("M", 1), ("F", -1))
    }
    unknown = float((without_sex.years - truth).mean())
    # The interval of an image of known sex comes from such images, where there are enough.
    is_known = _or_all(with_sex.sex != 0)
    bias_of_image = np.select([with_sex.sex > 0, with_sex.sex < 0], [bias["M"], bias["F"]], unknown)
    looks: dict[str, tuple[Array, Array]] = {}
    if changed is not None:
        *pair, years = changed
        for name, outputs, mean in zip(
            ("known", "unknown"), pair, (error.mean(), unknown), strict=True
        ):
            errors = outputs.years - np.asarray(years, dtype=np.float64)
            looks[name] = spread_features(outputs), errors - mean
    temperature = base.temperature if base else 1.0
    sex_warning = base.sex_warning_above if base else 1.0
    if len(truth) >= MIN_IMAGES_SPREAD:
        stages = stage_from_years(truth)
        if with_sex.probabilities is not None and len(np.unique(stages)) > 1:
            temperature = _fit_temperature(with_sex.probabilities, stages)
    # A base that never warns, as one fitted on few images, is not worth keeping.
    enough_for_sex = MIN_IMAGES_SPREAD if sex_warning < 1.0 else MIN_IMAGES_OF_GROUP
    if with_sex.p_male is not None and (with_sex.sex != 0).sum() >= enough_for_sex:
        sex_warning = _fit_sex_warning(with_sex.sex, with_sex.p_male)
    return Calibration(
        graph_sha256=graph_sha256,
        images=len(truth),
        level=level,
        bias_male_years=bias["M"],
        bias_female_years=bias["F"],
        bias_unknown_years=unknown,
        temperature=temperature,
        sex_warning_above=sex_warning,
        known=_fit_spread(
            spread_features(with_sex)[is_known],
            (error - bias_of_image)[is_known],
            level,
            base.known if base else None,
            looks.get("known"),
        ),
        unknown=_fit_spread(
            spread_features(without_sex),
            without_sex.years - truth - unknown,
            level,
            base.unknown if base else None,
            looks.get("unknown"),
        ),
    )


def find_contradiction(
    with_sex: Outputs, without_sex: Outputs, reference_years: npt.ArrayLike
) -> str | None:
    """Describe how the images as a whole contradict their sexes; None if they do not.

    There are two signs, each of which must exceed `CONTRADICTED_BEYOND` standard errors and a
    least size: the images look like the other sex's, or the ages are worse with the sexes than
    without.

    Args:
        with_sex: Raw outputs with the sex.
        without_sex: Raw outputs for the same images without the sex.
        reference_years: Reference age of each image.
    """
    truth = np.asarray(reference_years, dtype=np.float64)
    known = with_sex.sex != 0
    if known.sum() < 2:
        return None
    if with_sex.p_male is not None:
        p_given = np.where(with_sex.sex > 0, with_sex.p_male, 1.0 - with_sex.p_male)[known]
        p_given = p_given.clip(1e-3, 1 - 1e-3)
        if _is_beyond(np.log1p(-p_given) - np.log(p_given), math.log(_CONTRADICTED_ODDS)):
            n = int((p_given < 0.5).sum())
            return f"{n} of {len(p_given)} look like the other sex's"
    error_with, error_without = (
        np.abs(outputs.years - truth)[known] for outputs in (with_sex, without_sex)
    )
    if _is_beyond(error_with - error_without, _CONTRADICTED_YEARS):
        return (
            f"with the sexes given the mean error is {12.0 * error_with.mean():.1f} months, "
            f"without them {12.0 * error_without.mean():.1f}"
        )
    return None


def _is_beyond(evidence: Array, least: float) -> bool:
    """Whether the mean exceeds `least`, and zero by `CONTRADICTED_BEYOND` standard errors."""
    error = evidence.std(ddof=1) / math.sqrt(len(evidence))
    return bool(evidence.mean() > max(CONTRADICTED_BEYOND * error, least))


def expected_coverage(images: int, level: float = LEVEL) -> tuple[float, float]:
    """Give the range in which 90% of calibrations on so few images have their coverage.

    The coverage of a conformal interval follows a beta distribution. Source: Vovk, ACML 2012.
    """
    rank = min(images, math.ceil((images + 1) * level))
    coverages = np.random.default_rng(0).beta(rank, images + 1 - rank, 100_000)
    low, high = np.quantile(coverages, [0.05, 0.95])
    return float(low), float(high)


def _or_all(rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Give the rows, or all rows where these are fewer than `MIN_IMAGES_OF_GROUP`."""
    return rows if rows.sum() >= MIN_IMAGES_OF_GROUP else np.ones_like(rows)


def _fit_spread(
    features: Array,
    error: Array,
    level: float,
    base: Spread | None,
    changed: tuple[Array, Array] | None = None,
) -> Spread:
    size = np.abs(error)
    n = len(size)
    more_features, more_error = changed or (features[:0], error[:0])

    def fit(rows: npt.NDArray[np.bool_]) -> Array:
        return _fit_log_size(
            np.concatenate([features[rows], more_features]),
            np.concatenate([size[rows], np.abs(more_error)]),
        )

    if n < MIN_IMAGES_SPREAD:
        constant = (0.0,) * features.shape[1]
        coefficients = constant if base is None else base.coefficients
        scores = size / np.exp(features @ np.array(coefficients))
    else:
        # Each image's score comes from a fit without it: an image that was fitted on scores
        # lower than a new one.
        fold = np.random.default_rng(0).permutation(n) % FOLDS
        scores = np.empty(n)
        for k in range(FOLDS):
            fitted = fit(fold != k)
            scores[fold == k] = size[fold == k] / np.exp(features[fold == k] @ fitted)
        coefficients = tuple(fit(np.ones(n, dtype=bool)).tolist())
    rank = min(n, math.ceil((n + 1) * level))
    return Spread(coefficients, float(np.sort(scores)[rank - 1]))


def _fit_log_size(features: Array, size: Array) -> Array:
    """Fit the log size of the errors by ridge regression, the constant not penalised."""
    target = np.log(size.clip(min=_SMALLEST_ERROR_YEARS))
    x = features[:, 1:]
    centre = x.mean(axis=0)
    x = x - centre
    slopes = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (target - target.mean()))
    return np.concatenate([[target.mean() - centre @ slopes], slopes])


def _fit_temperature(probabilities: Array, stages: npt.NDArray[np.int64]) -> float:
    """Find the temperature of the least mean log loss, on a fine grid from 0.2 to 5."""
    grid = np.exp(np.linspace(-math.log(5.0), math.log(5.0), 401))
    rows = np.arange(len(stages))
    losses = [-np.log(temper(probabilities, t)[rows, stages]).mean() for t in grid]
    return float(grid[int(np.argmin(losses))])


def _fit_sex_warning(sex: Array, p_male: Array) -> float:
    """Find the probability of the other sex that `SEX_WARNING_RATE` of images exceed.

    With few images such a quantile would rest on one or two of them, perhaps with a wrong label.
    It then comes from the mean and deviation of all log-odds, taken as normal.
    """
    p_other = np.where(sex > 0, 1.0 - p_male, p_male)[sex != 0].clip(1e-6, 1.0 - 1e-6)
    if len(p_other) >= MIN_IMAGES_SPREAD:
        return max(_LEAST_SEX_WARNING, float(np.quantile(p_other, 1.0 - SEX_WARNING_RATE)))
    odds = np.log(p_other / (1.0 - p_other))
    highest = odds.mean() + NormalDist().inv_cdf(1.0 - SEX_WARNING_RATE) * odds.std(ddof=1)
    return max(_LEAST_SEX_WARNING, float(1.0 / (1.0 + np.exp(-highest))))
