"""The seed report's command line: `python main.py --mode train|evaluate [options]`."""

import sys

from boneage.cli import main

if __name__ == "__main__":
    tokens = sys.argv[1:]
    if "--mode" not in tokens or tokens[-1] == "--mode":
        sys.exit("usage: python main.py --mode train|evaluate [options of boneage train|evaluate]")
    at = tokens.index("--mode")
    mode = tokens[at + 1]
    if mode not in ("train", "evaluate"):
        sys.exit(f"--mode is {mode!r}; expected train or evaluate.")
    sys.exit(main([mode, *tokens[:at], *tokens[at + 2 :]]))
