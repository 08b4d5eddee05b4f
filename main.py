"""The seed report's command line: `python main.py --mode train|evaluate [options]`."""

import sys

from boneage.cli import main

USAGE = "usage: python main.py --mode train|evaluate [options of boneage train|evaluate]"


def run(tokens: list[str]) -> int:
    """Hand the options over to the command that `--mode` names."""
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
