"""Checkpoint -> ONNX file with its contract, and the proof that both answer alike."""

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from boneage.checkpoint import Checkpoint
from boneage.dataset import IMAGENET_MEAN, IMAGENET_STD
from boneage.errors import BoneAgeError
from boneage.files import replacing
from boneage.predict import CONTRACT_KEY, SEX_CODE, Contract, Predictor
from boneage.preprocess import to_grey_array

MAX_MONTHS = 0.01
"""Largest difference of an age allowed between torch and ONNX Runtime, in months."""

MAX_PROBABILITY = 0.001
"""Largest difference of a stage probability allowed between the two."""


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime's answers are from torch's on the same films.

    Attributes:
        n: Number of films; each was answered as a boy's, a girl's and with the sex unknown.
        months: Largest difference of the age in months; 0 without an age head.
        probability: Largest difference of a stage probability; 0 without a stage head.
    """

    n: int
    months: float
    probability: float


class _Graph(nn.Module):
    """The network with normalisation and softmax: grey in [0, 1] to years and probabilities."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.model = checkpoint.model.eval()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[None, :, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[None, :, None, None])

    def forward(
        self, image: torch.Tensor, sex: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        age, logits = self.model((image - self.mean) / self.std, sex)
        answers = (age, None if logits is None else logits.softmax(dim=1))
        return tuple(answer for answer in answers if answer is not None)


def export_onnx(checkpoint: Checkpoint, out: Path, films: Sequence[Path]) -> Parity:
    """Write a checkpoint as ONNX, and hold the two against each other on films.

    The file takes `image` float32 (B, 1, S, S), grey in [0, 1], and, if the model has sex input,
    `sex` float32 (B,), +1 male, -1 female, 0 unknown. It gives `age_years` (B,) and
    `stage_probabilities` (B, 3). Its metadata hold the `Contract`. It appears under its name only
    when the comparison has passed.

    Args:
        checkpoint: A trained model.
        out: File to write.
        films: Films to compare on, at least one.

    Raises:
        BoneAgeError: If there is no film, or the answers differ by more than 0.01 month or 0.001
            in probability.
    """
    if not films:
        raise BoneAgeError("there is no film to compare torch and ONNX Runtime on.")
    with replacing(out) as part:
        _write(checkpoint, part)
        parity = measure_parity(checkpoint, Predictor(part), films)
        if not (parity.months <= MAX_MONTHS and parity.probability <= MAX_PROBABILITY):
            raise BoneAgeError(
                f"the exported model differs from its checkpoint by {parity.months:.3g} months "
                f"and {parity.probability:.3g} in probability on {parity.n} films; at most "
                f"{MAX_MONTHS} and {MAX_PROBABILITY} are allowed. {out} was not written."
            )
    return parity


def measure_parity(checkpoint: Checkpoint, predictor: Predictor, films: Sequence[Path]) -> Parity:
    """Compare torch's and ONNX Runtime's answers to the same films, whatever the sex given."""
    graph = _Graph(checkpoint)
    names = predictor.contract.outputs
    gaps: dict[str, list[float]] = {"age_years": [0.0], "stage_probabilities": [0.0]}
    for film in films:
        image = checkpoint.preprocessing.read(film)
        grey = to_grey_array(image, checkpoint.preprocessing.image_size)
        for sex, code in SEX_CODE.items():
            with torch.inference_mode():
                expected = graph(torch.from_numpy(grey)[None, None], torch.tensor([code]))
            answers = predictor.run(grey[None], [sex])
            for name, tensor in zip(names, expected, strict=True):
                gaps[name].append(float(np.abs(tensor.numpy() - answers[name]).max()))
    # numpy's max, unlike Python's, lets a NaN through, which then fails the comparison.
    return Parity(
        len(films),
        12.0 * float(np.max(gaps["age_years"])),
        float(np.max(gaps["stage_probabilities"])),
    )


def _write(checkpoint: Checkpoint, path: Path) -> None:
    import onnx

    recipe = checkpoint.recipe
    contract = Contract(
        checkpoint.preprocessing,
        recipe.sex_input,
        recipe.has_age,
        recipe.has_stage,
        checkpoint.provenance,
    )
    example = {"image": torch.zeros(2, 1, recipe.image_size, recipe.image_size)}
    if recipe.sex_input:
        example["sex"] = torch.zeros(2)
    batch = torch.export.Dim("batch", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated internals
        exported = torch.onnx.export(
            _Graph(checkpoint),
            kwargs=example,
            input_names=list(contract.inputs),
            output_names=list(contract.outputs),
            dynamic_shapes={name: {0: batch} for name in example},
            dynamo=True,
            verbose=False,
        )
    model = cast(torch.onnx.ONNXProgram, exported).model_proto
    onnx.helper.set_model_props(model, {CONTRACT_KEY: json.dumps(asdict(contract))})
    path.write_bytes(model.SerializeToString())
