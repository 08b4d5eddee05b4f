"""argv -> workflow -> printed result and exit status. The only room that prints.

Exit status: 0 done, 1 a `BoneAgeError` in one line, 2 wrong usage, 130 interrupted. Results go
to stdout, progress and messages to stderr. Heavy imports happen inside the command that needs
them, so that `boneage --help` answers at once.
"""

import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict
from cyclopts.validators import Number

from boneage.config import Films, Paths, Recipe, Runtime, load_config
from boneage.errors import BoneAgeError

if TYPE_CHECKING:
    from boneage.evaluate import Report

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
        f"{summary.total} films: {summary.written} resized to {films.image_size} px, "
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
def export(
    *,
    paths: Annotated[Paths, Flat] = Paths(),
    checkpoint: Path | None = None,
    model: Path = Path("model.onnx"),
) -> None:
    """Write a trained model as ONNX, checked against its checkpoint on 32 drawn films.

    Args:
        checkpoint: Model to export, if not the best one in the output folder.
        model: ONNX file to write.
    """
    from boneage.run import export_model

    parity = export_model(paths, model, checkpoint=checkpoint)
    print(
        f"{model}: differs from its checkpoint by at most {parity.months:.2g} months and "
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


def _print_reports(reports: "dict[str, Report]", paths: Paths) -> None:
    from boneage.summary import summarise

    for report in reports.values():
        print(summarise(report), end="\n\n")
    print(f"tables, metrics and models in {paths.output}, pictures in {paths.output / 'plots'}")


def main(argv: list[str] | None = None) -> int:
    """Run one command and give its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        tokens, settings = _take_config(tokens)
        app.config = (Dict(settings, use_commands_as_keys=False, allow_unknown=True),)
        app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"boneage: {error} See boneage --help.", file=sys.stderr)
        return 2
    except BoneAgeError as error:
        print(f"boneage: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"boneage: {error.name} is not installed; this command needs pip install '.[train]'.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"boneage: {where}{error.strerror or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("boneage: interrupted. What was finished is kept; --resume continues a training.",
              file=sys.stderr)  # fmt: skip
        return 130
    return 0


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
