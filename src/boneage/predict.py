"""`Predictor`: the inference path for users, ONNX Runtime without torch."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from boneage.calibration import Answers, Calibration, load_calibration
from boneage.errors import BoneAgeError, CheckpointError, ConfigError, ImageError
from boneage.files import cut_suffix
from boneage.orientation import TURNS, UPRIGHT, Orientation, find_orientation
from boneage.preprocess import Preprocessing
from boneage.radiograph import Radiograph, read_radiograph
from boneage.stages import STAGES, stage_from_years

WEIGHTS = Path(__file__).with_name("weights") / "boneage.onnx"
"""The model in the package."""

CONTRACT_KEY = "boneage"
"""Name of the metadata entry of an ONNX file that holds its contract."""

OUTPUTS = ("age_years", "stage_probabilities", "p_male", "age_map", "orientation")
"""Outputs that a model may have, in their order."""

SEX_CODE: dict[str | None, float] = {"M": 1.0, "F": -1.0, None: 0.0}
"""What a network is told of the sex; unknown is neither."""

PHASES = ((-0.375, -0.125), (-0.125, 0.375), (0.125, -0.375), (0.375, 0.125))
"""Samples of a full-size film whose answers are averaged, as shifts in cells; see `sample`.

Each row and each column of a 4 x 4 grid of shifts has one of them.
"""

SURE_UPRIGHT = 0.97
"""Probability above which a film is taken to lie upright at first sight."""

SMALLEST_SIDE = 50
"""Films with a shorter side, in pixels, are rejected: half of what the shipped model samples."""

COLUMNS = (
    "image_id", "path", "sex", "predicted_years", "predicted_low_years", "predicted_high_years",
    "predicted_months", "predicted_stage", "p_child", "p_adolescent", "p_adult", "status",
    "reasons", "reference_years", "reference_stage",
)  # fmt: skip
"""Columns of a predictions file; the last two only where references are known."""

Sex = Literal["M", "F"]
Status = Literal["ok", "warn", "reject", "error"]


@dataclass(frozen=True)
class Contract:
    """What an exported model expects and gives; it travels inside the model's file.

    Attributes:
        preprocessing: How a film becomes the network's image.
        sex_input: Whether the answer depends on the sex given (+1 male, -1 female, 0 unknown).
        outputs: Names of the file's outputs, in order, out of `OUTPUTS`; ages in years.
        recipe: Settings that the model was trained with.
        provenance: Where the model comes from, as in its checkpoint, and `graph_sha256`, the
            fingerprint of the file without its metadata.
        calibration: Bias, intervals and temperature, or None if none were fitted.
        facts: What else is to be known: training data, figures, terms.
    """

    preprocessing: Preprocessing
    sex_input: bool
    outputs: tuple[str, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the file's inputs, in order."""
        return ("image", "sex") if self.sex_input else ("image",)

    @property
    def has_age(self) -> bool:
        """Whether the model answers an age."""
        return "age_years" in self.outputs

    @property
    def has_stage(self) -> bool:
        """Whether the model answers a stage of its own."""
        return "stage_probabilities" in self.outputs

    @property
    def graph_sha256(self) -> str:
        """Fingerprint of the network, by which a calibration knows it."""
        return str(self.provenance.get("graph_sha256", ""))

    def to_json(self) -> str:
        """Write the contract as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Contract":
        """Read what `to_json` wrote.

        Raises:
            ValueError: If it is not that.
        """
        values = json.loads(text)
        try:
            values["preprocessing"] = Preprocessing(**values["preprocessing"])
            values["outputs"] = tuple(values["outputs"])
            if values.get("calibration") is not None:
                values["calibration"] = Calibration.from_values(values["calibration"])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Prediction:
    """The answer to one film. Research use only, not a medical device.

    Attributes:
        image_id: The file's name without its image suffix.
        path: The file.
        sex: The sex that the model was told; None for unknown.
        predicted_years: Bone age in years; None if there is no answer or the model gives no age.
        predicted_low_years: Lower end of the 90% prediction interval; None without calibration.
        predicted_high_years: Its upper end.
        predicted_months: Bone age in months.
        predicted_stage: By the stage head, or by threshold on the age where there is none.
        p_child: Probability of each stage; None without a stage head.
        p_adolescent: As `p_child`.
        p_adult: As `p_child`.
        status: `ok`; `warn`: read the reasons; `reject`: no film to answer; `error`: unreadable.
        reasons: Why the status is not `ok`.
        reference_years: Reference age, where a table gave one.
        reference_stage: Its stage.
        age_map: float32 (h, w), the share of each part of the film in the age, in years; None if
            the model gives none.
    """

    image_id: str
    path: Path
    sex: Sex | None = None
    predicted_years: float | None = None
    predicted_low_years: float | None = None
    predicted_high_years: float | None = None
    predicted_months: float | None = None
    predicted_stage: str | None = None
    p_child: float | None = None
    p_adolescent: float | None = None
    p_adult: float | None = None
    status: Status = "ok"
    reasons: tuple[str, ...] = ()
    reference_years: float | None = None
    reference_stage: str | None = None
    age_map: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @property
    def has_reference(self) -> bool:
        """Whether the reference age is known."""
        return self.reference_years is not None

    def with_reference(self, years: float) -> "Prediction":
        """Add the reference age, in years."""
        stage = STAGES[int(stage_from_years(years))]
        return replace(self, reference_years=years, reference_stage=stage)

    def to_row(self, *, with_reference: bool) -> dict[str, Any]:
        """Give the columns of a predictions file, `COLUMNS`, as plain values."""
        names = COLUMNS if with_reference else COLUMNS[:-2]
        values = {name: getattr(self, name) for name in names}
        return {**values, "path": str(self.path), "reasons": "; ".join(self.reasons)}


@dataclass(frozen=True)
class Look:
    """A network's raw answer to one film.

    Attributes:
        answers: Not calibrated; years 0 without an age head.
        age_map: As in `Prediction`.
        orientation: How the film lay, if it was brought upright, else upright.
    """

    answers: Answers
    age_map: npt.NDArray[np.float32] | None
    orientation: Orientation


class Predictor:
    """Answers films with an exported model, one at a time, the same alone or among others.

    Safe to call from several threads.

    Args:
        model: File of `boneage export`; by default the model in the package.
        calibration: File of `boneage calibrate` to use instead of the model's own calibration.
        threads: Threads of ONNX Runtime for one film; 0 takes every core.

    Raises:
        CheckpointError: If the file is missing, damaged, or not one of ours.
        ConfigError: If the calibration is none, or was fitted to another model.

    Example:
        Predictor().predict("hand.png", sex="F").predicted_years
    """

    def __init__(
        self,
        model: Path | str | None = None,
        *,
        calibration: Path | str | None = None,
        threads: int = 0,
    ) -> None:
        import onnxruntime

        path = WEIGHTS if model is None else Path(model)
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; expected a file of `boneage export`.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises whatever the bytes provoke
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} is not a readable ONNX model: {reason}") from None
        self.contract = _read_contract(path, self._session)
        self.calibration = self.contract.calibration
        if calibration is not None:
            self.calibration = load_calibration(Path(calibration))
            if self.calibration.graph_sha256 != self.contract.graph_sha256:
                raise ConfigError(
                    f"{calibration} was fitted to another model than {path}. Run `boneage "
                    "calibrate` with this one."
                )

    def predict(
        self, path: Path | str, sex: Literal["M", "F", "unknown"] | None = None
    ) -> Prediction:
        """Estimate bone age and stage from one film.

        Args:
            path: PNG, JPEG, TIFF, BMP or DICOM.
            sex: "M", "F" or "unknown". By default a DICOM file's own word, else unknown.

        Raises:
            BoneAgeError: If the film cannot be read or the sex is none of those.
        """
        check_sex(sex)
        return self.answer(read_radiograph(Path(path), self.contract.preprocessing.invert), sex)

    def answer(
        self, radiograph: Radiograph, sex: Literal["M", "F", "unknown"] | None = None
    ) -> Prediction:
        """Estimate bone age and stage from a film that was read already, as `predict` does.

        Raises:
            BoneAgeError: If the sex is none of those, or the answer is not a number.
        """
        check_sex(sex)
        told: Sex | None = radiograph.sex if sex is None else None if sex == "unknown" else sex
        found = Prediction(cut_suffix(radiograph.path.name), radiograph.path, told)
        height, width = radiograph.pixels.shape
        if min(height, width) < SMALLEST_SIDE:
            reason = (
                f"the film has {height}×{width} pixels; expected {SMALLEST_SIDE} or more a side"
            )
            return replace(found, status="reject", reasons=(reason,))
        look = self.look(radiograph, told)
        raw = look.answers
        if not all(a is None or np.isfinite(a).all() for a in (raw.years, raw.probabilities)):
            raise BoneAgeError(f"the model's answer to {radiograph.path} is not a number.")
        answers, years, low, high = raw, None, None, None
        if self.contract.has_age:
            if self.calibration is not None:
                answers, lows, highs = self.calibration.apply(raw)
                low, high = float(lows[0]), float(highs[0])
            years = float(answers.years[0])
        if answers.probabilities is None:
            chances: tuple[float | None, ...] = (None,) * len(STAGES)
            code = int(stage_from_years(answers.years)[0])
        else:
            chances = tuple(answers.probabilities[0].tolist())
            code = int(answers.probabilities[0].argmax())
        reasons = tuple(self._warn(radiograph, look))
        return replace(
            found,
            predicted_years=years,
            predicted_low_years=low,
            predicted_high_years=high,
            predicted_months=None if years is None else 12.0 * years,
            predicted_stage=STAGES[code],
            p_child=chances[0],
            p_adolescent=chances[1],
            p_adult=chances[2],
            status="warn" if reasons else "ok",
            reasons=reasons,
            age_map=look.age_map,
        )

    def look(
        self,
        radiograph: Radiograph,
        sex: Sex | None,
        phases: Sequence[tuple[float, float]] = PHASES,
    ) -> Look:
        """Give the network's raw answer, not calibrated, averaged over samples of the film.

        A film that the network does not at once find upright is looked at in all four turns; if it
        was turned or inverted, the answer is that to the film brought upright.

        Args:
            radiograph: A film.
            sex: What to tell the network.
            phases: Samples of a film that is larger than the network's, see `sample`.
        """
        first, chances = self._look_once(radiograph, sex, phases)
        if chances is None or chances[UPRIGHT.code] >= SURE_UPRIGHT:
            return first
        looks: list[Look] = [first]
        seen: list[Any] = [chances]
        for turns in range(1, TURNS):
            turned = _with(radiograph, np.rot90(radiograph.pixels, turns))
            look, chances = self._look_once(turned, sex, phases)
            looks.append(look)
            seen.append(chances)
        found = find_orientation(np.array(seen))
        if found == UPRIGHT:
            return first
        upright = looks[-found.quarter_turns % TURNS]
        if found.is_inverted:
            righted = _with(radiograph, found.undo(radiograph.pixels))
            upright, _ = self._look_once(righted, sex, phases)
        age_map = upright.age_map
        if age_map is not None:
            age_map = np.rot90(age_map, found.quarter_turns)  # as the film in the file lies
        return replace(upright, age_map=age_map, orientation=found)

    def _look_once(
        self, radiograph: Radiograph, sex: Sex | None, phases: Sequence[tuple[float, float]]
    ) -> tuple[Look, npt.NDArray[np.float32] | None]:
        """Answer a film as it lies, and tell how it seems to lie: probabilities (8,)."""
        preprocessing = self.contract.preprocessing
        film = radiograph.to_image()
        size = preprocessing.sampled_size
        if size is None or film.size == (size, size):
            phases = ((0.0, 0.0),)  # every sample would be the same
        images = [preprocessing.to_array(preprocessing.reduce(film, phase)) for phase in phases]
        # One at a time: a batch is no faster on one core, and takes memory for each.
        answers = [self.run(image[None], [sex]) for image in images]
        mean = {name: np.mean([a[name] for a in answers], axis=0) for name in answers[0]}
        raw = Answers(
            np.array([SEX_CODE[sex]]),
            mean.get("age_years", np.zeros(1)).astype(np.float64),
            *(
                None if name not in mean else mean[name].astype(np.float64)
                for name in ("stage_probabilities", "p_male")
            ),
        )
        age_map, chances = (mean[n][0] if n in mean else None for n in ("age_map", "orientation"))
        return Look(raw, age_map, UPRIGHT), chances

    def run(
        self, images: npt.NDArray[np.float32], sexes: Sequence[str | None]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run the network on images that are preprocessed already.

        Args:
            images: (B, S, S), grey in [0, 1].
            sexes: "M", "F" or None for each.

        Returns:
            `age_years` (B,), `stage_probabilities` (B, 3), `p_male` (B,), `age_map` (B, h, w) and
            `orientation` (B, 8), as far as the model has them; not calibrated.

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

    def _warn(self, radiograph: Radiograph, look: Look) -> Iterator[str]:
        raw = look.answers
        if radiograph.was_inverted:
            yield "bones were dark: the film was inverted before it was read"
        if look.orientation != UPRIGHT:
            yield f"the film lies {look.orientation.describe()}: it was righted before it was read"
        if self.calibration is None or raw.p_male is None or raw.sex[0] == 0:
            return
        p_other = float(raw.p_male[0] if raw.sex[0] < 0 else 1.0 - raw.p_male[0])
        if p_other > self.calibration.sex_warning_above:
            told, other = ("F", "boy") if raw.sex[0] < 0 else ("M", "girl")
            yield f"sex was entered as {told}, but the film looks like a {other}'s ({p_other:.0%})"


def _with(radiograph: Radiograph, pixels: npt.NDArray[np.float32]) -> Radiograph:
    return replace(radiograph, pixels=np.ascontiguousarray(pixels))


def load(model: Path | str | None = None, *, calibration: Path | str | None = None) -> Predictor:
    """Load a model to predict with: the one in the package, or an exported one.

    Args:
        model: File of `boneage export`.
        calibration: File of `boneage calibrate`.

    Example:
        boneage.load().predict("hand.png", sex="F")
    """
    return Predictor(model, calibration=calibration)


def unreadable(path: Path, error: ImageError) -> Prediction:
    """Give the row of a film that could not be read."""
    return Prediction(cut_suffix(path.name), path, status="error", reasons=(str(error),))


def check_sex(sex: object) -> None:
    """Hold a sex to the words that `Predictor.predict` takes.

    Raises:
        BoneAgeError: If it is none of them.
    """
    if sex not in ("M", "F", "unknown", None):
        raise BoneAgeError(f"sex is {sex!r}; expected M, F or unknown.")


def _read_contract(path: Path, session: Any) -> Contract:
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
