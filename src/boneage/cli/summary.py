"""A report in words: what the commands print."""

from boneage.evaluation.evaluate import Report


def summarise(report: Report) -> str:
    """Give the headline figures of one split as text, n and 95% intervals beside them."""
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
            f"{_figure(base, 'r2', '.3f')} by always answering {base['constant_years']:.2f} "
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
    notes = {"absent_stages": "no case of", "never_predicted_stages": "never answered"}
    for key, note in notes.items():
        if figures[key]:
            lines.append(f"  {'note':14} {note}: {', '.join(figures[key])}")
    lines += _approaches(report) + _by_sex(report)
    return "\n".join(lines)


def _approaches(report: Report) -> list[str]:
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


def _by_sex(report: Report) -> list[str]:
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


def _figure(figures: Report, name: str, style: str) -> str:
    """A figure with its interval, or a word where it is undefined."""
    if figures[name] is None:
        return "undefined"
    text = f"{figures[name]:{style}}"
    interval = figures.get(f"{name}_ci")
    if interval and None not in interval:
        text += f" [{interval[0]:{style}}, {interval[1]:{style}}]"
    return text
