"""Predictions and calibrations in words: what the commands print."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from boneage.inference.calibration import Calibration
from boneage.inference.calibration_fit import MIN_IMAGES_SPREAD, expected_coverage
from boneage.inference.prediction import SEPARATOR, Prediction
from boneage.inference.quality import Severity

RESEARCH = "Research use only, not a medical device."
_SEXES = {"M": "male", "F": "female", None: "unknown"}


def describe_prediction(prediction: Prediction, *, in_full: bool) -> str:
    """Describe one prediction: in full, or in one line."""
    reasons = SEPARATOR.join(map(str, prediction.reasons))
    if prediction.status == "error":  # whose reason names the file
        return f"error: {reasons}"
    if prediction.predicted_stage is None:
        return f"{prediction.path}: {prediction.status}: {reasons}"
    return _in_full(prediction) if in_full else _in_a_line(prediction, reasons)


def _in_full(prediction: Prediction) -> str:
    lines = [str(prediction.path)]
    if prediction.predicted_years is not None:
        lines.append(f"  bone age   {format_age(prediction.predicted_years)}")
    if prediction.predicted_low_years is not None and prediction.predicted_high_years is not None:
        low, high = prediction.predicted_low_years, prediction.predicted_high_years
        lines.append(
            f"  interval   {format_age(low)} to {format_age(high)} (90% prediction interval)"
        )
    p = prediction.stage_probability
    probability = "" if p is None else f" (probability {p:.0%})"
    lines.append(f"  stage      {prediction.predicted_stage}{probability}")
    lines.append(f"  sex        {_SEXES[prediction.sex]}")
    if prediction.reference_years is not None:
        reference = format_age(prediction.reference_years)
        lines.append(f"  reference  {reference}, {prediction.reference_stage}")
    for reason in prediction.reasons:
        label = "note" if reason.severity is Severity.INFO else prediction.status
        lines.append(f"  {label:9}  {reason.message}")
    return "\n".join([*lines, f"  {RESEARCH}"])


def _in_a_line(prediction: Prediction, reasons: str) -> str:
    parts = [f"{prediction.path}:"]
    if prediction.predicted_years is not None:
        parts.append(f"{prediction.predicted_years:.1f} years")
    if prediction.predicted_low_years is not None and prediction.predicted_high_years is not None:
        parts.append(
            f"({prediction.predicted_low_years:.1f} to {prediction.predicted_high_years:.1f})"
        )
    parts.append(f"{prediction.predicted_stage}, sex {_SEXES[prediction.sex]}")
    if reasons:
        status = "" if prediction.status == "ok" else f"{prediction.status}: "
        parts.append(f"[{status}{reasons}]")
    return " ".join(parts)


def format_age(years: float) -> str:
    """Give an age in whole years and months.

    Example:
        >>> format_age(10.46)
        '10 years 6 months'
    """
    whole, months = divmod(round(12.0 * years), 12)
    return f"{whole} year{'s' * (whole != 1)} {months} month{'s' * (months != 1)}"


@dataclass
class Counts:
    """How many images came out how.

    Attributes:
        rest: What else lies in the folders, a phrase a kind.
        kept: Images that an earlier run had answered.
        changed: Images whose file is another since an earlier run, and are predicted again.
        not_in_table: Images that the table, if there is one, does not name.
        without_image: Rows of the table without an image.
        by_status: Images of this run by their status.
    """

    rest: Sequence[str] = ()
    kept: int = 0
    changed: int = 0
    not_in_table: int = 0
    without_image: int = 0
    by_status: dict[str, int] = field(default_factory=dict)

    def add(self, prediction: Prediction) -> None:
        """Count one answer."""
        self.by_status[prediction.status] = self.by_status.get(prediction.status, 0) + 1

    @property
    def has_errors(self) -> bool:
        """Whether any image could not be read."""
        return "error" in self.by_status

    def summarise(self, out: Path | None) -> str:
        """Tell the counts in one line."""
        n = sum(self.by_status.values())
        parts = [f"{self.by_status[s]} {s}" for s in ("ok", "warn", "reject", "error")
                 if s in self.by_status]  # fmt: skip
        text = f"{n} image{'s' * (n != 1)}: {', '.join(parts) or 'none left to answer'}"
        if self.kept:
            text += f"; {self.kept} answered before"
        if self.changed:
            text += f"; {self.changed} predicted again, since the file has changed"
        if self.not_in_table:
            text += f"; {self.not_in_table} not in the table"
        if self.without_image:
            text += f"; {self.without_image} of the table's rows without an image"
        for phrase in self.rest:
            text += f"; {phrase}"
        return f"{text}; in {out}. {RESEARCH}" if out else f"{text}. {RESEARCH}"


def describe_calibration(fitted: Calibration, before: Calibration | None) -> str:
    """Tell what a calibration found, beside the model's own."""
    lines = [f"{fitted.images} images"]
    for name, label in (
        ("bias_male_years", "bias, male"),
        ("bias_female_years", "bias, female"),
        ("bias_unknown_years", "bias, sex unknown"),
    ):
        text = f"  {label:18} {12.0 * getattr(fitted, name):+.2f} months"
        if before is not None:
            text += f" (model's own {12.0 * getattr(before, name):+.2f})"
        lines.append(text)
    lines.append(f"  {'temperature':18} {fitted.temperature:.2f}")
    if fitted.images < MIN_IMAGES_SPREAD:
        low, high = expected_coverage(fitted.images, fitted.level)
        lines.append(
            f"  with {fitted.images} images, intervals meant to hold {fitted.level:.0%} of new "
            f"references may hold {low:.0%} to {high:.0%}"
        )
    return "\n".join(lines)
