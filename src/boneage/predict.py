"""`Predictor`: the inference path for users, ONNX Runtime without torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from boneage.errors import BoneAgeError, CheckpointError
from boneage.preprocess import Preprocessing, to_grey_array
from boneage.stages import STAGES, stage_from_years

CONTRACT_KEY = "boneage"
"""Name of the metadata entry of an ONNX file that holds its contract."""

SEX_CODE: dict[str | None, float] = {"M": 1.0, "F": -1.0, None: 0.0}
"""What a network is told of the sex; unknown is half way and neither."""

Sex = Literal["M", "F"]


@dataclass(frozen=True)
class Contract:
    """What an exported model expects and gives; it travels inside the model's file.

    Attributes:
        preprocessing: How a film becomes the network's image.
        sex_input: Whether the answer depends on the sex given.
        has_age: Whether the model answers an age.
        has_stage: Whether the model answers a stage of its own.
        provenance: Where the model comes from, as in its checkpoint.
    """

    preprocessing: Preprocessing
    sex_input: bool
    has_age: bool
    has_stage: bool
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the file's inputs, in order."""
        return ("image", "sex") if self.sex_input else ("image",)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the file's outputs, in order."""
        heads = {"age_years": self.has_age, "stage_probabilities": self.has_stage}
        return tuple(name for name, is_there in heads.items() if is_there)


@dataclass(frozen=True)
class Prediction:
    """The answer to one film. Research use only, not a medical device.

    Attributes:
        image_id: The file's stem.
        path: The file.
        sex: The sex that the model was told; None for unknown.
        predicted_years: Bone age in years; None if the model answers no age.
        predicted_stage: By the stage head, or by threshold on the age where there is none.
        p_child: Probability of each stage; None without a stage head.
        p_adolescent: As `p_child`.
        p_adult: As `p_child`.
    """

    image_id: str
    path: Path
    sex: Sex | None
    predicted_years: float | None
    predicted_stage: str
    p_child: float | None
    p_adolescent: float | None
    p_adult: float | None

    @property
    def predicted_months(self) -> float | None:
        """Bone age in months."""
        return None if self.predicted_years is None else 12.0 * self.predicted_years


class Predictor:
    """Answers films with an exported model, one at a time, the same alone or among others.

    Args:
        model: File of `boneage export`.
        threads: Threads of ONNX Runtime; 0 takes every core.

    Raises:
        CheckpointError: If the file is missing, damaged, or not one of ours.

    Example:
        Predictor("model.onnx").predict("hand.png", sex="F").predicted_years
    """

    def __init__(self, model: Path | str, threads: int = 0) -> None:
        import onnxruntime

        model = Path(model)
        if not model.is_file():
            raise CheckpointError(f"{model} does not exist; expected a file of `boneage export`.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises whatever the bytes provoke
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{model} is not a readable ONNX model: {reason}") from None
        self.contract = _read_contract(model, self._session)

    def predict(self, path: Path | str, sex: Sex | None = None) -> Prediction:
        """Estimate bone age and stage from one film.

        Args:
            path: PNG, JPEG, TIFF or BMP.
            sex: "M", "F", or None for unknown.

        Raises:
            BoneAgeError: If the film cannot be read or the sex is none of those.
        """
        path = Path(path)
        image = self.contract.preprocessing.read(path)
        grey = to_grey_array(image, self.contract.preprocessing.image_size)
        answers = self.run(grey[None], [sex])
        years = float(answers["age_years"][0]) if self.contract.has_age else None
        if self.contract.has_stage:
            probabilities = [float(p) for p in answers["stage_probabilities"][0]]
            code = int(np.argmax(probabilities))
        else:
            probabilities = [None, None, None]  # type: ignore[list-item]
            code = int(stage_from_years(answers["age_years"])[0])
        return Prediction(path.stem, path, sex, years, STAGES[code], *probabilities)

    def run(
        self, images: npt.NDArray[np.float32], sexes: Sequence[str | None]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run the network on images that are preprocessed already.

        Args:
            images: (B, S, S), grey in [0, 1].
            sexes: "M", "F" or None for each.

        Returns:
            `age_years` (B,) and `stage_probabilities` (B, 3), as far as the model has them.

        Raises:
            BoneAgeError: If a sex is none of those.
        """
        for sex in sexes:
            if sex not in SEX_CODE:
                raise BoneAgeError(f"sex is {sex!r}; expected M, F, or None for unknown.")
        feed = {"image": images[:, None]}
        if self.contract.sex_input:
            feed["sex"] = np.array([SEX_CODE[sex] for sex in sexes], dtype=np.float32)
        names = list(self.contract.outputs)
        return dict(zip(names, self._session.run(names, feed), strict=True))


def _read_contract(path: Path, session: Any) -> Contract:
    text = session.get_modelmeta().custom_metadata_map.get(CONTRACT_KEY)
    if text is None:
        raise CheckpointError(f"{path} has no contract; expected a file of `boneage export`.")
    try:
        values = json.loads(text)
        contract = Contract(**{**values, "preprocessing": Preprocessing(**values["preprocessing"])})
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this version of boneage: {error}") from None
    found = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    if found != (list(contract.inputs), list(contract.outputs)):
        raise CheckpointError(
            f"{path} takes {', '.join(found[0])} and gives {', '.join(found[1])}; its contract "
            f"says {', '.join(contract.inputs)} and {', '.join(contract.outputs)}."
        )
    return contract
