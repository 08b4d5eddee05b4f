"""`Predictor`: from an image to a prediction, with ONNX Runtime and without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from boneage.errors import BoneAgeError, ConfigError
from boneage.imaging.geometry import spread_map
from boneage.imaging.radiograph import Radiograph, Source, read_radiograph
from boneage.inference.calibration import Calibration, Outputs, load_calibration
from boneage.inference.contract import read_contract
from boneage.inference.familiarity import measure_distance
from boneage.inference.faults import (
    check_appearance,
    check_exposure,
    check_familiarity,
    check_hand,
    check_header,
    find_faults,
)
from boneage.inference.hand_finder import FoundHand, HandFinder
from boneage.inference.hand_view import ShownHand, show_hand
from boneage.inference.prediction import Prediction
from boneage.inference.quality import (
    Reason,
    Severity,
    check_age,
    check_image,
    check_sex,
    check_stage,
    force_prediction,
)
from boneage.inference.registry import find_model
from boneage.inference.session import open_session
from boneage.sex import SEX_CODE, ProvidedSex, Sex, parse_provided_sex
from boneage.stages import STAGES, stage_from_years


@dataclass(frozen=True)
class RawPrediction:
    """A network's outputs for one image, before calibration.

    Attributes:
        outputs: Of one image; years 0 without an age head.
        age_map: float32 (h, w) over the image as it was given; its mean is the age less the age
            from no features. None if the model gives none.
        shown: What the network was shown.
    """

    outputs: Outputs
    age_map: npt.NDArray[np.float32] | None
    shown: ShownHand


class Predictor:
    """Predicts images with an exported model, one at a time, the same alone or among others.

    It can be used by several threads, and copied or sent to other processes, which open the
    model's file again.

    Args:
        model: File of `boneage export`, or the name of a model in the package; by default that
            of `DEFAULT_MODEL`.
        calibration: File of `boneage calibrate` to use instead of the model's own calibration.
        threads: Threads of ONNX Runtime for one image; 0 takes every core.

    Attributes:
        contract: What the model expects and gives.
        calibration: The calibration that is applied, or None.

    Raises:
        CheckpointError: If the file is missing, damaged, or not one of ours.
        ConfigError: If the calibration file is not valid, or was fitted to another model.

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
        self._open(find_model(model), threads)
        self.calibration: Calibration | None = self.contract.calibration
        if calibration is not None:
            self.calibration = load_calibration(Path(calibration))
            if self.calibration.graph_sha256 != self.contract.graph_sha256:
                raise ConfigError(
                    f"{calibration} was fitted to another model than {self._path}. Run `boneage "
                    "calibrate` with this one."
                )

    def _open(self, path: Path, threads: int) -> None:
        self._session = open_session(path, threads)
        self._finder = HandFinder(threads=threads)
        self._path, self._threads = path.absolute(), threads
        self.contract = read_contract(path, self._session)

    def __getstate__(self) -> dict[str, Any]:
        """Give what a copy or another process needs; the open session cannot travel."""
        return {"path": self._path, "threads": self._threads, "calibration": self.calibration}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(state["path"], state["threads"])
        self.calibration = state["calibration"]

    @property
    def fingerprint(self) -> dict[str, str]:
        """What decides a prediction besides the image, as columns of a predictions file."""
        return {
            "model_sha256": self.contract.graph_sha256,
            "calibration_sha256": self.calibration.sha256 if self.calibration else "",
            "hand_finder_sha256": self._finder.sha256,
            "boneage_version": version("boneage"),
        }

    def read(self, source: Source, name: str | None = None) -> Radiograph:
        """Read an image as the model was trained to see it; see `read_radiograph`.

        Raises:
            ImageError: If it cannot be read.
        """
        return read_radiograph(source, self.contract.preprocessing.invert, name)

    def predict(
        self,
        source: "Source | Radiograph",
        sex: str | None = None,
        name: str | None = None,
        *,
        force: bool = False,
    ) -> Prediction:
        """Estimate bone age and stage from one image.

        Args:
            source: A path, bytes, an open binary file, a pydicom Dataset, an array, or a
                radiograph that was read already; see `read_radiograph`.
            sex: "M", "F" or "unknown", or another word of `parse_sex`. By default what a DICOM
                source states, else unknown.
            name: What messages and the id call a source.
            force: Whether to predict also what is rejected, with a warning instead.

        Raises:
            BoneAgeError: If the image cannot be read, the sex is none of those, or the model
                gives a value that is not a number.
        """
        provided = parse_provided_sex(sex)
        radiograph = source if isinstance(source, Radiograph) else self.read(source, name)
        used = choose_sex(radiograph, provided)
        made_by: dict[str, Any] = {key: value or None for key, value in self.fingerprint.items()}
        prediction = Prediction(
            radiograph.image_id, radiograph.path or radiograph.name, used, **made_by
        )
        hand = self.find_hand(radiograph)
        faults = self.find_faults(radiograph, hand)
        if faults and not force:
            return replace(prediction, reasons=tuple(faults))
        raw = self.predict_raw(radiograph, used, hand)
        prediction = self._add_outputs(prediction, raw)
        prediction = replace(prediction, reasons=tuple(force_prediction(faults)))
        doubts = [
            *check_exposure(radiograph, hand),
            *check_appearance(raw.shown.image, self.contract.appearance),
        ]
        return self._add_reasons(prediction, raw, radiograph, provided, doubts)

    def _add_outputs(self, prediction: Prediction, raw: RawPrediction) -> Prediction:
        """Add age, interval and stage, calibrated if there is a calibration."""
        outputs, years, low, high = raw.outputs, None, None, None
        if not all(
            a is None or np.isfinite(a).all() for a in (outputs.years, outputs.probabilities)
        ):
            raise BoneAgeError(f"the model's prediction for {prediction.path} is not a number.")
        if self.contract.has_age:
            if self.calibration is not None:
                outputs, lows, highs = self.calibration.apply(outputs)
                low, high = float(lows[0]), float(highs[0])
            years = float(outputs.years[0])
        if outputs.probabilities is None:
            probabilities: tuple[float | None, ...] = (None,) * len(STAGES)
            stage = int(stage_from_years(outputs.years)[0])
        else:
            probabilities = tuple(outputs.probabilities[0].tolist())
            stage = int(outputs.probabilities[0].argmax())
        p_child, p_adolescent, p_adult = probabilities
        return replace(
            prediction,
            predicted_years=years,
            predicted_low_years=low,
            predicted_high_years=high,
            predicted_months=None if years is None else 12.0 * years,
            predicted_stage=STAGES[stage],
            familiarity=self._rate(outputs),
            p_child=p_child,
            p_adolescent=p_adolescent,
            p_adult=p_adult,
            saliency=None if raw.age_map is None else raw.age_map / np.float32(raw.age_map.size),
        )

    def _rate(self, outputs: Outputs) -> float | None:
        """Give the familiarity of an image, if the model tells it."""
        model = self.contract.familiarity
        if model is None or outputs.distance is None:
            return None
        return model.rate(float(outputs.distance[0]))

    def _add_reasons(
        self,
        prediction: Prediction,
        raw: RawPrediction,
        radiograph: Radiograph,
        provided: ProvidedSex | None,
        doubts: list[Reason],
    ) -> Prediction:
        """Add what to know when reading the prediction, warnings first."""
        p_male = raw.outputs.p_male
        reasons: list[Reason] = [
            *prediction.reasons,
            *check_header(radiograph.header),
            *check_image(radiograph, raw.shown),
            *doubts,
            *check_familiarity(prediction.familiarity, self.contract.familiarity),
            *check_age(prediction.predicted_years),
            *check_sex(
                radiograph,
                provided,
                prediction.sex,
                None if p_male is None else float(p_male[0]),
                1.0 if self.calibration is None else self.calibration.sex_warning_above,
            ),
            *check_stage(
                prediction.predicted_years,
                prediction.predicted_stage,
                prediction.stage_probability,
            ),
        ]
        reasons.sort(key=lambda reason: reason.severity is Severity.INFO)
        return replace(prediction, reasons=tuple(reasons))

    def find_hand(self, radiograph: Radiograph) -> FoundHand:
        """Find the hand on an image that was read."""
        return self._finder.find(radiograph.to_image())

    def find_faults(self, radiograph: Radiograph, hand: FoundHand) -> list[Reason]:
        """Give the reasons to reject an image; none if it can be predicted."""
        return [*find_faults(radiograph), *check_hand(hand, self._finder.facts, radiograph.header)]

    def predict_raw(
        self, radiograph: Radiograph, sex: Sex | None, hand: FoundHand | None = None
    ) -> RawPrediction:
        """Give the network's outputs, not calibrated.

        An image that was rotated or inverted is corrected first, and shown to the network as the
        contract's `Preprocessing` says: whole, or in a view of the hand.

        Args:
            radiograph: An image.
            sex: What to give the network.
            hand: Where its hand is, if that is known already.
        """
        hand = hand or self.find_hand(radiograph)
        preprocessing = self.contract.preprocessing
        shown = show_hand(radiograph, hand, self._finder, preprocessing)
        outputs, age_map = self._run_image(shown.image, sex)
        if age_map is not None:  # over the image as it was given
            if shown.to_view is None:
                age_map = np.rot90(age_map, shown.orientation.quarter_turns)
            else:
                height, width = radiograph.pixels.shape
                age_map = spread_map(age_map, shown.to_view, shown.image.size, (width, height))
        return RawPrediction(outputs, age_map, shown)

    def _run_image(
        self, image: Image.Image, sex: Sex | None
    ) -> tuple[Outputs, npt.NDArray[np.float32] | None]:
        """Predict an image as it is: the outputs, and the age map of a model that has one."""
        preprocessing = self.contract.preprocessing
        reduced = image if image.mode == "LA" else preprocessing.reduce(image)
        found = self.run(preprocessing.to_array(reduced)[None], [sex])
        return make_outputs(found, [sex]), found["age_map"][0] if "age_map" in found else None

    def run(
        self, images: npt.NDArray[np.float32], sexes: Sequence[str | None]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run the network on images that are preprocessed already.

        Args:
            images: (B, S, S), grey in [0, 1].
            sexes: "M", "F" or None for each.

        Returns:
            `age_years` (B,), `stage_probabilities` (B, 3), `p_male` (B,), `age_map` (B, h, w)
            and `embedding` (B, K), as far as the model has them; not calibrated.

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


def make_outputs(
    found: Mapping[str, npt.NDArray[np.float32]], sexes: Sequence[str | None]
) -> Outputs:
    """Give what `Predictor.run` found of images, with the sex that each was predicted with."""

    def as_float64(name: str) -> npt.NDArray[np.float64] | None:
        return found[name].astype(np.float64) if name in found else None

    years = as_float64("age_years")
    return Outputs(
        np.array([SEX_CODE[sex] for sex in sexes]),
        np.zeros(len(sexes)) if years is None else years,
        as_float64("stage_probabilities"),
        as_float64("p_male"),
        measure_distance(found["embedding"]) if "embedding" in found else None,
    )


def choose_sex(radiograph: Radiograph, provided: ProvidedSex | None) -> Sex | None:
    """Give the sex for the network: the one provided, else the file's own; None for unknown."""
    if provided is None:
        return radiograph.header.sex
    return None if provided == "unknown" else provided


def load(model: Path | str | None = None, *, calibration: Path | str | None = None) -> Predictor:
    """Load a model to predict with: the one in the package, or an exported one.

    Args:
        model: File of `boneage export`, or the name of a model in the package.
        calibration: File of `boneage calibrate`.

    Example:
        boneage.load().predict("hand.png", sex="F")
    """
    return Predictor(model, calibration=calibration)
