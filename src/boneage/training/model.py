"""`BoneAgePredictor`: one backbone, a regression head in years and a stage head."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn

from boneage.config import Recipe
from boneage.errors import CheckpointError, ConfigError
from boneage.imaging.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    TestTimeAugmentation,
)
from boneage.stages import STAGES

logger = logging.getLogger(__name__)

TIMM_PREFIX = "timm:"


class SexConditionedLinear(nn.Linear):
    """A linear layer whose weights depend on sex: `(W + s V) x + (b + s c)`.

    s is +1 for male, -1 for female and 0 for unknown, or between them for a predicted sex. With
    `unknown_weights`, `(1 - |s|)(U x + d)` is added: features that show the sex let the output
    without it be better than the mean of both sexes'. V, c, U and d start at zero. For a given s
    the output stays linear in the features.
    """

    def __init__(
        self, in_features: int, out_features: int, *, unknown_weights: bool = True
    ) -> None:
        super().__init__(in_features, out_features)
        self.sex_weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.sex_bias = nn.Parameter(torch.zeros(out_features))
        self.has_unknown_weights = unknown_weights
        if unknown_weights:
            self.unknown_weight = nn.Parameter(torch.zeros(out_features, in_features))
            self.unknown_bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, features: torch.Tensor, sex: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Map features (B, in) and sex (B,) to (B, out)."""
        sex = sex[:, None]
        by_sex = nn.functional.linear(features, self.sex_weight, self.sex_bias)
        output = super().forward(features) + sex * by_sex
        if self.has_unknown_weights:
            unknown = nn.functional.linear(features, self.unknown_weight, self.unknown_bias)
            output = output + (1.0 - sex.abs()) * unknown
        return output


class View(NamedTuple):
    """One augmented view of a batch of images.

    Attributes:
        image: (B, 3, S, S).
        is_mirrored: Whether left and right are exchanged.
    """

    image: torch.Tensor
    is_mirrored: bool

    def restore(self, maps: torch.Tensor) -> torch.Tensor:
        """Give maps (..., h, w) of this view as they lie over the image itself."""
        return maps.flip(-1) if self.is_mirrored else maps


class BoneAgePredictor(nn.Module):
    """Multi-task network: bone age in years and developmental stage from one image.

    The backbone's classification layer is replaced by the identity; a `Linear(F, 1)` predicts the
    age and a `Linear(F, 3)` the stage from its features.

    Args:
        backbone: A torchvision classification model (`resnet18`, `resnet50`, ...), or
            `timm:NAME` for one of timm's.
        tasks: "age,stage", "age" or "stage"; the head of a task left out does not exist.
        sex_input: Whether the heads' weights depend on sex (`SexConditionedLinear`).
        sex_head: Whether a `Linear(F, 1)` predicts the sex, which is used where none is provided.
        tta: Views whose features are averaged outside training, and with them the outputs, which
            are linear in the features.
        image_size: Side of the input in pixels; some backbones are built for one size.
        output_stride: Pixels for one cell of the last feature map, 16 for some of timm's.
        init: Initial weights, see `load_backbone`.

    Shape:
        image (B, 3, S, S) float32, normalised; sex (B,) float32 in {+1, -1, 0}, needed only
        with `sex_input`. Returns `age_pred` (B,) in years and `stage_logits` (B, 3); None for a
        task left out.

    Raises:
        ConfigError: If the backbone is unknown or cannot take images of that size.
        CheckpointError: If the initial weights cannot be had.
    """

    _black: torch.Tensor

    def __init__(
        self,
        backbone: str = "resnet18",
        *,
        tasks: str = "age,stage",
        sex_input: bool = False,
        sex_head: bool = False,
        tta: TestTimeAugmentation = TestTimeAugmentation(),
        image_size: int = 256,
        output_stride: int = 32,
        init: str = "none",
    ) -> None:
        super().__init__()
        self.sex_input = sex_input
        self.tta = tta
        black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
        self.register_buffer("_black", black[:, None, None], persistent=False)
        factors = (1.0 - tta.zoom, 1.0 + tta.zoom) if tta.zoom else ()
        self._zooms = [f"_zoom_{i}" for i in range(len(factors))]
        for name, factor in zip(self._zooms, factors, strict=True):
            self.register_buffer(name, _make_zoom(factor, image_size), persistent=False)
        self.backbone, self.init_used = load_backbone(backbone, image_size, init, output_stride)
        features = _count_features(self.backbone, backbone, image_size)

        def make_head(n: int) -> nn.Linear:
            if not sex_input:
                return nn.Linear(features, n)
            return SexConditionedLinear(features, n, unknown_weights=not sex_head)

        heads = tasks.split(",")
        self.age_head = make_head(1) if "age" in heads else None
        self.stage_head = make_head(len(STAGES)) if "stage" in heads else None
        self.sex_head = nn.Linear(features, 1) if sex_head else None

    @classmethod
    def from_recipe(cls, recipe: Recipe, *, init: str = "none") -> "BoneAgePredictor":
        """Build the network that a recipe describes, with `init` as its initial weights."""
        return cls(
            recipe.backbone,
            tasks=recipe.tasks,
            sex_input=recipe.sex_input,
            sex_head=recipe.sex_weight > 0,
            tta=Preprocessing.of(recipe, None).tta,
            image_size=recipe.image_size,
            output_stride=recipe.output_stride,
            init=init,
        )

    def forward(
        self, image: torch.Tensor, sex: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Estimate age and stage; see the class for shapes."""
        self._require_sex(sex)
        return self.apply_heads(self.features(image), sex)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Reduce images (B, 3, S, S) to the features (B, F) that the heads read."""
        if self.training:
            return self.backbone(image)
        features = [self.backbone(view.image) for view in self.views(image)]
        return torch.stack(features).mean(dim=0)

    def views(self, image: torch.Tensor) -> list[View]:
        """Give the views of images (B, 3, S, S), normalised, whose features are averaged."""
        scales = [image]
        if self._zooms:
            # Black is moved to zero, which is what sampling beside the image gives.
            shifted = image - self._black
            grids = [getattr(self, name).expand(image.shape[0], -1, -1, -1) for name in self._zooms]
            scales = [
                nn.functional.grid_sample(shifted, grid, align_corners=False) + self._black
                for grid in grids
            ]
        views = [View(scale, is_mirrored=False) for scale in scales]
        if self.tta.mirror:
            views += [View(scale.flip(3), is_mirrored=True) for scale in scales]
        return views

    def apply_heads(
        self, features: torch.Tensor, sex: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Predict age and stage from features (B, F); see the class for shapes."""
        self._require_sex(sex)
        extra = (self.resolve_sex(features, sex),) if self.sex_input else ()
        age = None if self.age_head is None else self.age_head(features, *extra).squeeze(1)
        logits = None if self.stage_head is None else self.stage_head(features, *extra)
        return age, logits

    def map_age(self, cells: torch.Tensor, sex: torch.Tensor | None = None) -> torch.Tensor:
        """Give what each cell of a feature map whose means are the features adds to the age.

        Args:
            cells: (B, F, h, w).
            sex: (B,), as the heads take it; see `resolve_sex`.

        Returns:
            (B, h, w) in years. Its mean is the age less the age from no features.
        """
        n, _, height, width = cells.shape
        rows = cells.permute(0, 2, 3, 1).flatten(0, 2)
        repeated = None if sex is None else sex.repeat_interleave(height * width)
        age, _ = self.apply_heads(rows, repeated)
        bias, _ = self.apply_heads(torch.zeros_like(rows), repeated)
        if age is None or bias is None:
            raise ConfigError("a model without an age head has no age map.")
        return (age - bias).reshape(n, height, width)

    def resolve_sex(self, features: torch.Tensor, sex: torch.Tensor | None) -> torch.Tensor | None:
        """Replace a sex that is not provided (0) by the predicted sex.

        The predicted sex is tanh of the sex head's log-odds, from -1 to 1. It is nearer to the
        likelier sex than the probabilities are, which makes the absolute error of the age smaller.

        Args:
            features: (B, F).
            sex: (B,).
        """
        if sex is None or self.sex_head is None:
            return sex
        return torch.where(sex == 0, self.sex_head(features).squeeze(1).tanh(), sex)

    def _require_sex(self, sex: torch.Tensor | None) -> None:
        if self.sex_input and sex is None:
            raise ValueError("this model was built with sex_input; pass sex, 0.0 where unknown")


def _make_zoom(factor: float, size: int) -> torch.Tensor:
    """Sampling grid (1, S, S, 2) that magnifies an image about its middle."""
    theta = torch.tensor([[[1.0 / factor, 0.0, 0.0], [0.0, 1.0 / factor, 0.0]]])
    return nn.functional.affine_grid(theta, [1, 1, size, size], align_corners=False)


def load_backbone(
    name: str, image_size: int, init: str, output_stride: int = 32
) -> tuple[nn.Module, str]:
    """Build a backbone without its classification layer.

    Args:
        name: As for `BoneAgePredictor`.
        image_size: Side of the input in pixels.
        init: `none` for random weights; `imagenet` to download the library's default weights;
            a path to a local weights file of that architecture (`.pth`, `.safetensors`);
            `auto` for ImageNet weights where they can be had and random ones, with a warning,
            where not.
        output_stride: As for `BoneAgePredictor`.

    Returns:
        The backbone, which maps (B, 3, S, S) to (B, F), and what its weights are: "none",
        "imagenet" or the file's name.
    """
    if init == "none":
        return _build(name, image_size, output_stride, pretrained=False), "none"
    if init in ("imagenet", "auto"):
        try:
            return _build(name, image_size, output_stride, pretrained=True), "imagenet"
        except CheckpointError as error:
            if init == "imagenet":
                raise
            logger.warning("%s Starting from random weights instead, since init is auto.", error)
            return _build(name, image_size, output_stride, pretrained=False), "none"
    weights = Path(init)
    return _build(name, image_size, output_stride, pretrained=False, weights=weights), weights.name


def _build(
    name: str,
    image_size: int,
    output_stride: int,
    *,
    pretrained: bool,
    weights: Path | None = None,
) -> nn.Module:
    if name.startswith(TIMM_PREFIX):
        model = _create_timm(name.removeprefix(TIMM_PREFIX), output_stride, pretrained)
    elif output_stride != 32:
        raise ConfigError(f"output_stride is {output_stride}; expected 32 for {name}.")
    else:
        model = _create_torchvision(name, image_size)
        if pretrained:
            # Loaded here and not by torchvision, which would build some models otherwise.
            published = torchvision.models.get_model_weights(name).DEFAULT
            try:
                state = published.get_state_dict(progress=True, check_hash=True)
            except (OSError, RuntimeError) as error:
                raise _cannot_download(name, error) from None
            _load_weights(model, name, state, str(published))
    if weights is not None:
        _load_weights(model, name, _read_weights(name, weights), str(weights))
    return _drop_classifier(model)


def _cannot_download(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"ImageNet weights of {name} cannot be downloaded ({error}). Pass --init FILE with a "
        "local copy, or --init none."
    )


def _create_torchvision(name: str, image_size: int) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(
            f"backbone {name!r} is not a torchvision classification model; try one of "
            f"{', '.join(_nearest(name, known))}, or timm:NAME."
        )
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}  # auxiliary heads return a tuple
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name == "maxvit_t":
        options["input_size"] = (image_size, image_size)
    try:
        return torchvision.models.get_model(name, weights=None, **options)
    except ValueError as error:
        raise ConfigError(f"backbone {name} cannot take {image_size}-px images: {error}") from None


def _create_timm(name: str, output_stride: int, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise ConfigError(
            f"backbone {name!r} is not a timm model; try one of "
            f"{', '.join(_nearest(name, timm.list_models()))}."
        )
    options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except (TypeError, NotImplementedError) as error:
        raise ConfigError(f"{name} has no output_stride {output_stride}: {error}") from None
    except RuntimeError as error:  # timm's word for a model that has no published weights
        raise CheckpointError(f"timm has no weights to download for {name} ({error}).") from None
    except OSError as error:  # the hub's and the connection's errors
        raise _cannot_download(TIMM_PREFIX + name, error) from None


def _nearest(name: str, known: list[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, known, n=3, cutoff=0.0)


def _read_weights(name: str, path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"init is {str(path)!r}; expected auto, imagenet, none or a weights file."
        ) from None
    except Exception as error:  # both readers raise whatever the bytes provoke
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} does not hold weights of {name}: {reason}") from None


def _load_weights(model: nn.Module, name: str, state: dict[str, torch.Tensor], source: str) -> None:
    """Load a published state dict; its classifiers, main and auxiliary, are left out."""
    classifiers = (*_classifier_names(model), "AuxLogits.", "aux1.", "aux2.")
    kept = {key: value for key, value in state.items() if not key.startswith(classifiers)}
    try:
        missing, unexpected = model.load_state_dict(kept, strict=False)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{source} does not hold weights of {name}: {reason}") from None
    unmet = [key for key in missing if not key.startswith(classifiers)] + list(unexpected)
    if unmet:
        raise CheckpointError(
            f"{source} does not hold weights of {name}: {len(unmet)} keys differ, the first is "
            f"{unmet[0]!r}."
        )


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Name the classification layers: timm's own word, or torchvision's last layer."""
    pretrained_cfg: Any = getattr(model, "pretrained_cfg", None)
    if pretrained_cfg is not None:
        names = pretrained_cfg["classifier"]
        return (names,) if isinstance(names, str) else tuple(names)
    # SqueezeNet classifies with a convolution, all others with a linear layer.
    return ([n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1],)


def _drop_classifier(model: nn.Module) -> nn.Module:
    reset: Any = getattr(model, "reset_classifier", None)
    if reset is not None:
        reset(0)
    else:
        model.set_submodule(_classifier_names(model)[0], nn.Identity())
    return model


@torch.no_grad()
def _count_features(backbone: nn.Module, name: str, image_size: int) -> int:
    """Count the backbone's features by running it once on an empty image."""
    backbone.eval()
    try:
        features = backbone(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"backbone {name} cannot take {image_size}-px images: {reason}") from None
    backbone.train()
    return int(features.flatten(1).shape[1])
