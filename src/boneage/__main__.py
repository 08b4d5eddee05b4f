"""`python -m boneage`: the same as the `boneage` command."""

import sys

from boneage.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
