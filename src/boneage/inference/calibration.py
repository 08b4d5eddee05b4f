"""Correct a network's outputs: bias, prediction intervals and calibrated probabilities.

A calibration is fitted on labelled images that the network has not learned from (see
`calibration_fit`), and applied to raw outputs. Its interval is conformal (Lei et al., JASA 2018,
doi 10.1080/01621459.2017.1307116): the half width is the spread expected of such an image, times
a quantile of the errors of the labelled images, each divided by the spread of its own.
"""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boneage.errors import ConfigError
from boneage.files import hash_text, save_text

KNOTS_YEARS = (2.0, 5.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0)
"""Ages between which the spread is interpolated."""

N_FEATURES = 1 + len(KNOTS_YEARS) + 3
"""Number of features that the spread depends on, one more with the distance from the training
images; see `spread_features`."""

MOST_LOG_DISTANCE = 1.5
"""Logarithm of the distance from the training images beyond which the spread grows no further."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outputs:
    """A network's outputs for n images, raw or calibrated.

    Attributes:
        sex: float (n,), what the network was given: +1 male, -1 female, 0 unknown.
        years: Age (n,) in years.
        probabilities: Of the stages (n, 3), or None without a stage head.
        p_male: Probability (n,) that the image is a boy's, or None without a sex head.
        distance: Of the images (n,) from the training images (`measure_distance`), or None.
    """

    sex: Array
    years: Array
    probabilities: Array | None = None
    p_male: Array | None = None
    distance: Array | None = None


def join_outputs(parts: Sequence[Outputs]) -> Outputs:
    """Join the outputs for several images; a head that one part lacks is left out."""

    def join(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    if not parts:
        return Outputs(np.zeros(0), np.zeros(0))
    return Outputs(*(join(field.name) for field in fields(Outputs)))


@dataclass(frozen=True)
class Spread:
    """Half width of an interval in years: `quantile * exp(features @ coefficients)`."""

    coefficients: tuple[float, ...]
    quantile: float


@dataclass(frozen=True)
class Calibration:
    """Fitted on labelled images, applied to all outputs; saved as TOML or inside the model.

    Attributes:
        graph_sha256: The network that it was fitted to.
        images: Number of images.
        level: Coverage of the intervals.
        bias_male_years: Mean error (predicted - reference) of boys' images, taken off their ages.
        bias_female_years: As `bias_male_years`.
        bias_unknown_years: Mean error of images predicted without the sex.
        temperature: Divides the log-probabilities of the stages (Guo et al., ICML 2017).
        sex_warning_above: Probability of the other sex above which an image contradicts the sex
            entered.
        known: Spread of images predicted with the sex.
        unknown: Spread of images predicted without the sex.
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
        """Correct raw outputs, and give the ends of their intervals, in years, none below 0."""
        bias = np.select(
            [raw.sex > 0, raw.sex < 0],
            [self.bias_male_years, self.bias_female_years],
            self.bias_unknown_years,
        )
        years = raw.years - bias
        features = spread_features(raw)
        half = np.where(
            raw.sex == 0, _half_width(self.unknown, features), _half_width(self.known, features)
        )
        probabilities = raw.probabilities
        if probabilities is not None:
            probabilities = temper(probabilities, self.temperature)
        years = years.clip(min=0.0)
        low, high = (years - half).clip(min=0.0), years + half
        return replace(raw, years=years, probabilities=probabilities), low, high

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
        given = dict(values)
        try:
            for name in ("known", "unknown"):
                coefficients = tuple(float(c) for c in given[name]["coefficients"])
                if len(coefficients) not in (N_FEATURES, N_FEATURES + 1):
                    raise ValueError(f"{name} has {len(coefficients)} coefficients")
                quantile = float(given[name]["quantile"])
                if not all(map(math.isfinite, (quantile, *coefficients))):
                    raise ValueError(f"{name} holds what is no finite number")
                given[name] = Spread(coefficients, quantile)
            for name in _NUMBERS:
                given[name] = float(given[name])
                if not math.isfinite(given[name]):
                    raise ValueError(f"{name} is {given[name]}")
            if given["temperature"] <= 0.0:
                raise ValueError(f"temperature is {given['temperature']}")
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it lacks or does not know {error}") from None


_NUMBERS = (
    "level", "bias_male_years", "bias_female_years", "bias_unknown_years", "temperature",
    "sex_warning_above",
)  # fmt: skip


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


def spread_features(raw: Outputs) -> Array:
    """Give what the spread may depend on, all of it known without the reference.

    A constant, the age (hat functions between the knots), the sex, the entropy of the stage
    probabilities, how little the image looks like the sex that was given, and how far it is from
    the training images, where the network says so.

    Returns:
        (n, N_FEATURES), or one column more with the distance.
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
        p_given = np.where(raw.sex > 0, raw.p_male, 1.0 - raw.p_male)
        surprise = np.where(raw.sex == 0, 0.0, -np.log(p_given.clip(1e-3)))
    columns = [np.ones_like(zero), *hats, raw.sex, entropy, surprise]
    if raw.distance is not None:
        columns.append(np.log(raw.distance.clip(1.0)).clip(max=MOST_LOG_DISTANCE))
    return np.stack(columns, axis=1)


def _half_width(spread: Spread, features: Array) -> Array:
    return spread.quantile * np.exp(features @ np.array(spread.coefficients))


def temper(probabilities: Array, temperature: float) -> Array:
    """Divide the log-probabilities (n, 3) by a temperature; above 1 they become less certain."""
    logs = np.log(probabilities.clip(1e-12)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return repr(value)
