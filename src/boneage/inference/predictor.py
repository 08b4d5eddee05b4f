"""`Predictor`: the inference path for users, ONNX Runtime without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boneage.errors import BoneAgeError, CheckpointError, ConfigError
from boneage.files import cut_suffix
from boneage.imaging.orientation import TURNS, UPRIGHT, Orientation, find_orientation
from boneage.imaging.radiograph import Radiograph, read_radiograph
from boneage.inference.calibration import Outputs, load_calibration
from boneage.inference.contract import read_contract
from boneage.inference.prediction import NOTE, Prediction
from boneage.inference.registry import find_model
from boneage.sex import SEX_CODE, ProvidedSex, Sex, parse_provided_sex
from boneage.stages import STAGES, stage_from_years

PHASES = tuple(((i + 0.5) / 8 - 0.5, ((3 * i + 1) % 8 + 0.5) / 8 - 0.5) for i in range(8))
"""Samples of a full-size image whose answers are averaged, as shifts in cells; see `sample`.

Each row and each column of an 8 x 8 grid of shifts has one of them, far from its neighbours'.
"""

SURE_UPRIGHT = 0.97
"""Probability above which an image is taken to lie upright at first sight."""

SMALLEST_SIDE = 50
"""Images with a shorter side, in pixels, are rejected: half of what the shipped model samples."""


@dataclass(frozen=True)
class RawPrediction:
    """A network's raw answer to one image.

    Attributes:
        answers: Not calibrated; years 0 without an age head.
        age_map: As in `Prediction`.
        orientation: How the image lay, if it was brought upright, else upright.
    """

    answers: Outputs
    age_map: npt.NDArray[np.float32] | None
    orientation: Orientation


class Predictor:
    """Answers images with an exported model, one at a time, the same alone or among others.

    Safe to call from several threads.

    Args:
        model: File of `boneage export`, or the name of a model in the package; by default that
            of `DEFAULT_MODEL`.
        calibration: File of `boneage calibrate` to use instead of the model's own calibration.
        threads: Threads of ONNX Runtime for one image; 0 takes every core.

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

        # Where the caller has loaded it before this package, it sends no more from here on.
        onnxruntime.disable_telemetry_events()
        path = find_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Waiting threads sleep: spinning gains nothing, and keeps a core that another could use.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises whatever the bytes provoke
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} is not a readable ONNX model: {reason}") from None
        self.contract = read_contract(path, self._session)
        self.calibration = self.contract.calibration
        if calibration is not None:
            self.calibration = load_calibration(Path(calibration))
            if self.calibration.graph_sha256 != self.contract.graph_sha256:
                raise ConfigError(
                    f"{calibration} was fitted to another model than {path}. Run `boneage "
                    "calibrate` with this one."
                )

    @property
    def fingerprint(self) -> dict[str, str]:
        """What decides a prediction besides the image, as columns of a predictions file."""
        return {
            "model_sha256": self.contract.graph_sha256,
            "calibration_sha256": self.calibration.sha256 if self.calibration else "",
            "boneage_version": version("boneage"),
        }

    def read(self, path: Path | str) -> Radiograph:
        """Read an image as the model was trained to see it.

        Raises:
            ImageError: If it cannot be read.
        """
        return read_radiograph(Path(path), self.contract.preprocessing.invert)

    def predict(self, path: Path | str, sex: str | None = None) -> Prediction:
        """Estimate bone age and stage from one image.

        Args:
            path: PNG, JPEG, TIFF, BMP or DICOM.
            sex: "M", "F" or "unknown", or another word of `parse_sex`. By default a DICOM file's
                own word, else unknown.

        Raises:
            BoneAgeError: If the image cannot be read or the sex is none of those.
        """
        told = parse_provided_sex(sex)
        return self.answer(self.read(path), told)

    def answer(self, radiograph: Radiograph, sex: str | None = None) -> Prediction:
        """Estimate bone age and stage from an image that was read already, as `predict` does.

        Raises:
            BoneAgeError: If the sex is none of those, or the answer is not a number.
        """
        entered = parse_provided_sex(sex)
        told = choose_sex(radiograph, entered)
        made_by: dict[str, Any] = {name: value or None for name, value in self.fingerprint.items()}
        found = Prediction(cut_suffix(radiograph.path.name), radiograph.path, told, **made_by)
        fault = find_fault(radiograph)
        if fault is not None:
            return replace(found, status="reject", reasons=(fault,))
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
        warnings = tuple(self._warn(radiograph, look, entered))
        notes = tuple(_note(radiograph, entered, STAGES[code], chances[code], years))
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
            status="warn" if warnings else "ok",
            reasons=(*warnings, *notes),
            age_map=look.age_map,
        )

    def look(
        self,
        radiograph: Radiograph,
        sex: Sex | None,
        phases: Sequence[tuple[float, float]] = PHASES,
    ) -> RawPrediction:
        """Give the network's raw answer, not calibrated, averaged over samples of the image.

        An image that the network does not at once find upright is looked at in all four turns; if
        it was turned or inverted, the answer is that to the image brought upright.

        Args:
            radiograph: An image.
            sex: What to tell the network.
            phases: Samples of an image that is larger than the network's, see `sample`.
        """
        first, chances = self._look_once(radiograph, sex, phases)
        if chances is None or chances[UPRIGHT.code] >= SURE_UPRIGHT:
            return first
        looks: list[RawPrediction] = [first]
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
            age_map = np.rot90(age_map, found.quarter_turns)  # as the image in the file lies
        return replace(upright, age_map=age_map, orientation=found)

    def _look_once(
        self, radiograph: Radiograph, sex: Sex | None, phases: Sequence[tuple[float, float]]
    ) -> tuple[RawPrediction, npt.NDArray[np.float32] | None]:
        """Answer an image as it lies, and tell how it seems to lie: probabilities (8,)."""
        preprocessing = self.contract.preprocessing
        reduced = radiograph.to_image()
        size = preprocessing.sampled_size
        if size is None or reduced.size == (size, size):
            phases = ((0.0, 0.0),)  # every sample would be the same
        images = [preprocessing.to_array(preprocessing.reduce(reduced, phase)) for phase in phases]
        # One at a time: a batch is no faster on one core, and takes memory for each.
        answers = [self.run(image[None], [sex]) for image in images]
        mean = {name: np.mean([a[name] for a in answers], axis=0) for name in answers[0]}
        raw = Outputs(
            np.array([SEX_CODE[sex]]),
            mean.get("age_years", np.zeros(1)).astype(np.float64),
            *(
                None if name not in mean else mean[name].astype(np.float64)
                for name in ("stage_probabilities", "p_male")
            ),
        )
        age_map, chances = (mean[n][0] if n in mean else None for n in ("age_map", "orientation"))
        return RawPrediction(raw, age_map, UPRIGHT), chances

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

    def _warn(
        self, radiograph: Radiograph, look: RawPrediction, entered: ProvidedSex | None
    ) -> Iterator[str]:
        raw = look.answers
        if radiograph.was_inverted:
            yield "bones were dark: the image was inverted before it was read"
        if look.orientation != UPRIGHT:
            yield f"the image lies {look.orientation.describe()}: it was righted before it was read"
        if entered in ("M", "F") and radiograph.sex not in (None, entered):
            yield f"sex was entered as {entered}, but the file says {radiograph.sex}"
        if radiograph.sex_not_understood is not None and entered is None:
            yield (
                f"the file's PatientSex is {radiograph.sex_not_understood!r}, which is not "
                "understood: the sex was taken as unknown"
            )
        if self.calibration is None or raw.p_male is None or raw.sex[0] == 0:
            return
        p_other = float(raw.p_male[0] if raw.sex[0] < 0 else 1.0 - raw.p_male[0])
        if p_other > self.calibration.sex_warning_above:
            told, other = ("F", "boy") if raw.sex[0] < 0 else ("M", "girl")
            yield f"sex was entered as {told}, but the image looks like a {other}'s ({p_other:.0%})"


def _note(
    radiograph: Radiograph,
    entered: ProvidedSex | None,
    stage: str,
    probability: float | None,
    years: float | None,
) -> Iterator[str]:
    """Say what is worth knowing and no warning.

    Where age and stage contradict each other, each is given as it was predicted.
    """
    if radiograph.sex_not_understood is not None and entered is not None:
        yield f"{NOTE}the file's PatientSex is {radiograph.sex_not_understood!r}, not understood"
    if years is None or probability is None:
        return
    by_age = STAGES[int(stage_from_years(years))]
    if by_age != stage:
        yield (
            f"{NOTE}age and stage differ: {years:.2f} years is {by_age} by the thresholds, "
            f"{stage} is the most likely stage ({probability:.0%})"
        )


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


def find_fault(radiograph: Radiograph) -> str | None:
    """Say why an image is rejected unanswered; None if it is not."""
    height, width = radiograph.pixels.shape
    if min(height, width) >= SMALLEST_SIDE:
        return None
    return f"the image has {height}×{width} pixels; expected {SMALLEST_SIDE} or more a side"


def choose_sex(radiograph: Radiograph, sex: ProvidedSex | None) -> Sex | None:
    """Give the sex to tell the network: the one given, else the file's own; None for unknown."""
    return radiograph.sex if sex is None else None if sex == "unknown" else sex
