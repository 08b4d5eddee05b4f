"""The seed report's command line: `python gradcam_demo.py [options of boneage explain]`."""

import sys

from main import command_line

if __name__ == "__main__":
    sys.exit(command_line()(["explain", *sys.argv[1:]]))
