"""Every setting, with the seed report's default; its docstring is its help text.

The command line is generated from these dataclasses, a `--config` file sets the same names, and
`Recipe` is saved in every checkpoint.
"""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from boneage.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]
Invert = Literal["auto", "never", "always"]
Crop = Literal["none", "hand"]
Padding = Literal["edge", "black"]


@dataclass(frozen=True)
class Paths:
    """Where images, labels and results are."""

    data: Path = Path("data/raw")
    """Folder of the raw images and their label CSV, in Kaggle's layout or flat."""
    labels: Path | None = None
    """Label CSV, if not the one in the raw folder."""
    processed: Path = Path("data/processed")
    """Folder of the resized images that `preprocess` writes."""
    use_processed: bool = False
    """Read images from the processed folder instead of the raw one."""
    output: Path = Path("output")
    """Folder for the split, the models, the predictions, the metrics and the plots."""

    def __post_init__(self) -> None:
        for name in ("data", "labels", "processed", "output"):
            if getattr(self, name) is not None:  # a str will do as well
                object.__setattr__(self, name, Path(getattr(self, name)))


@dataclass(frozen=True)
class Runtime:
    """How to compute: device, precision, processes. These settings are not part of a recipe."""

    device: Device = "auto"
    """Device to compute on; auto takes CUDA, then an Apple GPU, then the CPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of training; auto is bf16 autocast on CUDA and fp32 elsewhere."""
    workers: int | None = None
    """Processes that read images; by default 4 with a GPU, and 0 (the main process) without."""
    compile: bool = False
    """Compile the backbone for training (torch.compile); this does not help on a CPU."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self, "workers", "0 or more", self.workers is None or self.workers >= 0)


@dataclass(frozen=True)
class ImageSettings:
    """How a radiograph becomes a square image."""

    image_size: int = 256
    """Side of the square image, in pixels."""
    invert: Invert = "auto"
    """Invert images with dark bones: auto inverts those detected, always all, never none."""
    crop: Crop = "none"
    """What is used of an image: none crops nothing, hand is a view of the hand, upright and always
    at one scale."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self, "image_size", "1 or more", self.image_size >= 1)


@dataclass(frozen=True)
class Recipe(ImageSettings):
    """Everything that decides what a training run computes. Saved with the checkpoint."""

    stretch_grey: bool = False
    """Stretch each image's grey values: its 1st percentile becomes black, its 99th white."""
    horizontal_flip: bool = True
    """Mirror half of the training images, chosen at random."""
    rotation: float = 10.0
    """Largest random rotation of a training image, in degrees in either direction."""
    zoom: float = 0.0
    """Largest random magnification or reduction of a training image, as a proportion."""
    shift: float = 0.0
    """Largest random shift of a training image, as a proportion of its side."""
    brightness: float = 0.0
    """Largest random reduction of a training image's brightness and contrast, as a proportion."""
    stretch: float = 0.0
    """Largest random change of a training image's width over its height, as a proportion."""
    film_curve: float = 0.0
    """Proportion of training images whose grey values are changed by a random film curve."""
    sharpness: float = 0.0
    """Proportion of training images that are sharpened, evened out, or blurred."""
    resolution: float = 0.0
    """Proportion of training images that are reduced and enlarged again."""
    grain: float = 0.0
    """Proportion of training images to which fine or coarse noise is added."""
    cover: float = 0.0
    """Proportion of training images that get a frame, and of those a part of which is covered."""
    background: float = 0.0
    """Proportion of training images that are darkened outside the hand; needs --crop."""
    outline_weight: float = 0.0
    """Weight in the loss of the proportion of the age map outside the hand; needs --crop."""
    synthetic_images: int = 0
    """Number of synthetic images added to the training images."""
    hold_out: tuple[str, ...] = ()
    """Ids of images left out of training, whichever part of the split they are in."""
    backbone: str = "resnet18"
    """Backbone: a torchvision classification model, or timm:NAME for one of timm's."""
    output_stride: int = 32
    """Pixels of the image for one cell of the last feature map, 32 or 16; 16 for timm's only."""
    init: str = "auto"
    """Initial weights: imagenet, none, auto (imagenet if available), a local weights file, or the
    name of a model in the package, such as boneage, which also sets backbone, input and heads."""
    tasks: Literal["age,stage", "age", "stage"] = "age,stage"
    """Tasks to train: the age, the stage, or both."""
    sex_input: bool = False
    """Give the network the patient's sex as a second input."""
    tta_mirror: bool = False
    """Test-time augmentation: average the predictions of an image and its mirror image."""
    tta_zoom: float = 0.0
    """Test-time augmentation: average over the image reduced and magnified by this proportion."""
    age_bias: Literal["zero", "mean", "none"] = "zero"
    """Constant term of the age head: it starts at zero or at the mean age of the training images;
    with none there is no such term, and the cells of the age map alone add up to the age."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 32
    """Images in one gradient step."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam with an L2 penalty, or with decoupled weight decay (Loshchilov & Hutter 2019)."""
    learning_rate: float = 1e-4
    """Learning rate; with one-cycle, the highest."""
    schedule: Literal["constant", "one-cycle"] = "constant"
    """Learning rate over the run: constant, or rising and falling once (Smith 2018)."""
    weight_decay: float = 1e-5
    """Weight decay: Adam's L2 penalty, or AdamW's decay."""
    clip_norm: float = 5.0
    """Largest gradient norm; longer gradients are scaled down to it."""
    unknown_sex_weight: float = 0.0
    """Weight in the loss of the predictions without the sex; needs --sex-input."""
    sex_weight: float = 0.0
    """Weight in the loss of a head that predicts the sex from the image; 0 for no such head."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights that is evaluated and saved; 0 for no average."""
    checkpoint_selection: Literal["best", "last"] = "best"
    """Weights to save: those of the epoch with the lowest validation loss, or of the last epoch."""
    seed: int = 0
    """Seed of the split, the initial weights, the shuffling and the augmentation."""
    group_column: str | None = None
    """Label column, such as a patient id, whose equal values stay in one part of the split."""
    drop_unknown_sex: bool = False
    """Leave out rows whose sex is unknown, instead of stopping at them."""
    split_sha256: str | None = None
    """Expected sha256 of the split; training stops if the data give another one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size"):
            _require(self, name, "1 or more", getattr(self, name) >= 1)
        for name in ("learning_rate", "clip_norm"):
            _require(self, name, "a number above 0", getattr(self, name) > 0)
        for name in ("rotation", "weight_decay", "seed", "synthetic_images", "unknown_sex_weight",
                     "sex_weight", "outline_weight"):  # fmt: skip
            _require(self, name, "0 or more", getattr(self, name) >= 0)
        for name in ("zoom", "shift", "brightness", "ema_decay", "tta_zoom", "stretch"):
            _require(self, name, "0 or more and below 1", 0 <= getattr(self, name) < 1)
        for name in ("film_curve", "sharpness", "resolution", "grain", "cover", "background"):
            _require(self, name, "0 to 1", 0 <= getattr(self, name) <= 1)
        _require(self, "output_stride", "32 or 16", self.output_stride in (32, 16))
        for name in ("background", "outline_weight"):
            has_hand = getattr(self, name) == 0 or self.crop != "none"
            _require(self, name, "0 without --crop", has_hand)
        has_sex = self.unknown_sex_weight == 0 or self.sex_input
        _require(self, "unknown_sex_weight", "0 without --sex-input", has_sex)
        object.__setattr__(self, "hold_out", tuple(map(str, self.hold_out)))

    @property
    def has_age(self) -> bool:
        """Whether the age head is trained."""
        return "age" in self.tasks.split(",")

    @property
    def has_stage(self) -> bool:
        """Whether the stage head is trained."""
        return "stage" in self.tasks.split(",")


def _require_choices(settings: object) -> None:
    """Check settings that are one of a few words, for callers other than the command line."""
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal:
            choices = get_args(hint)
            _require(settings, name, " or ".join(choices), getattr(settings, name) in choices)


def _require(settings: object, name: str, expected: str, holds: bool) -> None:
    if not holds:
        raise ConfigError(f"{name} is {getattr(settings, name)}; expected {expected}.")


def load_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """Read a `--config` file: flat TOML whose keys are the options' names.

    One file serves all commands: each uses the keys that are its options.

    Args:
        path: The file.
        known: Names of the options of all commands, with `_` between words.

    Raises:
        ConfigError: If the file is missing or not TOML, or a key is not an option of any command.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; --config expects a TOML file.") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; --config expects a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    names = sorted(known)
    normalised = {key.replace("-", "_"): value for key, value in settings.items()}
    if len(normalised) < len(settings):
        raise ConfigError(f"{path} gives a setting twice, once with - and once with _. Keep one.")
    for key, value in normalised.items():
        if isinstance(value, dict):
            raise ConfigError(f"{path} has a section [{key}]; expected plain `name = value` lines.")
        if key not in names:
            nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{path}: unknown setting {key!r}; did you mean {nearest!r}?")
    return normalised
