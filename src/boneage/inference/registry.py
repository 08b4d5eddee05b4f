"""The models in the package, by name."""

from collections.abc import Mapping
from pathlib import Path

from boneage.errors import CheckpointError

_FOLDER = Path(__file__).parents[1] / "weights"

DEFAULT_MODEL = "boneage"
"""Name of the model that is used where none is named."""

MODELS: Mapping[str, Path] = {DEFAULT_MODEL: _FOLDER / "boneage.onnx"}
"""Files of `boneage export`, by the name that `--model` and `--init` take."""


def find_model(model: Path | str | None = None) -> Path:
    """Find the file of a model.

    Args:
        model: Name in `MODELS`, or a file of `boneage export`; by default `DEFAULT_MODEL`.

    Raises:
        CheckpointError: If it is neither.
    """
    path = MODELS.get(str(model or DEFAULT_MODEL), Path(str(model)))
    if not path.is_file():
        raise CheckpointError(
            f"{model} does not exist; expected a file of `boneage export`, or the name of a model "
            f"in the package ({', '.join(MODELS)})."
        )
    return path
