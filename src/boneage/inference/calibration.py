"""What a network's answers need besides: bias, prediction intervals, honest probabilities.

All of it is fitted on answers to labelled images that the network giving them was neither trained
nor chosen on, and applied to raw answers. The interval is conformal (Lei et al., JASA 2018, doi
10.1080/01621459.2017.1307116): residuals are divided by the spread expected of such an image, and
the quantile of those scores times the spread of a new image is its half width.
"""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from boneage.errors import ConfigError
from boneage.files import hash_text, save_text
from boneage.stages import stage_from_years

LEVEL = 0.9
"""Share of images whose reference lies in the interval."""

MIN_IMAGES = 20
"""Fewest images to calibrate on; fewer fix no 90% quantile to speak of."""

MIN_IMAGES_OF_GROUP = 30
"""Fewest images of a sex for a bias of its own, and of known sex for an own warning of it."""

MIN_IMAGES_SPREAD = 300
"""Fewest images to learn from how the spread depends on the image."""

KNOTS_YEARS = (2.0, 5.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0)
FOLDS = 5
RIDGE = 10.0
SEX_WARNING_RATE = 0.01
"""Proportion of images of rightly entered sex that are said to look like the other sex's."""

CONTRADICTED_BEYOND = 3.0
"""Standard errors by which images must speak against the sexes given, to be believed."""

_CONTRADICTED_ODDS = 2.0
"""And how much likelier the other sex must be on average."""

_CONTRADICTED_YEARS = 0.25
"""Or how much worse the ages must be with the sexes than without."""

_LEAST_SEX_WARNING = 0.5
"""No image looks like the other sex's that looks more like the sex entered."""

_SMALLEST_ERROR_YEARS = 1.0 / 12.0

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outputs:
    """A network's answers to n images, raw or calibrated.

    Attributes:
        sex: float (n,), +1 male, -1 female, 0 unknown: what the network was told.
        years: Age (n,) in years.
        probabilities: Of the stages (n, 3), or None without a stage head.
        p_male: Probability (n,) that the image is a boy's, or None without such a head.
    """

    sex: Array
    years: Array
    probabilities: Array | None = None
    p_male: Array | None = None


def describe_lacks(n: int, n_of_rarer_sex: int) -> list[str]:
    """Say for what this number of images is too small, and how many are needed."""
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


def join_outputs(parts: Sequence[Outputs]) -> Outputs:
    """Join answers to several images."""

    def join(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    if not parts:
        return Outputs(np.zeros(0), np.zeros(0))
    return Outputs(join("sex"), join("years"), join("probabilities"), join("p_male"))


@dataclass(frozen=True)
class Spread:
    """Half width of an interval in years: `quantile * exp(features @ coefficients)`."""

    coefficients: tuple[float, ...]
    quantile: float


@dataclass(frozen=True)
class Calibration:
    """Fitted on labelled images, applied to every answer; saved as TOML or inside the model.

    Attributes:
        graph_sha256: The network that it was fitted to.
        images: Number of images.
        level: Coverage of the intervals.
        bias_male_years: Mean error of boys' images, taken off their answers.
        bias_female_years: As `bias_male_years`.
        bias_unknown_years: Mean error where the sex was withheld.
        temperature: Divides the log-probabilities of the stages (Guo et al., ICML 2017).
        sex_warning_above: Probability of the other sex above which an image contradicts the sex
            entered.
        known: Spread where the sex was given.
        unknown: Spread where it was withheld.
    """

    graph_sha256: str
    images: int
    level: float
    bias_male_years: float
    bias_female_years: float
    bias_unknown_years: float
    temperature: float
    sex_warning_above: float
    known: Spread
    unknown: Spread

    def apply(self, raw: Outputs) -> tuple[Outputs, Array, Array]:
        """Correct raw answers and give the ends of their intervals, in years, none below 0."""
        bias = np.select(
            [raw.sex > 0, raw.sex < 0],
            [self.bias_male_years, self.bias_female_years],
            self.bias_unknown_years,
        )
        years = raw.years - bias
        features = _features(raw)
        half = np.where(
            raw.sex == 0, _half_width(self.unknown, features), _half_width(self.known, features)
        )
        probabilities = raw.probabilities
        if probabilities is not None:
            probabilities = _temper(probabilities, self.temperature)
        years = years.clip(min=0.0)
        low, high = (years - half).clip(min=0.0), years + half
        return Outputs(raw.sex, years, probabilities, raw.p_male), low, high

    @property
    def sha256(self) -> str:
        """Fingerprint of all its values, by which rows of one calibration are known."""
        return hash_text(json.dumps(asdict(self), sort_keys=True))

    def save(self, path: Path) -> None:
        """Write the calibration as TOML, whole or not at all."""
        lines = [f"# Bias and intervals of a bone-age model, fitted on {self.images} images."]
        values = asdict(self)
        tables = {name: values.pop(name) for name in ("known", "unknown")}
        lines += [f"{name} = {_toml(value)}" for name, value in values.items()]
        for name, table in tables.items():
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
        save_text(path, "\n".join(lines) + "\n")

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Calibration":
        """Rebuild a calibration from `asdict`'s values.

        Raises:
            ValueError: If a value is missing, unknown, no number, or of the wrong length.
        """
        fields = dict(values)
        try:
            for name in ("known", "unknown"):
                coefficients = tuple(float(c) for c in fields[name]["coefficients"])
                if len(coefficients) != _N_FEATURES:
                    raise ValueError(f"{name} has {len(coefficients)} coefficients")
                quantile = float(fields[name]["quantile"])
                if not all(map(math.isfinite, (quantile, *coefficients))):
                    raise ValueError(f"{name} holds what is no finite number")
                fields[name] = Spread(coefficients, quantile)
            for name in _NUMBERS:
                fields[name] = float(fields[name])
                if not math.isfinite(fields[name]):
                    raise ValueError(f"{name} is {fields[name]}")
            if fields["temperature"] <= 0.0:
                raise ValueError(f"temperature is {fields['temperature']}")
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks or does not know {error}") from None


_NUMBERS = (
    "level", "bias_male_years", "bias_female_years", "bias_unknown_years", "temperature",
    "sex_warning_above",
)  # fmt: skip
_N_FEATURES = 1 + len(KNOTS_YEARS) + 3


def load_calibration(path: Path) -> Calibration:
    """Read a calibration that `boneage calibrate` wrote.

    Raises:
        ConfigError: If the file is missing or holds no calibration.
    """
    try:
        return Calibration.from_values(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; expected a file of `boneage calibrate`."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a calibration ({error}); expected a file of `boneage calibrate`."
        ) from None


def fit_calibration(
    told: Outputs,
    withheld: Outputs,
    reference_years: npt.ArrayLike,
    graph_sha256: str,
    *,
    base: Calibration | None = None,
    level: float = LEVEL,
) -> Calibration:
    """Fit bias, intervals and temperature on images that the network has not learned from.

    With fewer than `MIN_IMAGES_SPREAD` images only the bias and the scale of the spread are fitted;
    the rest comes from `base`: how the spread depends on the image, the temperature, the
    probability at which a sex is doubted. Without a `base`, the last is fitted to
    `MIN_IMAGES_OF_GROUP` images.

    Args:
        told: Raw answers with the sex told, where it is known.
        withheld: Raw answers to the same images with the sex withheld.
        reference_years: Reference age of each image.
        graph_sha256: The network's fingerprint.
        base: The calibration that the model came with.
        level: Coverage of the intervals.

    Raises:
        ConfigError: If there are fewer than `MIN_IMAGES` images.
    """
    truth = np.asarray(reference_years, dtype=np.float64)
    if len(truth) < MIN_IMAGES:
        raise ConfigError(
            f"{len(truth)} labelled images are too few to calibrate on; expected {MIN_IMAGES} or "
            "more."
        )
    error = told.years - truth
    bias = {
        sex: float(error[_or_all(told.sex == code)].mean()) for sex, code in (("M", 1), ("F", -1))
    }
    unknown = float((withheld.years - truth).mean())
    # The interval of an image whose sex is told comes from such images, where there are enough.
    is_known = _or_all(told.sex != 0)
    in_told = np.select([told.sex > 0, told.sex < 0], [bias["M"], bias["F"]], unknown)
    temperature = base.temperature if base else 1.0
    sex_warning = base.sex_warning_above if base else 1.0
    if len(truth) >= MIN_IMAGES_SPREAD:
        stages = stage_from_years(truth)
        if told.probabilities is not None and len(np.unique(stages)) > 1:
            temperature = _fit_temperature(told.probabilities, stages)
    # A base that never warns, as of a model that few images had calibrated, is none to keep.
    enough_for_sex = MIN_IMAGES_SPREAD if sex_warning < 1.0 else MIN_IMAGES_OF_GROUP
    if told.p_male is not None and (told.sex != 0).sum() >= enough_for_sex:
        sex_warning = _fit_sex_warning(told.sex, told.p_male)
    return Calibration(
        graph_sha256,
        len(truth),
        level,
        bias["M"],
        bias["F"],
        unknown,
        temperature,
        sex_warning,
        _fit_spread(
            _features(told)[is_known],
            (error - in_told)[is_known],
            level,
            base.known if base else None,
        ),
        _fit_spread(
            _features(withheld),
            withheld.years - truth - unknown,
            level,
            base.unknown if base else None,
        ),
    )


def find_contradiction(
    told: Outputs, withheld: Outputs, reference_years: npt.ArrayLike
) -> str | None:
    """Say how images as a whole contradict the sexes given with them; None if they do not.

    Two findings count, each beyond `CONTRADICTED_BEYOND` standard errors and not small: the images
    look like the other sex's, or the ages predicted with the sexes lie further off than those
    without.

    Args:
        told: Raw answers with the sex told.
        withheld: Raw answers to the same images with the sex withheld.
        reference_years: Reference age of each image.
    """
    truth = np.asarray(reference_years, dtype=np.float64)
    known = told.sex != 0
    if known.sum() < 2:
        return None
    if told.p_male is not None:
        p_given = np.where(told.sex > 0, told.p_male, 1.0 - told.p_male)[known].clip(1e-3, 1 - 1e-3)
        if _is_beyond(np.log1p(-p_given) - np.log(p_given), math.log(_CONTRADICTED_ODDS)):
            n = int((p_given < 0.5).sum())
            return f"{n} of {len(p_given)} look like the other sex's"
    with_sex, without = (np.abs(a.years - truth)[known] for a in (told, withheld))
    if _is_beyond(with_sex - without, _CONTRADICTED_YEARS):
        return (
            f"with the sexes given the mean error is {12.0 * with_sex.mean():.1f} months, without "
            f"them {12.0 * without.mean():.1f}"
        )
    return None


def _is_beyond(evidence: Array, least: float) -> bool:
    """Whether the mean lies above zero by more than chance and by more than `least`."""
    error = evidence.std(ddof=1) / math.sqrt(len(evidence))
    return bool(evidence.mean() > max(CONTRADICTED_BEYOND * error, least))


def expected_coverage(images: int, level: float = LEVEL) -> tuple[float, float]:
    """Give the range in which 90% of calibrations on so few images have their coverage.

    The coverage of a conformal interval follows a beta distribution. Source: Vovk, ACML 2012.
    """
    rank = min(images, math.ceil((images + 1) * level))
    drawn = np.random.default_rng(0).beta(rank, images + 1 - rank, 100_000)
    low, high = np.quantile(drawn, [0.05, 0.95])
    return float(low), float(high)


def _or_all(rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Give the rows, or all of them where these are too few to tell."""
    return rows if rows.sum() >= MIN_IMAGES_OF_GROUP else np.ones_like(rows)


def _features(raw: Outputs) -> Array:
    """What the spread may depend on, (n, F), all of it known without the reference.

    A constant, the age (hat functions between the knots), the sex, the entropy of the stage and
    how little the image looks like the sex told.
    """
    years = raw.years.clip(KNOTS_YEARS[0], KNOTS_YEARS[-1])
    hats = [np.interp(years, KNOTS_YEARS, row) for row in np.eye(len(KNOTS_YEARS))]
    zero = np.zeros_like(raw.years)
    entropy = zero
    if raw.probabilities is not None:
        p = raw.probabilities.clip(1e-6)
        entropy = -(p * np.log(p)).sum(axis=1)
    surprise = zero
    if raw.p_male is not None:
        p_told = np.where(raw.sex > 0, raw.p_male, 1.0 - raw.p_male)
        surprise = np.where(raw.sex == 0, 0.0, -np.log(p_told.clip(1e-3)))
    return np.stack([np.ones_like(zero), *hats, raw.sex, entropy, surprise], axis=1)


def _half_width(spread: Spread, features: Array) -> Array:
    return spread.quantile * np.exp(features @ np.array(spread.coefficients))


def _fit_spread(features: Array, error: Array, level: float, base: Spread | None) -> Spread:
    size = np.abs(error)
    n = len(size)
    if n < MIN_IMAGES_SPREAD:
        constant = (0.0,) * features.shape[1]
        coefficients = constant if base is None else base.coefficients
        scores = size / np.exp(features @ np.array(coefficients))
    else:
        # Each image's score comes from a fit without it, else scores of fitted images would be
        # smaller than those of new ones.
        fold = np.random.default_rng(0).permutation(n) % FOLDS
        scores = np.empty(n)
        for k in range(FOLDS):
            fitted = _fit_log_size(features[fold != k], size[fold != k])
            scores[fold == k] = size[fold == k] / np.exp(features[fold == k] @ fitted)
        coefficients = tuple(_fit_log_size(features, size).tolist())
    rank = min(n, math.ceil((n + 1) * level))
    return Spread(coefficients, float(np.sort(scores)[rank - 1]))


def _fit_log_size(features: Array, size: Array) -> Array:
    """Ridge regression of the errors' log size, its constant unpenalised."""
    target = np.log(size.clip(min=_SMALLEST_ERROR_YEARS))
    x = features[:, 1:]
    centre = x.mean(axis=0)
    x = x - centre
    slopes = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (target - target.mean()))
    return np.concatenate([[target.mean() - centre @ slopes], slopes])


def _temper(probabilities: Array, temperature: float) -> Array:
    logs = np.log(probabilities.clip(1e-12)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _fit_temperature(probabilities: Array, stages: npt.NDArray[np.int64]) -> float:
    """Temperature of the least mean log loss, on a fine grid from 0.2 to 5."""
    grid = np.exp(np.linspace(-math.log(5.0), math.log(5.0), 401))
    rows = np.arange(len(stages))
    losses = [-np.log(_temper(probabilities, t)[rows, stages]).mean() for t in grid]
    return float(grid[int(np.argmin(losses))])


def _fit_sex_warning(sex: Array, p_male: Array) -> float:
    """Probability of the other sex that `SEX_WARNING_RATE` of rightly entered images pass.

    Few images do not show so rare a probability: the two highest of ninety would decide, one of
    them perhaps of a wrong label. There all images tell it together, their log-odds taken for
    normal.
    """
    p_other = np.where(sex > 0, 1.0 - p_male, p_male)[sex != 0].clip(1e-6, 1.0 - 1e-6)
    if len(p_other) >= MIN_IMAGES_SPREAD:
        return max(_LEAST_SEX_WARNING, float(np.quantile(p_other, 1.0 - SEX_WARNING_RATE)))
    odds = np.log(p_other / (1.0 - p_other))
    highest = odds.mean() + NormalDist().inv_cdf(1.0 - SEX_WARNING_RATE) * odds.std(ddof=1)
    return max(_LEAST_SEX_WARNING, float(1.0 / (1.0 + np.exp(-highest))))


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return repr(value)
