"""Write docs/cli.md from the commands' own --help, so that the two cannot differ."""

import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    "", "predict", "calibrate", "audit", "phantom", "preprocess", "train", "evaluate", "explain",
    "export", "download",
)  # fmt: skip
PAGE = Path(__file__).parent / "cli.md"
HEADER = """\
# Command line

Made by `make docs` from the commands' own help. Research use only, not a medical device.

The seed report's lines call the same commands: `python preprocess.py` is `boneage preprocess`,
`python main.py --mode train` is `boneage train`, `python main.py --mode evaluate` is `boneage
evaluate`, `python gradcam_demo.py` is `boneage explain`; each takes the same options, with `-` or
`_` between words. Settings come from the defaults, then from `--config FILE.toml`, then from the
options. Exit status: 0 done, 1 an error told in one line, 2 wrong usage, 130 interrupted.
"""


def make_page() -> str:
    """Give the page's text."""
    parts = [HEADER]
    for command in COMMANDS:
        result = subprocess.run(
            [sys.executable, "-m", "boneage", *command.split(), "--help"],
            check=True, capture_output=True, text=True,
            env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"},
        )  # fmt: skip
        text = re.sub(r" +$", "", result.stdout, flags=re.MULTILINE).strip()
        parts.append(f"## boneage {command}".rstrip() + f"\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
