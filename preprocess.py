"""The seed report's command line: `python preprocess.py [options of boneage preprocess]`."""

import sys

from boneage.cli import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", *sys.argv[1:]]))
