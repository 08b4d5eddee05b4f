"""One safe file for a model: weights, recipe, preprocessing, provenance."""

import json
import os
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from boneage.config import Recipe
from boneage.errors import BoneAgeError, CheckpointError
from boneage.files import replacing
from boneage.imaging.preprocess import Preprocessing
from boneage.training.model import BoneAgePredictor

FORMAT = 1
"""Version of the file's layout."""

BEST, LAST = Path("models/best_model.pt"), Path("models/last.pt")
"""Checkpoints in a run's output folder: the one to use, and the one to continue training from."""


@dataclass
class Checkpoint:
    """A trained model and everything needed to use, judge or continue it.

    Attributes:
        model: The network, on the CPU, in evaluation mode.
        recipe: The settings that it was trained with.
        preprocessing: How an image becomes its input.
        provenance: Where it comes from: version, commit, seed, device, fingerprints of data and
            split, initial weights, epoch, validation figures.
        state: Tensors needed only to continue training; empty in a best checkpoint.
    """

    model: BoneAgePredictor
    recipe: Recipe
    preprocessing: Preprocessing
    provenance: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    model: BoneAgePredictor,
    recipe: Recipe,
    preprocessing: Preprocessing,
    provenance: dict[str, Any],
    state: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all.

    The file holds tensors, and everything else as JSON text, so that it loads without unpickling
    objects.
    """
    meta = {
        "recipe": asdict(recipe),
        "preprocessing": asdict(preprocessing),
        "provenance": provenance,
    }
    content = {
        "boneage_format": FORMAT,
        "meta": json.dumps(meta),
        "weights": model.state_dict(),
        "state": state or {},
    }
    with replacing(path) as part, part.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # On Ctrl-C, torch closes its half-written archive, and that error hides the interrupt.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path) -> Checkpoint:
    """Rebuild a model from its file alone.

    Raises:
        CheckpointError: If the file is missing, damaged, or not a checkpoint of this version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist. Train first (`boneage train`), or pass --output with the "
            "folder of a trained run."
        ) from None
    except Exception as error:  # torch.load raises whatever the damaged bytes provoke
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} is not a readable checkpoint: {reason}. Restore the file, or train again."
        ) from None
    if not isinstance(content, dict) or content.get("boneage_format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a boneage checkpoint of format {FORMAT}. To start from other "
            "weights, pass them as --init."
        )
    meta = json.loads(content["meta"])
    try:
        recipe = Recipe(**meta["recipe"])
        model = BoneAgePredictor.from_recipe(recipe)
        model.load_state_dict(content["weights"])
        preprocessing = Preprocessing.from_values(meta["preprocessing"])
    except (BoneAgeError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit this version of boneage: {error}. Train again."
        ) from None
    return Checkpoint(
        model.eval(),
        recipe,
        preprocessing,
        meta["provenance"],
        content["state"],
    )


def describe_software() -> dict[str, Any]:
    """Name the versions a run is made with; the commit only where the package is under git."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name],
            check=True,
            capture_output=True,
        )
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "boneage": version("boneage"),
        "commit": commit,
        "torch": torch.__version__,
    }
