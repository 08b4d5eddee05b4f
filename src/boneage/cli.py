"""argv -> workflow -> printed result and exit status. The only room that prints.

Exit status: 0 done, 1 a `BoneAgeError` in one line, 2 wrong usage, 130 interrupted. Results go
to stdout, progress and messages to stderr. Heavy imports happen inside the command that needs
them, so that `boneage --help` answers at once.
"""

import logging
import sys
import warnings
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict
from cyclopts.validators import Number

from boneage.config import Films, Paths, Recipe, Runtime, load_config
from boneage.errors import BoneAgeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from boneage.evaluate import Report
    from boneage.predict import Prediction

Flat = Parameter(name="*")

app = App(
    name="boneage",
    version=lambda: version("boneage"),
    help="Estimate skeletal age from left-hand radiographs. Research use only, not a medical "
    "device.",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    help_epilogue="Every command takes --config FILE.toml, whose keys are the options' names.",
)


@app.command
def audit(
    *predictions: Path,
    out: Path = Path("audit"),
    by: tuple[str, ...] = (),
    images: Path | None = None,
    labels: Path | None = None,
    model: Path | None = None,
    calibration: Path | None = None,
    draws: Annotated[int, Parameter(validator=Number(gte=0))] = 2000,
    workers: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
) -> None:
    """Turn predictions with references, ours or anyone's, into the evidence a reviewer asks for.

    Args:
        predictions: CSV files; the first is audited, further ones are compared with it.
        out: Folder for report.html, audit.json and the tables as CSV.
        by: Columns that name further groups, such as site.
        images: Folder of films to answer first, instead of a CSV.
        labels: Their CSV with id, bone age in months and sex.
        model: File of `boneage export`, if not the model in the package.
        calibration: File of `boneage calibrate`, if not the model's own.
        draws: Bootstrap draws for the intervals, and permutations; 0 leaves both out.
        workers: Threads; by default one a core.
    """
    from boneage.audit import audit as compute
    from boneage.audit_page import format_figure, save_audit
    from boneage.tables import read_all

    if bool(predictions) == (images is not None) or (images is None) != (labels is None):
        raise BoneAgeError("pass either CSV files of predictions, or --images with --labels.")
    tables = list(predictions)
    if images is not None and labels is not None:
        known = _read_table(labels)
        if all(age is None for _, age in known.values()):
            raise BoneAgeError(f"{labels} has no bone age; without it there is nothing to audit.")
        answers = out / "predictions.csv"
        predict(
            images, table=labels, out=answers, model=model, calibration=calibration,
            workers=workers,
        )  # fmt: skip
        tables = [answers]
    read = read_all(tables, by)
    result = compute(read, draws=draws)
    page = save_audit(out, result, read[0].table)
    print(f"{result['name']}, n = {result['n']}")
    for name, figure in (("MAE", "mae_months"), ("bias", "bias_months")):
        print(f"  {name:5} {format_figure(result['accuracy'][figure], 2)} months")
    print(f"report in {page}")


@app.command
def phantom(
    out: Path = Paths.data,
    *,
    n: int = 800,
    seed: int = Recipe.seed,
    height: int = 256,
    masks: bool = False,
    workers: int | None = Runtime.workers,
) -> None:
    """Draw a synthetic cohort of hand radiographs, in the layout of the RSNA data.

    Args:
        out: Folder to fill; never one that holds anything else.
        n: Films to draw.
        seed: Same seed, same bytes.
        height: Height of a film in pixels; its width varies.
        masks: Write the true outline of every bone and growth plate as well.
        workers: Processes; by default one a core.
    """
    from boneage.phantom import write_cohort

    folder = write_cohort(out, n, seed, height, masks, workers)
    print(f"{n} synthetic films in {folder}. Computer drawings, not patient data.")


@app.command
def preprocess(
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    films: Annotated[Films, Flat] = Films(),
    workers: Annotated[int | None, Parameter(validator=Number(gte=0))] = Runtime.workers,
) -> None:
    """Resize the raw films once, into the processed folder.

    Args:
        workers: Processes; by default one a core.
    """
    from boneage.labels import find_images
    from boneage.preprocess import preprocess_folder

    summary = preprocess_folder(find_images(paths.data), paths.processed, films, workers)
    print(
        f"{summary.total} films: {summary.written} reduced to {films.processed_size} px, "
        f"{summary.up_to_date} up to date, {len(summary.broken)} broken; in {paths.processed}"
    )
    if summary.inverted:
        print(f"turned because bones were dark: {', '.join(summary.inverted)}")
    for image_id, message in summary.broken.items():
        print(f"broken: {image_id}: {message}")


@app.command
def train(
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    recipe: Annotated[Recipe, Flat] = Recipe(),
    runtime: Annotated[Runtime, Flat] = Runtime(),
    resume: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train a model, then evaluate its best checkpoint on validation and test films.

    Args:
        resume: Continue the run in the output folder from its last whole epoch.
        tensorboard: Log to output/tensorboard as well.
    """
    from boneage.run import train_model

    reports = train_model(paths, recipe, runtime, resume=resume, tensorboard=tensorboard)
    _print_reports(reports, paths)


@app.command
def evaluate(
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    runtime: Annotated[Runtime, Flat] = Runtime(),
    checkpoint: Path | None = None,
) -> None:
    """Evaluate a trained model on the films of its own split that it never learned from.

    Args:
        checkpoint: Model to evaluate, if not the best one in the output folder.
    """
    from boneage.run import evaluate_model

    _print_reports(evaluate_model(paths, runtime, checkpoint=checkpoint), paths)


@app.command
def explain(
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    runtime: Annotated[Runtime, Flat] = Runtime(),
    checkpoint: Path | None = None,
    head: Literal["stage", "age"] = "stage",
    cases: int = 6,
) -> None:
    """Draw Grad-CAM heat maps of test films that were answered right and wrong.

    Args:
        checkpoint: Model to explain, if not the best one in the output folder.
        head: Explain the stage answered, or the age.
        cases: Films to draw, half of them answered right and half wrong where there are as many.
    """
    from boneage.run import explain_model

    for path in explain_model(paths, runtime, checkpoint=checkpoint, head=head, cases=cases):
        print(path)


@app.command
def predict(
    *path: Path,
    sex: Literal["M", "F", "unknown"] | None = None,
    table: Path | None = None,
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    heatmap: Path | None = None,
    model: Path | None = None,
    calibration: Path | None = None,
    workers: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
) -> int:
    """Estimate bone age from films: files, or folders and all below them.

    Args:
        path: PNG, JPEG, TIFF, BMP or DICOM files, or folders of them.
        sex: Sex of every film that the table does not name; by default a DICOM file's own word,
            else unknown.
        table: CSV with the sex and, where known, the reference age of each image id.
        out: CSV to write, a row as soon as it is there; an interrupted run is taken up.
        json: Print the rows as JSON.
        heatmap: Folder for pictures of where the evidence lies.
        model: File of `boneage export`, if not the model in the package.
        calibration: File of `boneage calibrate`, if not the model's own.
        workers: Threads; by default one a core.
    """
    from boneage.batch import (
        PredictionsFile,
        check_heatmaps,
        describe_films,
        find_films,
        predict_films,
    )
    from boneage.describe import Counts, describe_prediction
    from boneage.predict import Predictor

    if heatmap is not None:
        check_heatmaps(heatmap, path)
    paths, others = find_films(path)
    films = describe_films(paths, sex, _read_table(table), heatmap)
    predictor = Predictor(model, calibration=calibration, threads=int(len(films) > 1))
    with_reference = any(film.reference_years is not None for film in films)
    counts = Counts(others)
    file = None
    if out is not None:
        file = PredictionsFile(
            out,
            films,
            with_reference=with_reference,
            answer=lambda film: next(predict_films(predictor, [film], 1)),
        )
        counts.kept = len(films) - len(file.missing)
        films = file.missing
    predictions = predict_films(predictor, films, workers)
    if json:
        predictions = _print_json(predictions, with_reference=with_reference)
    is_single = len(paths) == 1
    for prediction in _show_progress(predictions, len(films)):
        counts.add(prediction)
        if file is not None:
            file.append(prediction)
        elif not json:
            print(describe_prediction(prediction, in_full=is_single))
    if file is not None or json or not is_single:
        print(counts.summarise(out), file=sys.stderr if json else sys.stdout)
    return 1 if counts.has_errors else 0


@app.command
def calibrate(
    table: Path,
    *,
    images: Path | None = None,
    out: Path = Path("site.toml"),
    model: Path | None = None,
    workers: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
) -> None:
    """Refit a model's bias and intervals to your own labelled films.

    Args:
        table: CSV with id, bone age in months and sex.
        images: Folder of the films, if they are not beside the table.
        out: TOML file to write, for `boneage predict --calibration`.
        model: File of `boneage export`, if not the model in the package.
        workers: Threads; by default one a core.
    """
    from boneage.batch import calibrate as fit
    from boneage.batch import describe_films, find_films
    from boneage.describe import describe_calibration
    from boneage.predict import Predictor

    known = _read_table(table)
    folder = images or table.parent
    if not folder.is_dir():
        raise BoneAgeError(f"{folder} is not a folder; expected the films of {table}.")
    found, _ = find_films([folder])
    described = describe_films(found, None, known)
    films = [film for film in described if film.reference_years is not None]
    if not films:
        raise BoneAgeError(
            f"none of the {len(found)} films in {folder} has an age in {table}. Pass the folder "
            "of its films with --images."
        )
    predictor = Predictor(model, threads=1)
    calibration, broken = fit(predictor, films, workers)
    calibration.save(out)
    print(describe_calibration(calibration, predictor.calibration))
    for message in broken.values():
        print(f"left out: {message}")
    print(f"use it with: boneage predict --calibration {out}")


@app.command
def export(
    checkpoint: Path | None = None,
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    out: Path = Path("model.onnx"),
    calibration: Path | None = None,
) -> None:
    """Write a trained model as ONNX, checked against its checkpoint on 32 drawn films.

    Args:
        checkpoint: Model to export, if not the best one in the output folder.
        out: ONNX file to write.
        calibration: File of `boneage calibrate`, fitted to an earlier export of this checkpoint,
            to put inside.
    """
    from boneage.run import export_model

    parity = export_model(paths, out, checkpoint=checkpoint, calibration=calibration)
    print(
        f"{out}: differs from its checkpoint by at most {parity.months:.2g} months and "
        f"{parity.probability:.2g} in probability on {parity.n} films"
    )


@app.command
def download(out: Path = Paths.data, *, accept_terms: bool = False) -> None:
    """Fetch the RSNA 2017 bone-age films from Kaggle with its official client.

    Args:
        out: Folder to fill.
        accept_terms: Say that you have read the terms of the data and keep to them.
    """
    from boneage.download import TERMS, download_rsna

    print(TERMS)
    if not accept_terms:
        raise BoneAgeError("nothing was fetched; to accept these terms, pass --accept-terms.")
    print(f"films in {download_rsna(out)}")


def _read_table(table: Path | None) -> dict[str, tuple[str | None, float | None]]:
    """Read sex and reference age by image id."""
    if table is None:
        return {}
    from boneage.labels import read_labels

    labels = read_labels(table, unknown_sex="keep", require_age=False)
    ages = labels["age_years"] if "age_years" in labels else [None] * len(labels)
    return {
        image_id: (sex, None if years is None else float(years))
        for image_id, sex, years in zip(labels["image_id"], labels["sex"], ages, strict=True)
    }


def _show_progress(predictions: "Iterator[Prediction]", total: int) -> "Iterable[Prediction]":
    if total < 2:
        return predictions
    from tqdm import tqdm

    return tqdm(predictions, total=total, desc="predict", unit="film")


def _print_json(
    predictions: "Iterator[Prediction]", *, with_reference: bool
) -> "Iterator[Prediction]":
    """Print predictions as one JSON array while they pass."""
    import json

    from boneage.batch import to_plain_row

    before = "[\n"
    for prediction in predictions:
        print(before + json.dumps(to_plain_row(prediction, with_reference=with_reference)), end="")
        before = ",\n"
        yield prediction
    print("[]" if before == "[\n" else "\n]")


def _print_reports(reports: "dict[str, Report]", paths: Paths) -> None:
    from boneage.summary import summarise

    for report in reports.values():
        print(summarise(report), end="\n\n")
    print(f"tables, metrics and models in {paths.output}, pictures in {paths.output / 'plots'}")


def main(argv: list[str] | None = None) -> int:
    """Run one command and give its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be valid text
    # What the DICOM reader says of an odd file would drown the one line that the command prints.
    logging.getLogger("pydicom").disabled = True
    warnings.filterwarnings("ignore", module="pydicom")
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        tokens, settings = _take_config(tokens)
        app.config = (Dict(settings, use_commands_as_keys=False, allow_unknown=True),)
        status = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"boneage: {error} See boneage --help.", file=sys.stderr)
        return 2
    except BoneAgeError as error:
        print(f"boneage: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        extra = "audit" if tokens[:1] == ["audit"] else "train"
        print(
            f"boneage: {error.name} is not installed; this command needs pip install '.[{extra}]'.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"boneage: {where}{error.strerror or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("boneage: interrupted. What was finished is kept; --resume continues a training, the "
              "same --out a prediction.", file=sys.stderr)  # fmt: skip
        return 130
    return status if isinstance(status, int) else 0


def _take_config(tokens: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--config FILE` out of the tokens and read it."""
    for i, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name != "--config":
            continue
        if not equals and i + 1 == len(tokens):
            raise BoneAgeError("--config expects a TOML file after it.")
        end = i + 1 if equals else i + 2
        file = Path(value if equals else tokens[i + 1])
        return tokens[:i] + tokens[end:], load_config(file, option_names())
    return tokens, {}


def option_names() -> set[str]:
    """Names of the options of all commands, as a `--config` file writes them."""
    return {
        name.removeprefix("--").replace("-", "_")
        for command in app
        if not command.startswith("-")
        for argument in app[command].assemble_argument_collection()
        for name in argument.names[:1]
        if name.startswith("--")
    }
