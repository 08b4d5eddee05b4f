"""What an exported model expects and gives, as it travels inside the model's file."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from boneage.errors import CheckpointError, ConfigError
from boneage.imaging.preprocess import Preprocessing
from boneage.inference.appearance import AppearanceModel
from boneage.inference.calibration import Calibration
from boneage.inference.familiarity import FamiliarityModel

CONTRACT_KEY = "boneage"
"""Name of the metadata entry of an ONNX file that holds its contract."""

OUTPUTS = ("age_years", "stage_probabilities", "p_male", "age_map", "embedding")
"""Outputs that a model may have, in their order."""


_MEASURED: dict[str, Any] = {"appearance": AppearanceModel, "familiarity": FamiliarityModel}


@dataclass(frozen=True)
class Contract:
    """What an exported model expects and gives; it travels inside the model's file.

    Attributes:
        preprocessing: How an image becomes the network's input, and which views are averaged.
        sex_input: Whether the network takes the sex (+1 male, -1 female, 0 unknown).
        outputs: Names of the file's outputs, in order, out of `OUTPUTS`; ages in years.
        recipe: Settings that the model was trained with.
        provenance: Where the model comes from, as in its checkpoint, and `graph_sha256`, the
            fingerprint of the file without its metadata.
        calibration: Bias, intervals and temperature, or None if none were fitted.
        facts: Further facts: training data, figures, terms.
        appearance: What the training images look like, or None if that was not measured.
        familiarity: How far other images lie from the training images, or None without the output
            `embedding`.
    """

    preprocessing: Preprocessing
    sex_input: bool
    outputs: tuple[str, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    appearance: AppearanceModel | None = None
    familiarity: FamiliarityModel | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the file's inputs, in order."""
        return ("image", "sex") if self.sex_input else ("image",)

    @property
    def has_age(self) -> bool:
        """Whether the model predicts an age."""
        return "age_years" in self.outputs

    @property
    def graph_sha256(self) -> str:
        """Fingerprint of the network, by which a calibration knows it."""
        return str(self.provenance.get("graph_sha256", ""))

    def to_json(self) -> str:
        """Write the contract as text."""
        plain = asdict(replace(self, appearance=None, familiarity=None))
        measured = {name: getattr(self, name) for name in _MEASURED}
        return json.dumps(
            plain | {name: m.to_values() for name, m in measured.items() if m is not None}
        )

    @classmethod
    def from_json(cls, text: str) -> "Contract":
        """Read what `to_json` wrote.

        Raises:
            ValueError: If it is not that.
        """
        values = json.loads(text)
        try:
            values["preprocessing"] = Preprocessing.from_values(values["preprocessing"])
            values["outputs"] = tuple(values["outputs"])
            if values.get("calibration") is not None:
                values["calibration"] = Calibration.from_values(values["calibration"])
            for name, model in _MEASURED.items():
                if values.get(name) is not None:
                    values[name] = model.from_values(values[name])
            return cls(**values)
        except (ConfigError, TypeError, KeyError) as error:
            raise ValueError(str(error)) from None


def read_contract(path: Path, session: Any) -> Contract:
    """Read the contract of an open ONNX Runtime session of `path`.

    Raises:
        CheckpointError: If there is none, or it does not fit the file or this version.
    """
    text = session.get_modelmeta().custom_metadata_map.get(CONTRACT_KEY)
    if text is None:
        raise CheckpointError(f"{path} has no contract; expected a file of `boneage export`.")
    try:
        contract = Contract.from_json(text)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit this version of boneage: {error}") from None
    found = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    if found != (list(contract.inputs), list(contract.outputs)):
        raise CheckpointError(
            f"{path} takes {', '.join(found[0])} and gives {', '.join(found[1])}; its contract "
            f"says {', '.join(contract.inputs)} and {', '.join(contract.outputs)}."
        )
    return contract
