"""The seed report's command line: `python preprocess.py [options of boneage preprocess]`."""

import sys

from main import command_line

if __name__ == "__main__":
    sys.exit(command_line()(["preprocess", *sys.argv[1:]]))
