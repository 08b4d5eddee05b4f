"""Time the commands alone and beside as many busy programs as there are cores.

    python benchmarks/shared_cores.py

Waiting threads that spin keep cores that the thread waited for needs; see decisions.md. The cohort
is synthetic; figures go to docs/results/shared_cores.json.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from boneage.files import save_text

ROOT = Path(__file__).parent.parent
BUSY = (sys.executable, "-c", "while True: pass")
IMAGES, EPOCHS = 400, 3


def main() -> None:
    """Time training, export and prediction."""
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        run("phantom", "cohort", "--n", str(IMAGES))
        run("preprocess", "--data", "cohort", "--processed", "small", "--image-size", "96")
        train = (
            "train", "--config", str(ROOT / "configs" / "demo.toml"), "--data", "cohort",
            "--processed", "small", "--epochs", str(EPOCHS), "--output",
        )  # fmt: skip
        commands = {
            "train": ((*train, "alone"), (*train, "beside")),
            "export": (("export", "--output", "alone"),) * 2,
            "predict": (("predict", "cohort", "--model", "model.onnx", "--out", "alone.csv"),
                        ("predict", "cohort", "--model", "model.onnx", "--out", "beside.csv")),
        }  # fmt: skip
        result: dict[str, object] = {"cores": os.cpu_count(), "images": IMAGES, "epochs": EPOCHS}
        for name, (alone, beside) in commands.items():
            seconds = {"alone_s": run(*alone), "beside_s": run_beside_others(*beside)}
            ratio = seconds["beside_s"] / seconds["alone_s"]
            result[name] = {k: round(v, 1) for k, v in seconds.items()} | {"ratio": round(ratio, 2)}
            print(name, result[name])
    save_text(ROOT / "docs" / "results" / "shared_cores.json", json.dumps(result, indent=1) + "\n")


def run(*command: str) -> float:
    """Run one command of the package, and give the seconds that it took."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "boneage", *command], check=True, capture_output=True)
    return time.monotonic() - started


def run_beside_others(*command: str) -> float:
    """Do the same while a busy program runs for each core."""
    others = [subprocess.Popen(BUSY) for _ in range(os.cpu_count() or 1)]
    try:
        return run(*command)
    finally:
        for other in others:
            other.kill()


if __name__ == "__main__":
    main()
