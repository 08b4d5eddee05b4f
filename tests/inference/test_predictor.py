import copy
import io
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
import pytest
from PIL import Image
from pydicom import dcmread

from boneage import load
from boneage.errors import BoneAgeError, CheckpointError, ConfigError, ImageError
from boneage.imaging.radiograph import read_radiograph
from boneage.inference.calibration import load_calibration
from boneage.inference.prediction import COLUMNS, Prediction, columns_of_run
from boneage.inference.predictor import Predictor
from boneage.inference.quality import Reason, ReasonCode, Severity
from boneage.training.export import export_onnx
from builders import draw_radiograph, make_calibration, make_checkpoint, save_dicom


@pytest.fixture(scope="module")
def image(raw: Path) -> Path:
    return sorted(raw.rglob("*.png"))[0]


@pytest.fixture(scope="module")
def model(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export_onnx(make_checkpoint(sex_input=True), path, [image])
    return path


def test_an_image_is_predicted_without_torch(model: Path, image: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from boneage import Predictor; "
        "from pathlib import Path; "
        f"print(Predictor(Path({str(model)!r})).predict({str(image)!r}, 'F').predicted_years)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert float(printed) == pytest.approx(Predictor(model).predict(image, "F").predicted_years)


def test_the_sex_counts_and_unknown_is_between(model: Path, image: Path) -> None:
    predictor = Predictor(model)
    years = [predictor.predict(image, sex).predicted_years for sex in ("M", None, "F")]
    assert years[0] != years[2]
    assert years[1] == pytest.approx(np.mean([years[0], years[2]]), abs=1e-4)
    assert predictor.predict(image).sex is None


def test_an_image_has_the_same_outputs_alone_and_in_a_batch(
    model: Path, samples: pd.DataFrame
) -> None:
    predictor = Predictor(model)
    rng = np.random.default_rng(0)
    images = rng.random((5, 48, 48), dtype=np.float32)
    sexes = ["M", "F", None, "F", "M"]
    together = predictor.run(images, sexes)
    for i, sex in enumerate(sexes):
        alone = predictor.run(images[i : i + 1], [sex])
        for name in predictor.contract.outputs:
            np.testing.assert_allclose(alone[name][0], together[name][i], atol=1e-4 / 12)


def test_a_prediction_agrees_with_itself(model: Path, image: Path) -> None:
    prediction = Predictor(model).predict(str(image), "M")
    assert prediction.image_id == image.stem
    assert prediction.predicted_months == pytest.approx(12 * prediction.predicted_years)  # type: ignore[operator]
    probabilities = {
        "Child": prediction.p_child,
        "Adolescent": prediction.p_adolescent,
        "Adult": prediction.p_adult,
    }
    assert sum(probabilities.values()) == pytest.approx(1.0)  # type: ignore[arg-type]
    assert prediction.predicted_stage == max(
        probabilities, key=lambda stage: probabilities[stage] or 0
    )


@pytest.mark.slow
def test_a_model_of_one_task_predicts_that_alone(image: Path, tmp_path: Path) -> None:
    for tasks in ("age", "stage"):
        export_onnx(make_checkpoint(tasks=tasks), tmp_path / tasks, [image])
    by_age = Predictor(tmp_path / "age").predict(image)
    assert by_age.p_child is None
    assert by_age.predicted_stage in ("Child", "Adolescent", "Adult")
    by_stage = Predictor(tmp_path / "stage").predict(image)
    assert by_stage.predicted_years is None
    assert by_stage.predicted_months is None


def test_the_contract_travels_with_the_file(model: Path) -> None:
    contract = Predictor(model).contract
    assert contract.sex_input
    assert contract.preprocessing.stored_size == 64
    assert contract.provenance == {"epoch": 3, "graph_sha256": contract.graph_sha256}


def test_an_unreadable_sex_or_image_is_an_error(model: Path, tmp_path: Path) -> None:
    predictor = Predictor(model)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.png is not an image"):
        predictor.predict(broken, "F")
    image = tmp_path / "image.png"
    Image.fromarray(np.eye(64, dtype=np.uint8) * 9).save(image)
    with pytest.raises(BoneAgeError, match=r"sex is 'diverse'; expected M or F .*, or unknown\.$"):
        predictor.predict(image, "diverse")


def test_a_file_that_is_no_export_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Predictor(tmp_path / "none.onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match="not a readable ONNX model"):
        Predictor(path)
    stranger = onnx.load(model)
    del stranger.metadata_props[:]
    onnx.save(stranger, path)
    with pytest.raises(CheckpointError, match="has no contract"):
        Predictor(path)


def test_a_contract_that_does_not_fit_its_graph_is_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    changed = onnx.load(model)
    (entry,) = changed.metadata_props
    contract = json.loads(entry.value)
    entry.value = json.dumps({**contract, "sex_input": False})
    onnx.save(changed, path)
    with pytest.raises(CheckpointError, match=r"takes image, sex and gives .* contract says image"):
        Predictor(path)
    entry.value = json.dumps({**contract, "colour": True})
    onnx.save(changed, path)
    with pytest.raises(CheckpointError, match=r"does not fit this version.*colour"):
        Predictor(path)


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor(exported, threads=1)


@pytest.fixture
def site(predictor: Predictor, tmp_path: Path) -> Path:
    """A file of a calibration for this model."""
    make_calibration(predictor.contract.graph_sha256).save(tmp_path / "site.toml")
    return tmp_path / "site.toml"


def test_a_row_has_the_agreed_columns() -> None:
    assert ", ".join(COLUMNS) == (
        "image_id, path, sex, predicted_years, predicted_low_years, predicted_high_years, "
        "predicted_months, predicted_stage, p_child, p_adolescent, p_adult, familiarity, "
        "status, reasons, reference_years, reference_stage, image_sha256, model_sha256, "
        "calibration_sha256, hand_finder_sha256, boneage_version, reason_codes"
    )
    reasons = (
        Reason(ReasonCode.INVERTED, Severity.WARN, "one"),
        Reason(ReasonCode.STAGE_CONTRADICTS_AGE, Severity.INFO, "two"),
    )
    prediction = Prediction("7", Path("images/7.png"), "M", reasons=reasons)
    assert tuple(prediction.to_row(with_reference=False)) == columns_of_run(with_reference=False)
    row = prediction.with_reference(18.0).to_row(with_reference=True)
    assert tuple(row) == COLUMNS
    assert (row["path"], row["reasons"]) == (str(Path("images/7.png")), "one; note: two")
    assert row["reason_codes"] == ["inverted", "stage_contradicts_age"]
    assert (row["reference_years"], row["reference_stage"]) == (18.0, "Adolescent")


def test_the_id_is_the_name_without_a_known_suffix(
    predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    pixels = np.asarray(Image.open(image).convert("L"))
    for name, image_id in (("a.b.dcm", "a.b"), ("1.2.840.77", "1.2.840.77")):
        assert predictor.predict(save_dicom(tmp_path / name, pixels)).image_id == image_id


def test_a_calibration_moves_the_age_and_gives_the_interval(
    exported: Path, predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    # Far from the limits of the stages, so that no age steps into its stage.
    biases = {"bias_male_years": -4.0, "bias_female_years": -5.0, "bias_unknown_years": -6.0}
    site = tmp_path / "site.toml"
    make_calibration(predictor.contract.graph_sha256, **biases).save(site)
    calibrated = load(exported, calibration=site)
    for sex, bias, half in (("M", 4.0, 1.5), ("F", 5.0, 1.5), (None, 6.0, 2.5)):
        raw, prediction = (p.predict(image, sex) for p in (predictor, calibrated))
        assert (raw.predicted_low_years, raw.predicted_high_years) == (None, None)
        assert raw.predicted_years is not None
        years = raw.predicted_years + bias
        assert prediction.predicted_years is not None
        assert prediction.predicted_years == pytest.approx(years)
        assert prediction.predicted_months == pytest.approx(12.0 * prediction.predicted_years)
        interval = (prediction.predicted_low_years, prediction.predicted_high_years)
        assert interval == pytest.approx((years - half, years + half))
        assert prediction.p_child != pytest.approx(raw.p_child, abs=1e-4)
        assert prediction.predicted_stage == raw.predicted_stage


def test_a_calibration_inside_the_model_counts_unless_another_is_passed(
    exported: Path, predictor: Predictor, site: Path, image: Path, tmp_path: Path
) -> None:
    inside = onnx.load(exported)
    (entry,) = inside.metadata_props
    inner = make_calibration(predictor.contract.graph_sha256, bias_male_years=-7.0)
    contract = json.loads(entry.value) | {
        "calibration": json.loads(json.dumps(inner.__dict__, default=vars))
    }
    entry.value = json.dumps(contract)
    onnx.save(inside, tmp_path / "model.onnx")
    path = tmp_path / "model.onnx"
    years = [p.predict(image, "M").predicted_years or 0.0
             for p in (predictor, Predictor(path), Predictor(path, calibration=site))]  # fmt: skip
    assert np.diff(years).tolist() == pytest.approx([7.0, 3.0], abs=1e-4)


def test_a_calibration_of_another_model_is_refused(
    model: Path, exported: Path, site: Path, tmp_path: Path
) -> None:
    message = r"site\.toml was fitted to another model than .*model\.onnx\. Run `boneage calibrate`"
    with pytest.raises(ConfigError, match=message):
        Predictor(model, calibration=site)
    assert Predictor(exported, calibration=str(site)).calibration == load_calibration(site)
    with pytest.raises(ConfigError, match="does not exist"):
        Predictor(exported, calibration=tmp_path / "gone.toml")


def test_unknown_is_a_word_for_the_sex(predictor: Predictor, image: Path) -> None:
    assert predictor.predict(image, "unknown") == predictor.predict(image)
    assert predictor.predict(image, "unknown").sex is None
    assert predictor.predict(image, "M").sex == "M"


def test_a_dicom_image_s_own_sex_counts_unless_one_is_given(
    predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    pixels = np.asarray(Image.open(image).convert("L"))
    path = save_dicom(tmp_path / "a.dcm", pixels, PatientSex="F")
    predictions = {sex: predictor.predict(image, sex).predicted_years for sex in ("M", "F", None)}
    assert len(set(predictions.values())) == 3
    for provided, sex in ((None, "F"), ("M", "M"), ("unknown", None)):
        prediction = predictor.predict(path, provided)
        assert prediction.sex == sex
        assert prediction.predicted_years == predictions[sex]


def test_an_image_is_reduced_before_the_network_sees_it_and_a_reduced_one_is_not_again(
    predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    large, preprocessing = predictor.read(image), predictor.contract.preprocessing

    def predict_once(reduced: Image.Image) -> float:
        outputs = predictor.run(preprocessing.to_array(reduced)[None], ["M"])
        return float(outputs["age_years"][0])

    reduced = preprocessing.reduce(large.to_image())
    reduced.save(tmp_path / "small.png")
    small = predictor.read(tmp_path / "small.png")
    assert small.pixels.shape == (64, 64)
    expected = predict_once(reduced)
    for radiograph in (large, small):
        years = predictor.predict_raw(radiograph, "M").outputs.years[0]
        assert years == pytest.approx(expected, abs=1e-5)
    assert predict_once(large.to_image()) != pytest.approx(expected, abs=1e-4)


def test_the_saliency_map_and_its_constant_add_up_to_the_age(
    predictor: Predictor, image: Path
) -> None:
    prediction = predictor.predict(image, "M")
    assert prediction.saliency is not None
    assert prediction.saliency.ndim == 2
    raw = predictor.predict_raw(predictor.read(image), "M")
    assert raw.age_map is not None
    constant = float(raw.outputs.years[0] - raw.age_map.mean())
    assert prediction.saliency_constant_years == pytest.approx(constant, abs=1e-4)
    assert "saliency" not in prediction.to_row(with_reference=True)
    assert "saliency" not in repr(prediction)


def test_a_prediction_has_a_title() -> None:
    interval = {"predicted_low_years": 9.34, "predicted_high_years": 12.61}
    whole = Prediction("7", "7", predicted_years=10.97, predicted_stage="Child", **interval)  # type: ignore[arg-type]
    assert whole.title == "11.0 years (9.3 to 12.6), Child"
    assert Prediction("7", "7", predicted_stage="Child").title == "Child"
    assert Prediction("7", "7", predicted_years=3.0).title == "3.0 years"
    assert Prediction("7", "7").title == ""
    assert whole.saliency_constant_years is None


def test_what_a_header_and_the_reading_say_is_among_the_reasons(
    predictor: Predictor, tmp_path: Path
) -> None:
    pixels = (draw_radiograph().astype(np.uint16) + 60) * 12
    tags: dict[str, Any] = {"WindowCenter": 127, "WindowWidth": 255, "BodyPartExamined": "CHEST"}
    path = save_dicom(tmp_path / "a.dcm", pixels, **tags, PatientSex="F")
    prediction = predictor.predict(path, "M")
    assert prediction.status == "warn"
    expected = {"body_part_not_hand", "sex_contradicts_file", "window_left_out"}
    assert expected <= set(prediction.reason_codes)
    assert predictor.predict(path, "M", force=True) == prediction


@pytest.mark.parametrize(("height", "width"), [(49, 90), (90, 49)])
def test_a_tiny_image_is_rejected_without_a_prediction(
    predictor: Predictor, tmp_path: Path, height: int, width: int
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(draw_radiograph()).resize((width, height)).save(path)
    prediction = predictor.predict(path, "F")
    assert prediction.reasons[0] == Reason(
        ReasonCode.IMAGE_TOO_SMALL,
        Severity.REJECT,
        f"the image has {height}×{width} pixels; expected 50 or more a side",
    )
    assert (prediction.status, prediction.sex) == ("reject", "F")
    assert prediction.predicted_years is None
    assert prediction.predicted_stage is None
    forced = predictor.predict(path, "F", force=True)
    assert forced.status == "warn"
    assert {"image_too_small", "forced"} <= set(forced.reason_codes)
    assert forced.predicted_years is not None


def _compose(*hands: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Lay hands of one height beside each other."""
    return np.concatenate(hands, axis=1)


@pytest.mark.parametrize(
    ("code", "pixels"),
    [
        ("no_hand", np.random.default_rng(0).integers(0, 256, (200, 200)).astype(np.uint8)),
        ("no_hand", np.add.outer(np.arange(200), np.zeros(150)).astype(np.uint8)),
        ("several_hands", _compose(draw_radiograph(220), draw_radiograph(220)[:, ::-1])),
        ("hand_cut_off", draw_radiograph(300)[:175]),
    ],
)
def test_what_shows_no_whole_hand_is_rejected_unless_forced(
    predictor: Predictor, code: str, pixels: npt.NDArray[np.uint8]
) -> None:
    rejected = predictor.predict(pixels, "M")
    assert rejected.status == "reject"
    assert rejected.reason_codes == [code]
    assert rejected.predicted_years is None
    assert rejected.saliency is None
    forced = predictor.predict(pixels, "M", force=True)
    assert forced.status == "warn"
    assert forced.predicted_years is not None


def test_a_hand_on_a_wide_field_is_predicted_as_it_is_alone(
    exported_with_view: Path, tmp_path: Path
) -> None:
    predictor = Predictor(exported_with_view, threads=1)
    hand = draw_radiograph(300)
    field = np.full((2 * hand.shape[0], 2 * hand.shape[1]), int(hand[0, 0]), np.uint8)
    field[50 : 50 + hand.shape[0], 40 : 40 + hand.shape[1]] = hand
    alone, wide = predictor.predict(hand, "F"), predictor.predict(field, "F")
    assert alone.status == "ok"
    assert wide.status == "warn"
    assert "field_corrected" in wide.reason_codes
    turned = predictor.predict(np.ascontiguousarray(np.rot90(field)), "F")
    assert {"field_corrected", "orientation_corrected"} <= set(turned.reason_codes)
    for found in (wide, turned):  # the whole field instead of the view would move it by 0.04
        assert found.predicted_years == pytest.approx(alone.predicted_years, abs=0.005)
    assert wide.saliency is not None
    rows, columns = np.nonzero(wide.saliency)
    assert rows.max() < 0.7 * len(wide.saliency)  # nothing where there is no hand
    assert columns.max() < 0.75 * len(wide.saliency)


def test_an_inverted_image_is_predicted_as_the_image_with_a_warning(
    predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    Image.fromarray(255 - np.asarray(Image.open(image).convert("L"))).save(tmp_path / "a.png")
    upright, turned = predictor.predict(image, "M"), predictor.predict(tmp_path / "a.png", "M")
    assert upright.status == "ok"
    assert turned.status == "warn"
    assert turned.reason_codes[0] == "inverted"
    assert turned.predicted_years == pytest.approx(upright.predicted_years, abs=1e-4)


def test_an_image_that_contradicts_its_sex_is_predicted_with_a_warning(
    exported: Path, predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    sha, site = predictor.contract.graph_sha256, tmp_path / "site.toml"
    make_calibration(sha, sex_warning_above=0.001).save(site)
    wary = Predictor(exported, calibration=site)
    for sex, other in (("M", "girl"), ("F", "boy")):
        prediction = wary.predict(image, sex)
        assert prediction.status == "warn"
        reason = prediction.reasons[0]
        assert reason.code is ReasonCode.SEX_CONTRADICTS_IMAGE
        assert f"the sex used is {sex}, but the image looks like a {other}'s (" in reason.message
        assert prediction.predicted_years is not None
    assert wary.predict(image).status == "ok"
    assert predictor.predict(image, "M").status == "ok"
    make_calibration(sha, sex_warning_above=1.0).save(site)
    assert Predictor(exported, calibration=site).predict(image, "M").status == "ok"


def test_a_prediction_that_is_no_number_is_an_error(
    exported: Path, image: Path, tmp_path: Path
) -> None:
    diverged = onnx.load(exported)
    for weights in diverged.graph.initializer:
        if weights.name.endswith("age_head.bias"):
            nan = np.full(weights.dims, np.nan, np.float32)
            weights.CopyFrom(onnx.numpy_helper.from_array(nan, weights.name))
            break
    else:
        pytest.fail("the age head has no bias")
    onnx.save(diverged, tmp_path / "model.onnx")
    with pytest.raises(BoneAgeError, match=rf"model's prediction for {image} is not a number\."):
        Predictor(tmp_path / "model.onnx").predict(image)


def _sources(path: Path) -> dict[str, Any]:
    """The same file as every kind of source that it can be."""
    sources: dict[str, Any] = {
        "str": str(path),
        "bytes": path.read_bytes(),
        "buffer": io.BytesIO(path.read_bytes()),
        "radiograph": read_radiograph(path),
    }
    if path.suffix == ".dcm":
        return {**sources, "dataset": dcmread(path)}
    return {**sources, "array": np.asarray(Image.open(path))}


@pytest.mark.parametrize("name", ["a.png", "deep.png", "colour.png", "a.dcm"])
def test_a_prediction_is_the_same_from_every_kind_of_source(
    predictor: Predictor, image: Path, tmp_path: Path, name: str
) -> None:
    grey, path = np.asarray(Image.open(image).convert("L")), tmp_path / name
    pixels = {
        "deep.png": grey.astype(np.uint16) * 16 + 3,
        "colour.png": np.dstack([grey, grey // 2, grey]),
    }.get(name, grey)
    if name == "a.dcm":
        save_dicom(path, pixels, PatientSex="F")
    else:
        Image.fromarray(pixels).save(path)
    expected = predictor.predict(path)
    assert expected.path == path
    for kind, source in _sources(path).items():
        found = predictor.predict(source, name=name)
        assert replace(found, path=path) == expected, kind
        np.testing.assert_array_equal(found.saliency, expected.saliency)
        assert found.path == (path if kind in ("str", "radiograph") else name)


def test_a_predictor_works_in_other_processes_and_as_a_copy(
    exported: Path, site: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.parent)
    predictor = Predictor(exported.name, calibration=site, threads=1)
    expected = predictor.predict(image, "M")
    monkeypatch.chdir(image.parent)  # elsewhere, a relative path would lead nowhere
    assert copy.deepcopy(predictor).predict(image, "M") == expected
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(predictor.predict, image, "M").result()
    assert found == expected
    assert expected.predicted_low_years is not None
    predictor.calibration = None
    assert copy.deepcopy(predictor).predict(image, "M").predicted_low_years is None


def test_a_contract_of_impossible_preprocessing_is_refused_by_name(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    changed = onnx.load(model)
    (entry,) = changed.metadata_props
    contract = json.loads(entry.value)
    whole = contract["preprocessing"]
    for preprocessing, message in (
        ({**whole, "blur": 1}, "preprocessing lacks or does not know blur"),
        ({k: v for k, v in whole.items() if k != "tta"}, "does not know tta"),
        ({**whole, "tta": {**whole["tta"], "rotate": True}}, r"\.tta lacks .* know rotate"),
        ({**whole, "tta": {**whole["tta"], "zoom": 2}}, "tta.zoom is 2; expected 0 or more and"),
        ({**whole, "tta": None}, "preprocessing.tta is None; expected values of mirror, zoom"),
        ({**whole, "image_size": "big"}, "image_size is 'big'; expected 1 or more"),
        ({**whole, "invert": "often"}, "invert is 'often'; expected auto or never or always"),
        ({**whole, "crop": "all"}, "crop is 'all'; expected none or hand"),
        ({**whole, "view": {"width": 1.0}}, r"\.view lacks or does not know unit, carpus_x"),
        ([], r"preprocessing is \[\]; expected values of image_size"),
    ):
        entry.value = json.dumps({**contract, "preprocessing": preprocessing})
        onnx.save(changed, path)
        with pytest.raises(CheckpointError, match=rf"model\.onnx does not fit.*{message}"):
            Predictor(path)


@pytest.mark.parametrize("word", ["boy", "MALE", "m", "1"])
def test_every_word_for_a_sex_is_understood(predictor: Predictor, image: Path, word: str) -> None:
    assert predictor.predict(image, word) == predictor.predict(image, "M")


def _dicom(path: Path, image: Path, sex: str) -> Path:
    return save_dicom(path, np.asarray(Image.open(image).convert("L")), PatientSex=sex)


def test_a_sex_entered_against_the_file_s_own_is_a_warning(
    predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    path = _dicom(tmp_path / "a.dcm", image, "F")
    against = predictor.predict(path, "M")
    assert (against.status, against.sex) == ("warn", "M")
    assert against.reasons[0] == Reason(
        ReasonCode.SEX_CONTRADICTS_FILE,
        Severity.WARN,
        "sex was entered as M, but the file says F",
    )
    for sex in ("F", "unknown", None):
        assert predictor.predict(path, sex).status == "ok"


def test_a_dicom_word_for_a_sex_is_understood(
    predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    found = predictor.predict(_dicom(tmp_path / "a.dcm", image, "FEMALE"))
    assert (found.status, found.sex) == ("ok", "F")


def test_a_dicom_sex_that_is_not_understood_is_a_reason(
    predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    path = _dicom(tmp_path / "a.dcm", image, "WEIBLICH")
    found = predictor.predict(path)
    assert (found.status, found.sex) == ("warn", None)
    assert found.reasons[0] == Reason(
        ReasonCode.SEX_NOT_UNDERSTOOD,
        Severity.WARN,
        "the file's PatientSex is 'WEIBLICH', which is not understood: "
        "the sex was taken as unknown",
    )
    entered = predictor.predict(path, "F")
    assert entered.status == "ok"
    note = "the file's PatientSex is 'WEIBLICH', not understood"
    assert Reason(ReasonCode.SEX_NOT_UNDERSTOOD, Severity.INFO, note) in entered.reasons
    other = predictor.predict(_dicom(tmp_path / "o.dcm", image, "O"))
    assert (other.status, other.sex) == ("ok", None)


def test_an_age_that_contradicts_its_stage_is_noted_and_changes_nothing_else(
    exported: Path, predictor: Predictor, image: Path, tmp_path: Path
) -> None:
    stage = predictor.predict(image, "M").predicted_stage
    raw = predictor.predict(image, "M").predicted_years
    assert raw is not None
    site = tmp_path / "site.toml"
    for wanted, by_age in ((9.0, "Child"), (14.0, "Adolescent"), (18.5, "Adult")):
        make_calibration(predictor.contract.graph_sha256, bias_male_years=raw - wanted).save(site)
        found = Predictor(exported, calibration=site).predict(image, "M")
        assert found.status == "ok"
        assert found.predicted_years == pytest.approx(wanted)
        assert found.predicted_stage == stage
        codes = [code for code in found.reason_codes if code != "outside_usual_ages"]
        assert codes == ["stage_contradicts_age"] * (by_age != stage)
        assert ("outside_usual_ages" in found.reason_codes) == (wanted > 17.0)
