import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import wilcoxon

from boneage.audit.perturbations import PERTURBATIONS, Perturbation
from boneage.audit.robustness import (
    CLEAN,
    COLUMNS,
    PerturbedPredictions,
    can_be_perturbed,
    predict_perturbed,
    summarise_robustness,
)
from boneage.data.labels import find_images, find_labels, read_known
from boneage.errors import BoneAgeError
from boneage.evaluation.statistics import holm, wilson
from boneage.imaging.radiograph import Radiograph
from boneage.inference.batch import ImageRecord, make_records, map_images, predict_record
from boneage.inference.prediction import Prediction
from boneage.inference.predictor import Predictor
from builders import make_calibration


def find(family: str, level: str) -> Perturbation:
    (found,) = (p for p in PERTURBATIONS if (p.family, p.level) == (family, level))
    return found


FEW = (
    find("rotation", "+20°"), find("inversion", ""), find("sex", "wrong"), find("sex", "unknown")
)  # fmt: skip


class Recorder(Predictor):
    """Notes the images and sexes that it predicts, and can be interrupted at an image."""

    interrupt_at: Path | None = None

    def __init__(self, model: Path, **options: Any) -> None:
        super().__init__(model, threads=1, **options)
        self.asked: list[tuple[Radiograph, str | None]] = []

    def predict(
        self, source: Any, sex: Any = None, name: str | None = None, *, force: bool = False
    ) -> Prediction:
        radiograph = source if isinstance(source, Radiograph) else self.read(source)
        if radiograph.path == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append((radiograph, sex))
        return super().predict(radiograph, sex, force=force)

    def names(self) -> set[str]:
        return {Path(radiograph.name).name for radiograph, _ in self.asked}


def run(
    predictor: Predictor,
    records: Sequence[ImageRecord],
    path: Path,
    perturbations: Sequence[Perturbation] = FEW,
    workers: int = 1,
) -> pd.DataFrame:
    """Predict what the file lacks under every perturbation, as an audit does."""

    def predict(record: ImageRecord) -> list[dict[str, object]]:
        radiograph, clean = predict_record(predictor, record)
        if radiograph is None:
            return []
        return predict_perturbed(predictor, record, radiograph, clean, perturbations)

    fingerprint = predictor.fingerprint
    with PerturbedPredictions(path, records, fingerprint, perturbations) as file:
        missing = [record for record in records if file.needs(record)]
        found = map_images(predict, missing, workers)
        for record, rows in zip(missing, found, strict=True):
            file.add(record, rows)
        return file.to_table()


@pytest.fixture
def predictor(exported: Path) -> Recorder:
    return Recorder(exported)


@pytest.fixture(scope="module")
def records(raw: Path) -> list[ImageRecord]:
    """Five images with sex and reference."""
    return make_records(list(find_images(raw).values())[:5], None, read_known(find_labels(raw)))


@pytest.fixture(scope="module")
def whole(
    exported: Path, records: list[ImageRecord], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The file of a run that was not interrupted."""
    path = tmp_path_factory.mktemp("whole") / "predictions.csv"
    run(Predictor(exported, threads=1), records, path)
    return path


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"level": str, "model": str}, keep_default_na=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions.csv"


@pytest.fixture
def finished(whole: Path, path: Path) -> Path:
    """A copy of that file to go on with."""
    return Path(shutil.copy(whole, path))


def test_each_image_has_one_clean_prediction_and_one_under_each_perturbation(
    records: list[ImageRecord], whole: Path
) -> None:
    table = read(whole).drop(columns="model")
    ways = [(CLEAN, ""), *((p.family, p.level) for p in FEW)]
    expected = [
        (str(r.path), r.path.stem, r.sex, family, level, 12 * float(r.reference_years or 0))
        for r in records for family, level in ways
    ]  # fmt: skip
    columns = ["path", "image_id", "sex", "family", "level", "reference_months"]
    found = table[columns].astype({"image_id": str}).itertuples(index=False, name=None)
    assert list(found) == expected
    assert table["predicted_months"].notna().all()
    assert list(read(whole)) == list(COLUMNS)


def test_the_clean_prediction_is_that_of_the_file_and_a_wrong_sex_is_the_other_one(
    predictor: Recorder, records: list[ImageRecord], path: Path
) -> None:
    table = run(predictor, records, path)
    asked = list(predictor.asked)
    for record in records:
        rows = table[table["path"] == str(record.path)].set_index(["family", "level"])
        other = {"M": "F", "F": "M"}[str(record.sex)]
        for way, sex in (((CLEAN, ""), record.sex), (("sex", "wrong"), other),
                         (("sex", "unknown"), "unknown")):  # fmt: skip
            alone = predictor.predict(record.path, sex)
            assert rows.loc[way, "predicted_months"] == alone.predicted_months
        provided = [sex for radiograph, sex in asked if radiograph.path == record.path]
        assert provided == [record.sex, record.sex, record.sex, other, "unknown"]


def test_an_inverted_image_is_inverted_back_where_a_file_of_it_would_be(
    predictor: Recorder, records: list[ImageRecord], path: Path, tmp_path: Path
) -> None:
    table = run(predictor, records, path)
    n_inverted = 0
    for i, record in enumerate(records):
        asked = predictor.asked[5 * i + 2][0]
        inverted = tmp_path / record.path.name
        find("inversion", "").change(Image.open(record.path)).save(inverted)
        expected = predictor.predict(inverted, record.sex)
        row = table.iloc[5 * i + 2]
        assert row["predicted_months"] == pytest.approx(expected.predicted_months, abs=1e-4)
        assert row["status"] == expected.status == ("warn" if asked.was_inverted else "ok")
        n_inverted += asked.was_inverted
    assert n_inverted > 0


def test_images_without_sex_or_reference_cannot_be_perturbed(
    predictor: Recorder, records: list[ImageRecord], path: Path
) -> None:
    odd = [
        replace(records[0], sex=None), replace(records[1], sex="unknown"),
        replace(records[2], reference_years=None), records[3],
    ]  # fmt: skip
    assert [can_be_perturbed(record) for record in odd] == [False, False, False, True]
    with pytest.raises(BoneAgeError, match="no image has both a sex and a reference"):
        run(predictor, [], path)
    assert not path.exists()


def test_unreadable_images_have_no_rows(
    predictor: Recorder, records: list[ImageRecord], path: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    given = [replace(records[3], path=broken), records[4]]
    table = run(predictor, given, path, FEW[:1])
    assert table["path"].tolist() == [str(records[4].path)] * 2
    with pytest.raises(BoneAgeError, match="predicted none of the images"):
        summarise_robustness(run(predictor, given[:1], tmp_path / "other.csv"), resamples=9)


def test_one_thread_and_two_give_the_same_predictions(
    predictor: Recorder, records: list[ImageRecord], whole: Path, path: Path
) -> None:
    run(predictor, records, path, workers=2)
    assert (path).read_bytes() == whole.read_bytes()


def test_an_interrupted_run_is_taken_up_and_ends_like_an_uninterrupted_one(
    predictor: Recorder, records: list[ImageRecord], whole: Path, path: Path, tmp_path: Path
) -> None:
    predictor.interrupt_at = records[2].path
    with pytest.raises(KeyboardInterrupt):
        run(predictor, records, path)
    assert set(read(path)["path"]) == {str(record.path) for record in records[:2]}
    predictor.interrupt_at, predictor.asked = None, []
    table = run(predictor, records, path)
    assert predictor.names() == {record.path.name for record in records[2:]}
    assert path.read_bytes() == whole.read_bytes()
    uninterrupted = run(predictor, records, tmp_path / "other.csv")
    pd.testing.assert_frame_equal(table, uninterrupted, check_exact=True)


def test_a_finished_run_predicts_nothing_and_gives_the_same(
    predictor: Recorder, records: list[ImageRecord], whole: Path, finished: Path
) -> None:
    table = run(predictor, records, finished)
    assert predictor.asked == []
    assert finished.read_bytes() == whole.read_bytes()
    assert summarise_robustness(table, resamples=20)
    # Images of another run stay in the file and out of the table.
    table = run(predictor, records[3:], finished)
    assert predictor.asked == []
    assert set(table["path"]) == {str(record.path) for record in records[3:]}
    assert set(read(finished)["path"]) == {str(record.path) for record in records}


def test_a_fingerprint_of_digits_alone_is_known_again(
    predictor: Recorder, records: list[ImageRecord], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boneage.audit.robustness.hash_text", lambda text: "012345e78901")
    for _ in range(2):
        run(predictor, records[:1], path, FEW[:1])
    assert len(predictor.asked) == 2


def test_predictions_of_another_model_or_calibration_are_dropped(
    exported: Path, predictor: Recorder, records: list[ImageRecord], whole: Path, finished: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    make_calibration(predictor.contract.graph_sha256).save(tmp_path / "site.toml")
    other = Recorder(exported, calibration=tmp_path / "site.toml")
    table = run(other, records, finished)
    assert len(other.asked) == 25
    assert len(set(read(finished)["model"])) == 1
    older = table["predicted_months"] - read(whole)["predicted_months"]
    assert older.min() == pytest.approx(120, abs=0.1)


def test_an_image_whose_label_was_changed_is_predicted_anew(
    predictor: Recorder, records: list[ImageRecord], whole: Path, finished: Path
) -> None:
    other: Any = {"M": "F", "F": "M"}[str(records[1].sex)]
    first, second, *rest = records
    changed = [replace(first, reference_years=9.5), replace(second, sex=other), *rest]
    table = run(predictor, changed, finished)
    assert predictor.names() == {first.path.name, second.path.name}
    assert table["path"].tolist() == read(whole)["path"].tolist()
    assert table["reference_months"].head(5).tolist() == [114.0] * 5
    assert table["sex"].iloc[5] == other


def test_an_image_whose_file_was_replaced_is_predicted_anew(
    predictor: Recorder, records: list[ImageRecord], path: Path, tmp_path: Path
) -> None:
    image = Path(shutil.copy(records[0].path, tmp_path / "image.png"))
    given = [replace(records[0], path=image), records[1]]
    before = run(predictor, given, path)
    shutil.copy(records[2].path, image)
    predictor.asked = []
    after = run(predictor, given, path)
    assert predictor.names() == {"image.png"}
    assert (before["predicted_months"].head(5) != after["predicted_months"].head(5)).all()


def test_another_set_of_perturbations_is_predicted_anew(
    predictor: Recorder, records: list[ImageRecord], finished: Path
) -> None:
    table = run(predictor, records[:2], finished, (find("rotation", "-20°"), *FEW[1:]))
    assert len(predictor.asked) == 10
    assert table["level"].tolist()[1] == "-20°"


@pytest.mark.parametrize(
    "content",
    [b"", b"image_id,sex\n1,M\n", b"\x89PNG\x00\xff", b"a\n1,2\n1,2,3\n",
     (",".join(COLUMNS) + "\na,b,1,M,clean,,ten,9,Child,ok\n").encode()],
    ids=["empty", "another table", "a picture", "no table", "words for numbers"],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_and_left_as_it_was(
    predictor: Recorder, records: list[ImageRecord], path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    with pytest.raises(BoneAgeError) as caught:
        run(predictor, records, path)
    assert str(caught.value) == (
        f"{path} is no file of such a run. Move it away, or pass another --out."
    )
    assert path.read_bytes() == content
    assert predictor.asked == []


def test_a_path_that_is_no_valid_text_is_known_again(
    predictor: Recorder, records: list[ImageRecord], path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    record = replace(records[0], path=Path(shutil.copy(records[0].path, folder)))
    for _ in range(2):
        table = run(predictor, [record], path, FEW[:1])
    assert len(predictor.asked) == 2
    assert len(table) == 2


REFERENCE = [100.0, 140.0, 150.0, 200.0]  # Child, Child, Adolescent, Adolescent
CLEAN_MONTHS = [104.0, 138.0, 156.0, 204.0]  # errors of 4, 2, 6, 4


def make_table(**perturbed: list[float]) -> pd.DataFrame:
    """Predictions of four boys, clean and under the perturbations named."""
    rows: list[dict[str, object]] = []
    for family, months in {CLEAN: CLEAN_MONTHS[: len(next(iter(perturbed.values())))],
                           **perturbed}.items():  # fmt: skip
        for i, value in enumerate(months):
            stage = "Child" if value < 144 else "Adolescent" if value <= 216 else "Adult"
            rows.append(
                {"model": "m", "path": f"{i}.png", "image_id": str(i), "sex": "M",
                 "family": family, "level": "", "reference_months": REFERENCE[i],
                 "predicted_months": value, "predicted_stage": stage,
                 "status": "warn" if (family, i) == ("turn", 3) else "ok"}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


TURN = [110.0, 146.0, 142.0, 200.0]  # errors of 10, 6, 8, 0; the second and third change stage


def test_a_perturbation_is_compared_with_the_clean_predictions_by_hand() -> None:
    turn, still = summarise_robustness(make_table(turn=TURN, still=CLEAN_MONTHS), resamples=500)
    assert (turn["family"], turn["n"], turn["n_unanswered"]) == ("turn", 4, 0)
    assert turn["mae_months"]["value"] == 6.0
    assert turn["mae_change_months"]["value"] == 2.0
    assert turn["moved_months"]["value"] == 8.0
    assert turn["mae_change_months"]["low"] < 2.0 < turn["mae_change_months"]["high"]
    assert turn["wilcoxon_p"] == pytest.approx(wilcoxon([6.0, 4.0, 2.0, -4.0]).pvalue)
    assert turn["stage_changed"] == pytest.approx(wilson(2, 4))
    assert turn["mcnemar_p"] == 0.5
    assert turn["warned"]["value"] == 0.25
    assert turn["clinical"] is None
    assert still["mae_change_months"] == {"value": 0.0, "low": None, "high": None}
    assert still["moved_months"]["value"] == still["stage_changed"]["value"] == 0.0
    assert still["wilcoxon_p"] == still["mcnemar_p"] == still["p_corrected"] == 1.0
    assert turn["p_corrected"] == min(1.0, 2 * turn["wilcoxon_p"])


def test_p_values_are_corrected_over_all_perturbations_by_holm() -> None:
    rng = np.random.default_rng(0)
    ids = np.arange(40).astype(str)
    clean = pd.DataFrame(
        {"model": "m", "path": ids, "image_id": ids, "sex": "M", "family": CLEAN, "level": "",
         "reference_months": rng.uniform(20, 200, 40), "predicted_stage": "Child", "status": "ok"}
    )  # fmt: skip
    clean["predicted_months"] = clean["reference_months"] + rng.normal(0, 5, 40)
    tables = [clean]
    for i in range(6):
        moved = clean["predicted_months"] + rng.normal(0, 2 * i + 0.5, 40)
        tables.append(clean.assign(family="noise", level=str(i), predicted_months=moved))
    rows = summarise_robustness(pd.concat(tables), resamples=0)
    assert [row["level"] for row in rows] == list("012345")
    p_values = [row["wilcoxon_p"] for row in rows]
    assert [row["p_corrected"] for row in rows] == pytest.approx(holm(p_values))
    assert min(p_values) < 0.05 < max(p_values)
    assert rows[0]["mae_months"]["low"] is None


def test_the_proportion_of_clinically_significant_errors_is_given_where_ages_are_known() -> None:
    # Brush boys: at 120 months 125.7 (SD 9.8), at 138 months 143.1 (10.2), at 180 182.7 (11.3).
    # By the reader delayed, normal, delayed; the turn makes the first normal.
    ages = {"0": 10.0, "1": 11.5, "2": 15.0}
    (turn,) = summarise_robustness(make_table(turn=TURN), resamples=0, chronological_years=ages)
    found = turn["clinical"]
    assert found["n"] == 3
    assert (found["clean"]["value"], found["stressed"]["value"]) == (0.0, pytest.approx(1 / 3))
    assert found["mcnemar_p"] == 1.0
    (turn,) = summarise_robustness(
        make_table(turn=TURN), resamples=0, chronological_years={"0": 2.0 / 12}
    )
    assert turn["clinical"] is None


def test_differences_of_the_last_bit_are_no_differences() -> None:
    (still,) = summarise_robustness(make_table(still=[m + 1e-5 for m in CLEAN_MONTHS]), resamples=0)
    assert still["wilcoxon_p"] == 1.0
    (moved,) = summarise_robustness(make_table(moved=[m + 1e-2 for m in CLEAN_MONTHS]), resamples=0)
    assert moved["wilcoxon_p"] < 1.0


def test_one_image_has_a_summary_without_intervals() -> None:
    (turn,) = summarise_robustness(make_table(turn=[110.0]), resamples=50)
    assert turn["n"] == 1
    assert turn["mae_change_months"] == {"value": 6.0, "low": None, "high": None}
    assert turn["wilcoxon_p"] == turn["p_corrected"] == 1.0
    json.dumps(turn, allow_nan=False)


def test_images_without_one_of_the_two_predictions_are_counted_and_left_out() -> None:
    table = make_table(turn=TURN, still=CLEAN_MONTHS)
    is_turn = table["family"] == "turn"
    table.loc[is_turn & (table["image_id"] == "0"), "predicted_months"] = np.nan
    turn, _ = summarise_robustness(table, resamples=50)
    assert (turn["n"], turn["n_unanswered"]) == (3, 1)
    assert turn["mae_months"]["value"] == pytest.approx(14 / 3)
    table.loc[is_turn, ["predicted_months", "predicted_stage"]] = [np.nan, None]
    turn, still = summarise_robustness(table, resamples=50, chronological_years={"0": 10.0})
    assert (turn["n"], turn["n_unanswered"]) == (0, 4)
    nothing = {"value": None, "low": None, "high": None}
    for name in ("mae_months", "mae_change_months", "moved_months", "stage_changed", "warned"):
        assert turn[name] == nothing
    assert turn["clinical"] is None
    assert still["n"] == 4
    json.dumps([turn, still], allow_nan=False)
