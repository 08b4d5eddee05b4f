"""Predictions, calibrations and evaluation reports in words: what the commands print."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from boneage.inference.calibration import Calibration
from boneage.inference.calibration_fit import MIN_IMAGES_SPREAD, expected_coverage
from boneage.inference.prediction import SEPARATOR, Prediction
from boneage.inference.quality import Severity

if TYPE_CHECKING:  # which loads pandas, and a prediction needs none
    from boneage.evaluation.evaluate import Report

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
    """Counts of a run of `boneage predict`.

    Attributes:
        rest: Other contents of the folders, one phrase for each kind.
        kept: Images that an earlier run predicted already.
        changed: Images predicted again because their file changed since an earlier run.
        not_in_table: Images without a row in the table, if there is a table.
        without_image: Rows of the table without an image.
        by_status: Images of this run by their status.
        rejected_for: Rejected images by the code of each reason.
    """

    rest: Sequence[str] = ()
    kept: int = 0
    changed: int = 0
    not_in_table: int = 0
    without_image: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    rejected_for: dict[str, int] = field(default_factory=dict)

    def add(self, prediction: Prediction) -> None:
        """Count one prediction."""
        self.by_status[prediction.status] = self.by_status.get(prediction.status, 0) + 1
        if prediction.status == "reject":
            for code in prediction.reason_codes:
                self.rejected_for[code] = self.rejected_for.get(code, 0) + 1

    @property
    def has_errors(self) -> bool:
        """Whether any image could not be read."""
        return "error" in self.by_status

    def summarise(self, out: Path | None) -> str:
        """Give the counts in one line."""
        n = sum(self.by_status.values())
        parts = [f"{self.by_status[s]} {s}" for s in ("ok", "warn", "reject", "error")
                 if s in self.by_status]  # fmt: skip
        text = f"{n} image{'s' * (n != 1)}: {', '.join(parts) or 'none left to predict'}"
        if self.rejected_for:
            text += f"; rejected: {', '.join(f'{n} {c}' for c, n in self.rejected_for.items())}"
        if self.kept:
            text += f"; {self.kept} predicted before"
        if self.changed:
            text += f"; {self.changed} predicted again, because the file has changed"
        if self.not_in_table:
            text += f"; {self.not_in_table} not in the table"
        if self.without_image:
            rows = f"{self.without_image} row{'s' * (self.without_image != 1)}"
            text += f"; {rows} of the table without an image"
        for phrase in self.rest:
            text += f"; {phrase}"
        return f"{text}; in {out}. {RESEARCH}" if out else f"{text}. {RESEARCH}"


def describe_calibration(fitted: Calibration, before: Calibration | None) -> str:
    """Describe a calibration, beside the model's own where it has one."""
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


def summarise(report: "Report") -> str:
    """Give the main figures of one split as text, with n and 95% intervals."""
    has_intervals = "accuracy_ci" in report["classification"]
    note = " (intervals: 95%, bootstrap)" if has_intervals else ""
    lines = [f"{report['split']} split, n = {report['n']}{note}"]
    if "regression" in report:
        figures = report["regression"]
        for name, label in (("mae", "MAE"), ("rmse", "RMSE"), ("signed_error", "signed error")):
            years = _figure(figures, f"{name}_years", ".3f")
            months = _figure(figures, f"{name}_months", ".2f")
            lines.append(f"  {label:14} {years} years = {months} months")
        lines.append(f"  {'R²':14} {_figure(figures, 'r2', '.3f')}")
    if "baseline" in report:
        base = report["baseline"]
        lines.append(
            f"  {'baseline':14} MAE {base['mae_months']:.2f} months, R² "
            f"{_figure(base, 'r2', '.3f')} by always predicting {base['constant_years']:.2f} "
            "years, the training median"
        )
    figures = report["classification"]
    for name, label in (
        ("accuracy", "accuracy"), ("precision_weighted", "precision"),
        ("recall_weighted", "recall"), ("f1_weighted", "F1"), ("qwk", "QWK"),
    ):  # fmt: skip
        note = " (weighted)" if name.endswith("_weighted") else ""
        lines.append(f"  {label:14} {_figure(figures, name, '.4f')}{note}")
    counts = ", ".join(f"{stage} {n}" for stage, n in figures["n_by_stage"].items())
    lines.append(f"  {'n by stage':14} {counts}")
    notes = {"absent_stages": "no case of", "never_predicted_stages": "never predicted"}
    for key, note in notes.items():
        if figures[key]:
            lines.append(f"  {'note':14} {note}: {', '.join(figures[key])}")
    lines += _approaches(report) + _by_sex(report)
    return "\n".join(lines)


def _approaches(report: "Report") -> list[str]:
    figures = report["approaches"]
    if figures["direct_accuracy"] is None or figures["threshold_accuracy"] is None:
        return []
    rest = figures["without_boundary"]
    direct = _figure(figures, "direct_accuracy", ".4f")
    threshold = _figure(figures, "threshold_accuracy", ".4f")
    lines = [
        f"  {'stage accuracy':14} {direct} by the stage head",
        f"  {'':14} {threshold} by thresholds on the age",
    ]
    if rest["n"]:
        lines.append(
            f"  {'':14} without labels of exactly 12 years (n = {rest['n']}): "
            f"{rest['direct_accuracy']:.4f} and {rest['threshold_accuracy']:.4f}"
        )
    return lines


def _by_sex(report: "Report") -> list[str]:
    bias = report["gender_bias"]
    lines = []
    for sex in ("male", "female"):
        by_stage, by_age = bias["classification"][sex], bias.get("regression", {}).get(sex, {})
        if not by_stage["n"]:
            continue
        text = f"  {sex:14} n = {by_stage['n']}, accuracy {by_stage['accuracy']:.4f}"
        if by_age:
            mae, signed = by_age["mae_months"], by_age["signed_error_months"]
            text += f", MAE {mae:.2f}, signed error {signed:+.2f} months"
        lines.append(text)
    unknown = bias["classification"]["n_unknown"]
    if unknown:
        lines.append(f"  {'sex unknown':14} n = {unknown}, in neither line above")
    return lines


def _figure(figures: "Report", name: str, style: str) -> str:
    """Format a figure with its interval, or say that it is undefined."""
    if figures[name] is None:
        return "undefined"
    text = f"{figures[name]:{style}}"
    interval = figures.get(f"{name}_ci")
    if interval and None not in interval:
        text += f" [{interval[0]:{style}}, {interval[1]:{style}}]"
    return text
