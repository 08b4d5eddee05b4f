"""argv -> workflow -> printed result and exit status. Only this package prints.

Exit status: 0 done, 1 a `BoneAgeError` in one line, 2 wrong usage, 130 interrupted. Results go
to stdout, progress and messages to stderr. Heavy imports happen inside the command that needs
them, so that `boneage --help` appears at once.
"""

import logging
import os
import sys
import warnings
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.config import Dict

from boneage import environment
from boneage.cli import train_commands, use_commands
from boneage.config import load_config
from boneage.errors import BoneAgeError

app = App(
    name="boneage",
    version=lambda: version("boneage"),
    help="Estimate skeletal age from left-hand radiographs. Research use only, not a medical "
    "device.",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    help_epilogue="Every command takes --config FILE.toml, whose keys are the options' names.",
)
for verb in (
    use_commands.audit, train_commands.phantom, train_commands.preprocess, train_commands.train,
    train_commands.evaluate, train_commands.explain, use_commands.predict, use_commands.calibrate,
    train_commands.export, train_commands.download,
):  # fmt: skip
    app.command(verb)


def main(argv: list[str] | None = None) -> int:
    """Run one command and give its exit status."""
    environment.keep_caches_temporary()
    # Other packages, such as the ONNX exporter, log each step; only their warnings are shown.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("boneage").setLevel(logging.INFO)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not be valid text
    # pydicom's messages about an odd file would hide the one line that the command prints.
    reader = logging.getLogger("pydicom")
    reader.disabled, reader.propagate = True, False
    reader.addHandler(logging.NullHandler())  # also stops the loggers of its modules
    warnings.filterwarnings("ignore", module="pydicom")
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        tokens, settings = _take_config(tokens)
        app.config = (Dict(settings, use_commands_as_keys=False, allow_unknown=True),)
        status = app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # here, so that a closed pipe is caught below
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
    except BrokenPipeError:  # the reader of the results, such as `head`, has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"boneage: {where}{error.strerror or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("boneage: interrupted. Finished work is kept: --resume continues a training, the "
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
