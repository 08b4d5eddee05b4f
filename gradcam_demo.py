"""The seed report's command line: `python gradcam_demo.py [options of boneage explain]`."""

import sys

from boneage.cli import main

if __name__ == "__main__":
    sys.exit(main(["explain", *sys.argv[1:]]))
