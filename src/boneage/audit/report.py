"""An audit -> one self-contained HTML page, its JSON and its tables as CSV."""

import base64
import io
import json
import shlex
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from boneage.audit.charts import (
    plot_agreement,
    plot_groups,
    plot_regions,
    plot_reliability,
    plot_robustness,
    plot_scatter,
    plot_skill,
)
from boneage.audit.checklist import make_checklist
from boneage.audit.gallery import REASONS, Case, explain_cases
from boneage.audit.wording import (
    describe_agreement,
    describe_calibration,
    describe_differences,
    describe_groups,
    describe_regions,
    describe_robustness,
    describe_scatter,
    describe_skill,
    format_figure,
    format_months,
    format_p,
    name_differences,
    name_perturbation,
    summarise,
)
from boneage.files import hash_file, save_text

FIGURES = (
    ("mae_months", "mean absolute error, months", 2),
    ("rmse_months", "root mean squared error, months", 2),
    ("median_error_months", "median absolute error, months", 2),
    ("bias_months", "mean signed error (predicted − reference), months", 2),
    ("sd_months", "standard deviation of the errors, months", 2),
    ("loa_low_months", "lower limit of agreement (Bland-Altman), months", 1),
    ("loa_high_months", "upper limit of agreement, months", 1),
    ("within_6_months", "errors within 6 months", -1),
    ("within_12_months", "errors within 12 months", -1),
    ("within_18_months", "errors within 18 months", -1),
    ("within_24_months", "errors within 24 months", -1),
    ("r2", "R²", 3),
    ("icc", "intraclass correlation ICC(2,1)", 3),
    ("deming_slope", "Deming slope", 3),
    ("deming_intercept_months", "Deming intercept, months", 1),
    ("coverage", "coverage of the prediction intervals", -1),
    ("interval_width_months", "mean width of the intervals, months", 1),
    ("accuracy", "stage accuracy", -1),
    ("precision_weighted", "stage precision, weighted", -1),
    ("recall_weighted", "stage recall, weighted", -1),
    ("f1_weighted", "stage F1, weighted", -1),
    ("qwk", "quadratic weighted kappa of the stage", 3),
    ("clinical_change", "class changed: delayed, normal, advanced", -1),
)
"""Name, label and decimals of each figure; -1 is a proportion, shown in percent."""

Result = Mapping[str, Any]


def describe_run(command: Sequence[str], inputs: Sequence[Path]) -> dict[str, Any]:
    """Give what identifies a run, for `result`: `created`, `command` and `inputs`.

    Args:
        command: The words of the command line that makes the report.
        inputs: The files that the figures come from, such as the tables of predictions.

    Returns:
        The time (ISO 8601, UTC); the command line; and of each input its `file` name and `sha256`.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "inputs": [{"file": path.name, "sha256": hash_file(path)} for path in inputs],
    }


def save_audit(
    out: Path, result: Result, table: pd.DataFrame, gallery: Sequence[Case] = ()
) -> Path:
    """Write `report.html`, `audit.json`, and each of the tables in them as CSV.

    Args:
        out: Folder; made if missing.
        result: Of `audit`, best with `describe_run`.
        table: The audited cases, for the charts.
        gallery: Images to show among the difficult cases.

    Returns:
        The page.
    """
    whole = {**result, "checklist": make_checklist(result)}
    save_text(out / "audit.json", json.dumps(whole, indent=1, allow_nan=False) + "\n")
    tables = {
        "accuracy": [{"figure": name, **ends} for name, ends in result["accuracy"].items()],
        "baselines": [{"figure": name, **ends} for name, ends in result["baselines"].items()],
        "stages": _name_cells(result["stages"], "names"),
        "approaches": [result["approaches"]] if result["approaches"] else [],
        "calibration": (result["calibration"] or {}).get("bins", []),
        "clinical": _name_cells(result["clinical"], "classes"),
        "checklist": whole["checklist"],
        "groups": result["groups"],
        "comparison": result["comparison"],
        "robustness": (result["robustness"] or {}).get("stresses", []),
        "regions": (result["regions"] or {}).get("groups", []),
        **{name: result[name] for name in (*REASONS, "shared")},
    }
    for name, rows in tables.items():
        path = out / f"{name}.csv"
        path.unlink(missing_ok=True)  # of an earlier audit, which this one replaces
        if rows:
            text = pd.DataFrame(map(flatten, rows)).to_csv(index=False, lineterminator="\n")
            save_text(path, text)
    page = out / "report.html"
    save_text(page, make_page(result, table, gallery))
    return page


def _name_cells(result: Result, names: str) -> list[dict[str, Any]]:
    """Turn a confusion matrix, if there is one, into a row a reference, a column a prediction."""
    rows = result.get("confusion_matrix", [])
    return [
        {"reference": name, **dict(zip(result[names], row, strict=True))}
        for name, row in zip(result.get(names, []), rows, strict=True)
    ]


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row of a result into the columns of a CSV.

    A figure becomes `mae_months`, `mae_months_low`, `mae_months_high`. Keys inside `figures` are
    kept; keys inside another mapping get its name in front, as in `difference_mae_months`.

    Example:
        >>> flatten({"n": 3, "clinical": {"clean": {"value": 0.5, "low": None, "high": None}}})
        {'n': 3, 'clinical_clean': 0.5, 'clinical_clean_low': None, 'clinical_clean_high': None}
    """
    columns: dict[str, Any] = {}
    for name, value in row.items():
        if not isinstance(value, Mapping):
            columns[name] = value
            continue
        before = "" if name == "figures" else name
        for inner, held in flatten(value).items():
            words = (before, "" if inner == "value" else inner)
            columns["_".join(word for word in words if word)] = held
    return columns


def list_cases(result: Result, shown: Container[str] = ()) -> list[dict[str, Any]]:
    """Merge the lists of single cases, so that each case is there once, with the reasons `why`.

    Args:
        result: Of `audit`.
        shown: Image ids to leave out.
    """
    cases: dict[str, dict[str, Any]] = {}
    for name in REASONS:
        for row in result[name]:
            cases.setdefault(row["image_id"], {}).update(row)
    why = explain_cases(result)
    return [{**case, "why": why[i]} for i, case in cases.items() if i not in shown]


def make_page(
    result: Result,
    table: pd.DataFrame,
    gallery: Sequence[Case] = (),
    gallery_note: str = "",
) -> str:
    """Render the page: no script, no network, pictures inside.

    Args:
        result: Of `audit`, best with `describe_run`.
        table: The audited cases, for the charts.
        gallery: Images to show among the difficult cases.
        gallery_note: What to say of these images.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("boneage.audit", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "figure": format_figure,
        "p": format_p,
        "months": format_months,
        "perturbation": name_perturbation,
        "differences": name_differences,
    }
    shown = {image.image_id for case in gallery for image in (case.record, *case.neighbours)}
    return environment.get_template("audit.html").render(
        result=result,
        summary=summarise(result),
        gallery=gallery,
        gallery_note=gallery_note,
        why=explain_cases(result),
        cases=list_cases(result, shown),
        figures=[row for row in FIGURES if row[0] in result["accuracy"]],
        checklist=make_checklist(result),
        differences=describe_differences(result),
        charts={name: {"data": _encode(figure), "caption": caption}
                for name, (figure, caption) in _draw_charts(result, table).items()
                if figure is not None},
    )  # fmt: skip


def _draw_charts(result: Result, table: pd.DataFrame) -> dict[str, tuple[Figure | None, str]]:
    """Give each chart with its caption; None where there is nothing to chart."""
    charts: dict[str, tuple[Figure | None, str]] = {
        "skill": (plot_skill(result), describe_skill(result)),
        "groups": (plot_groups(result), describe_groups(result)),
    }
    if result["n"] > 1:
        charts["scatter"] = plot_scatter(table), describe_scatter(result)
        charts["agreement"] = plot_agreement(table, result), describe_agreement(result)
    if result["calibration"]:
        charts["calibration"] = plot_reliability(result), describe_calibration(result)
    if result["robustness"]:
        robustness = result["robustness"]
        charts["robustness"] = plot_robustness(robustness), describe_robustness(robustness)
    if result["regions"]:
        regions = result["regions"]
        charts["regions"] = plot_regions(regions), describe_regions(regions)
    return charts


def _encode(figure: Figure) -> str:
    """Draw a chart as PNG of 256 colours, a third of the size, in base64."""
    full, data = io.BytesIO(), io.BytesIO()
    figure.savefig(full, dpi=140, format="png", facecolor="white")
    Image.open(full).convert("RGB").quantize().save(data, format="PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")
