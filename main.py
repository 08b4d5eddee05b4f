"""The seed report's command line: `python main.py --mode train|evaluate [options]`.

Written so that any Python 3 gets as far as the line that says what is missing.
"""

import sys
from collections.abc import Callable

USAGE = "usage: python main.py --mode train|evaluate [options of boneage train|evaluate]"


def command_line() -> "Callable[[list[str]], int]":
    """Give the package's `main`; where it cannot be had, exit with what to do about it."""
    make, pip = "make .venv/.installed", "pip install '.[train]'"
    if sys.version_info < (3, 11):  # noqa: UP036, for it may be run by a Python without the package
        version = ".".join(map(str, sys.version_info[:2]))
        lack = f"{sys.executable} is Python {version}; boneage needs 3.11 or newer"
        make, pip = f"{make} PYTHON=python3.11", f"python3.11 -m {pip}"
    else:
        try:
            from boneage.cli.app import main
        except ModuleNotFoundError as error:
            lack = f"{error.name} is not installed for {sys.executable}"
        else:
            return main
    sys.exit(f"{lack}. In the repository, run `{make}` and `. .venv/bin/activate`, or `{pip}`.")


def run(tokens: "list[str]") -> int:
    """Hand the options over to the command that `--mode` names."""
    main = command_line()
    for i, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name == "--mode":
            mode = value if equals else "".join(tokens[i + 1 : i + 2])
            rest = tokens[:i] + tokens[i + (1 if equals else 2) :]
            if mode in ("train", "evaluate"):
                return main([mode, *rest])
            print(f"--mode is {mode!r}; expected train or evaluate.", file=sys.stderr)
            return 2
    print(USAGE, file=sys.stderr)
    return 0 if "--help" in tokens else 2


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
