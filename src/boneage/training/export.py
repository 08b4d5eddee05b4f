"""Checkpoint -> ONNX file with its contract, and a check that both predict the same."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm

from boneage.errors import BoneAgeError, CheckpointError, ConfigError
from boneage.files import replacing
from boneage.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD
from boneage.inference.calibration import Calibration
from boneage.inference.contract import CONTRACT_KEY, OUTPUTS, Contract
from boneage.inference.familiarity import FamiliarityModel
from boneage.inference.hand_view import make_reader
from boneage.inference.predictor import Predictor
from boneage.sex import SEX_CODE
from boneage.training.age_map import find_averaged_map
from boneage.training.checkpoint import Checkpoint
from boneage.training.embedding import Embedding
from boneage.training.fold_norm import fold_norm, pair_norms
from boneage.training.model import BoneAgePredictor

logger = logging.getLogger(__name__)

MAX_MONTHS = 0.01
"""Largest difference of an age allowed between torch and ONNX Runtime, in months."""

MAX_PROBABILITY = 0.001
"""Largest difference of a stage probability allowed between the two."""


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime's outputs are from torch's on the same images.

    Attributes:
        n: Number of images; each was predicted as a boy's, a girl's and with the sex unknown.
        months: Largest difference of the age or of a cell of the age map, in months; 0 without
            an age head.
        probability: Largest difference of a probability of stage or sex; 0 without such heads.
    """

    n: int
    months: float
    probability: float


class _Graph(nn.Module):
    """The network as it is served: grey in [0, 1] to every output of the `Contract`.

    Where the features are the means of the last feature map, the age is linear in that map.
    `age_map` is what each of its cells adds to the bias, so that its mean is the age less the
    bias. That is the class activation map (Zhou et al., CVPR 2016), which Grad-CAM gives for such
    a network as well.
    """

    imagenet_mean: torch.Tensor
    imagenet_std: torch.Tensor

    def __init__(self, checkpoint: Checkpoint, embedding: Embedding | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.model = checkpoint.model.eval()
        self.register_buffer("imagenet_mean", torch.tensor(IMAGENET_MEAN)[None, :, None, None])
        self.register_buffer("imagenet_std", torch.tensor(IMAGENET_STD)[None, :, None, None])
        # In a tuple, since a module as an attribute would give its weights a second name.
        self._layer = (find_averaged_map(self.model, checkpoint.recipe.image_size),)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        model = self.model
        is_there = {
            "age_years": model.age_head is not None,
            "stage_probabilities": model.stage_head is not None,
            "p_male": model.sex_head is not None,
            "age_map": model.age_head is not None and self._layer != (None,),
            "embedding": self.embedding is not None,
        }
        return tuple(name for name, there in is_there.items() if there)

    def forward(
        self, image: torch.Tensor, sex: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        views = self.model.views((image - self.imagenet_mean) / self.imagenet_std)
        found = [self._run_backbone(view.image) for view in views]
        features = torch.stack([f for f, _ in found]).mean(dim=0)
        cells = None
        if self._layer != (None,):
            cells = torch.stack(
                [
                    view.restore(c)
                    for view, (_, c) in zip(views, found, strict=True)
                    if c is not None
                ]
            ).mean(dim=0)
        sex = self.model.resolve_sex(features, sex)
        age, logits = self.model.apply_heads(features, sex)
        outputs = {
            "age_years": age,
            "stage_probabilities": None if logits is None else logits.softmax(dim=1),
            "p_male": None
            if self.model.sex_head is None
            else self.model.sex_head(features).squeeze(1).sigmoid(),
            "age_map": None if cells is None or age is None else self.model.map_age(cells, sex),
            "embedding": None if self.embedding is None else self.embedding(features),
        }
        return tuple(output for name in self.outputs if (output := outputs[name]) is not None)

    def _run_backbone(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features (B, F) and, where they are its means, the map (B, F, h, w) behind them."""
        (layer,) = self._layer
        if layer is None:
            return self.model.backbone(image), None
        maps: list[torch.Tensor] = []
        hook = layer.register_forward_hook(lambda module, inputs, output: maps.append(output))
        try:
            return self.model.backbone(image), maps[0]
        finally:
            hook.remove()


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    paths: Sequence[Path],
    calibration: Calibration | None = None,
    facts: Mapping[str, Any] | None = None,
    *,
    embedding: Embedding | None = None,
    familiarity: FamiliarityModel | None = None,
) -> Parity:
    """Write a checkpoint as ONNX, and compare the two on images.

    The file takes `image` float32 (B, 1, S, S), grey in [0, 1], and, if the model has sex input,
    `sex` float32 (B,), +1 male, -1 female, 0 unknown. It gives `age_years` (B,),
    `stage_probabilities` (B, 3), `p_male` (B,), `age_map` (B, h, w) and `embedding` (B, K), as far
    as the model has them. Its metadata hold the `Contract`. It appears
    under its name only when the comparison has passed.

    Args:
        checkpoint: A trained model.
        out: File to write.
        paths: Images to compare on, at least one.
        calibration: Fitted to this model on images of its own, or None.
        facts: Further facts for the contract, such as terms and figures.
        embedding: Of the features of its training images, to tell an image's familiarity by.
        familiarity: Fitted to the embedding of other images.

    Raises:
        BoneAgeError: If there is no image, or the outputs differ by more than 0.01 month or 0.001
            in probability.
        ConfigError: If the calibration is of another model, or the preprocessing names other views
            than those that the network averages.
    """
    if not paths:
        raise BoneAgeError("there is no image to compare torch and ONNX Runtime on.")
    with replacing(out) as part:
        logger.info("translating the network to ONNX")
        _write(checkpoint, part, calibration, facts or {}, embedding, familiarity)
        logger.info("comparing it with the checkpoint on %d images", len(paths))
        parity = measure_parity(checkpoint, Predictor(part, threads=1), paths)
        if not (parity.months <= MAX_MONTHS and parity.probability <= MAX_PROBABILITY):
            raise BoneAgeError(
                f"the exported model differs from its checkpoint by {parity.months:.3g} months "
                f"and {parity.probability:.3g} in probability on {parity.n} images; at most "
                f"{MAX_MONTHS} and {MAX_PROBABILITY} are allowed. {out} was not written."
            )
    return parity


def load_exported(model: BoneAgePredictor, path: Path) -> None:
    """Load the weights of an exported model into a network of the same build, to train it on.

    Its batch normalisation is folded into the convolutions before it, as the exporter does too.

    Raises:
        CheckpointError: If a weight is missing or of another shape.
    """
    import onnx

    graph = onnx.load(path).graph
    stored = {
        weights.name.removeprefix("model."): onnx.numpy_helper.to_array(weights)
        for weights in graph.initializer
    }
    stored |= _unfold(model, graph, stored)
    state = model.state_dict()
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, tensor in state.items():
        # A constant that `age_bias` none keeps at zero is not in the file.
        if name.endswith("num_batches_tracked") or (name in fixed and name not in stored):
            continue
        if name not in stored or stored[name].shape != tuple(tensor.shape):
            raise CheckpointError(f"{path} does not hold the weights {name} of this network.")
        state[name] = torch.from_numpy(stored[name].copy())
    model.load_state_dict(state)
    fold_norm(model.backbone)


def _unfold(
    model: BoneAgePredictor, graph: Any, stored: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Give normalisations that only shift, for those that the exporter folded away."""
    shift_of = {
        node.input[1].removeprefix("model."): stored[node.input[2].removeprefix("model.")]
        for node in graph.node
        if node.op_type == "Conv" and len(node.input) == 3
    }
    name_of = {module: name for name, module in model.named_modules()}
    found: dict[str, npt.NDArray[Any]] = {}
    for _, _, convolution, norm in pair_norms(model.backbone):
        name, shift = name_of[norm], shift_of.get(f"{name_of[convolution]}.weight")
        if shift is not None and f"{name}.running_mean" not in stored:
            one = np.ones_like(shift)
            found |= {f"{name}.weight": one, f"{name}.bias": shift,
                      f"{name}.running_mean": 0.0 * one,
                      f"{name}.running_var": one - one.dtype.type(norm.eps)}  # fmt: skip
    return found


def measure_parity(checkpoint: Checkpoint, predictor: Predictor, paths: Sequence[Path]) -> Parity:
    """Compare torch's and ONNX Runtime's outputs for the same images, with and without the sex."""
    graph = _Graph(checkpoint)
    reader = make_reader(checkpoint.preprocessing)
    gaps: dict[str, list[float]] = {name: [0.0] for name in OUTPUTS}
    for path in tqdm(paths, desc="compare", unit="image"):
        image = reader.read(path)
        grey = checkpoint.preprocessing.to_array(image)
        for sex, code in SEX_CODE.items():
            with torch.inference_mode():
                expected = graph(torch.from_numpy(grey)[None, None], torch.tensor([code]))
            outputs = predictor.run(grey[None], [sex])
            for name, tensor in zip(graph.outputs, expected, strict=True):
                gaps[name].append(float(np.abs(tensor.numpy() - outputs[name]).max()))
    # numpy's max, unlike Python's, lets a NaN through, which then fails the comparison.
    return Parity(
        len(paths),
        12.0 * float(np.max([*gaps["age_years"], *gaps["age_map"]])),
        float(np.max([*gaps["stage_probabilities"], *gaps["p_male"]])),
    )


def drop_traces(graph: Any) -> None:
    """Take out the exporter's stack traces, which name files of the machine it ran on."""
    parts = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for item in (graph, *(item for part in parts for item in part)):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _write(
    checkpoint: Checkpoint,
    path: Path,
    calibration: Calibration | None,
    facts: Mapping[str, Any],
    embedding: Embedding | None,
    familiarity: FamiliarityModel | None,
) -> None:
    import onnx

    recipe, tta = checkpoint.recipe, checkpoint.preprocessing.tta
    if tta != checkpoint.model.tta:
        raise ConfigError(
            f"the checkpoint's preprocessing has {tta}, its network {checkpoint.model.tta}; "
            "expected the same. Make both from one recipe."
        )
    graph = _Graph(checkpoint, embedding)
    example = {"image": torch.zeros(2, 1, recipe.image_size, recipe.image_size)}
    if recipe.sex_input:
        example["sex"] = torch.zeros(2)
    batch = torch.export.Dim("batch", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated internals
        exported = torch.onnx.export(
            graph,
            kwargs=example,
            input_names=list(example),
            output_names=list(graph.outputs),
            dynamic_shapes={name: {0: batch} for name in example},
            dynamo=True,
            verbose=False,
        )
    model = cast(torch.onnx.ONNXProgram, exported).model_proto
    drop_traces(model.graph)
    fingerprint = sha256(model.SerializeToString(deterministic=True)).hexdigest()
    if calibration is not None and calibration.graph_sha256 != fingerprint:
        raise ConfigError(
            "the calibration was fitted to another model than this one. Export without it, run "
            "`boneage calibrate` with that file, then export again."
        )
    contract = Contract(
        checkpoint.preprocessing,
        recipe.sex_input,
        graph.outputs,
        # A path of initial weights says nothing elsewhere; what they are does.
        {**asdict(recipe), "init": checkpoint.provenance.get("init_used", recipe.init)},
        {**checkpoint.provenance, "graph_sha256": fingerprint},
        calibration,
        dict(facts),
        familiarity=familiarity,
    )
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.to_json()})
    path.write_bytes(model.SerializeToString())
