import base64
import io
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import boneage.audit.workflow
from boneage.audit.acquisition import ACQUISITION
from boneage.audit.checklist import CHECKLIST
from boneage.audit.gallery import Case
from boneage.audit.perturbations import PERTURBATIONS
from boneage.audit.report import save_audit
from boneage.audit.workflow import AUDITED, PREDICTIONS, REGIONS, STRESS, audit_images
from boneage.clinical.growth import classify, look_up, sd_score
from boneage.data.labels import find_images, find_labels
from boneage.errors import BoneAgeError, LabelError
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import write_cohort
from builders import Page, make_calibration

CHOSEN = [("flip", "left-right"), ("inversion", ""), ("sex", "wrong")]
FEW = tuple(each for each in PERTURBATIONS if (each.family, each.level) in CHOSEN)


@pytest.fixture(scope="module")
def folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten synthetic images with labels, masks and a calibration; one is broken, two unknown."""
    folder = tmp_path_factory.mktemp("images")
    write_cohort(folder / "cohort", 10, 2, 100, masks=True, workers=1)
    labels = pd.read_csv(find_labels(folder / "cohort"))
    ages = (labels["boneage"] + np.arange(-20.0, 30.0, 5.0)).clip(4)
    ages[0], ages[2] = 210, np.nan  # outside the reference table; unknown
    labels["chronological_age_months"] = ages
    labels["site"] = ["north", "south"] * 5
    labels.to_csv(folder / "labels.csv", index=False)
    images = folder / "images"
    images.mkdir()
    for path in find_images(folder / "cohort").values():
        shutil.copy(path, images)
    shutil.copy(images / "900001.png", images / "stranger.png")
    shutil.copy(images / "900001.png", images / os.fsdecode(b"caf\xe9.png"))
    (images / "900010.png").write_text("no image")
    make_calibration(Predictor(exported).contract.graph_sha256).save(folder / "site.toml")
    return folder


@pytest.fixture
def few(folder: Path, tmp_path: Path) -> Path:
    """A folder of its first four images."""
    (tmp_path / "images").mkdir()
    for i in range(1, 5):
        shutil.copy(folder / "images" / f"90000{i}.png", tmp_path / "images")
    return tmp_path / "images"


Audited = tuple[dict[str, Any], pd.DataFrame, list[Case]]


def run(exported: Path, folder: Path, out: Path, **options: Any) -> Audited:
    """Audit the images with few perturbations and resamples."""
    settings: dict[str, Any] = {
        "images": folder / "images", "labels": folder / "labels.csv", "out": out,
        "model": exported, "calibration": folder / "site.toml", "resamples": 50, "workers": 1,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boneage.audit.workflow, "PERTURBATIONS", FEW)
        return audit_images(**settings | options)


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    return folder / "out"


@pytest.fixture(scope="module")
def page(audited: Audited, out: Path) -> Page:
    return Page((out / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def audited(exported: Path, folder: Path, out: Path) -> Audited:
    """An audit with every test."""
    masks = folder / "cohort" / "masks"
    found = run(exported, folder, out, by=["site"], stress=True, regions=masks)
    save_audit(out, *found)
    return found


def test_the_figures_are_those_of_the_predictions_and_every_image_is_counted(
    audited: Audited, out: Path
) -> None:
    result, table, _ = audited
    predictions = pd.read_csv(out / PREDICTIONS).dropna(
        subset=["reference_years", "predicted_years"]
    )
    assert (result["n"], result["n_unanswered"], result["n_without_reference"]) == (9, 1, 2)
    assert result["name"] == "images"
    assert table["image_id"].tolist() == [str(900001 + i) for i in range(9)]
    error = 12 * (predictions["predicted_years"] - predictions["reference_years"]).abs()
    assert result["accuracy"]["mae_months"]["value"] == pytest.approx(error.mean(), abs=1e-3)
    assert result["accuracy"]["coverage"]["value"] is not None


def test_groups_are_those_of_the_labels_and_of_the_acquisition(
    audited: Audited, folder: Path
) -> None:
    groups = audited[0]["groups"]
    kinds = {group["by"] for group in groups}
    assert kinds == {"sex", "age", "sex and age", "site", *ACQUISITION}
    for kind in kinds:
        assert sum(group["n"] for group in groups if group["by"] == kind) == 9
    sites = {group["group"]: group["n"] for group in groups if group["by"] == "site"}
    assert sites == {"north": 5, "south": 4}
    assert "scanner or site" not in audited[0]["not_assessable"]


def test_the_chronological_age_of_the_labels_gives_the_clinical_meaning(
    audited: Audited, folder: Path
) -> None:
    result, table, _ = audited
    labels = pd.read_csv(folder / "labels.csv").head(9)
    at = look_up(labels["chronological_age_months"], np.where(labels["male"], "M", "F"))
    reader, model = (classify(sd_score(12.0 * table[f"{name}_years"], at))
                     for name in ("reference", "predicted"))  # fmt: skip
    known = reader != ""
    assert known.tolist() == [False, True, False, *[True] * 6]
    assert result["clinical"]["n"] == known.sum()
    changed = (reader != model)[known].mean()
    assert result["clinical"]["changed"]["value"] == pytest.approx(changed)
    for row in result["robustness"]["stresses"]:
        assert row["clinical"]["n"] == known.sum()
        assert row["clinical"]["clean"]["value"] == pytest.approx(changed)


def test_every_image_is_predicted_under_every_perturbation(audited: Audited, out: Path) -> None:
    robustness = audited[0]["robustness"]
    assert robustness["n"] == 9
    assert [(row["family"], row["level"], row["n"]) for row in robustness["stresses"]] == [
        (each.family, each.level, 9) for each in FEW
    ]
    predictions = pd.read_csv(out / STRESS)
    assert predictions.groupby("path").size().tolist() == [4] * 9
    # The model averages an image and its mirror image, and its prediction depends on the sex.
    assert robustness["stresses"][0]["moved_months"]["value"] < 0.5
    assert robustness["stresses"][2]["moved_months"]["value"] > 1
    plain = pd.read_csv(out / PREDICTIONS).dropna(subset=["reference_years", "predicted_years"])
    clean = predictions[predictions["family"] == "clean"]
    np.testing.assert_allclose(clean["predicted_months"], plain["predicted_months"], atol=1e-3)


def test_every_image_with_regions_is_measured(audited: Audited, out: Path) -> None:
    regions = audited[0]["regions"]
    measures = pd.read_csv(out / REGIONS, dtype={"image_id": str})
    assert 4 < regions["n"] == measures["image_id"].nunique() <= 9
    assert {"radius", "PP", "DP"} <= {group["group"] for group in regions["groups"]}
    whole = measures[measures["region"] == "all regions"]
    assert regions["groups"][0]["energy"]["value"] == pytest.approx(whole["energy"].mean())


def test_the_gallery_shows_the_worst_and_the_most_uncertain(audited: Audited) -> None:
    result, _, gallery = audited
    worst = [row["image_id"] for row in result["difficult"][:8]]
    uncertain = [row["image_id"] for row in result["uncertain"][:4]]
    expected = list(dict.fromkeys([*worst, *uncertain]))
    assert [case.record.image_id for case in gallery] == expected
    reasons = {case.record.image_id: case.why for case in gallery}
    assert all("large error" in reasons[image_id] for image_id in worst)
    assert all("wide interval" in reasons[image_id] for image_id in uncertain)
    assert all(case.record.overlay is not None for case in gallery)


def test_the_json_is_strict_and_is_the_result(audited: Audited, out: Path) -> None:
    text = (out / "audit.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=pytest.fail)
    assert len(found.pop("checklist")) == len(CHECKLIST)
    assert found == json.loads(json.dumps(audited[0]))


def test_the_page_has_every_section_and_asks_the_network_for_nothing(page: Page, out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    assert page.stack == []
    sections = [section["id"] for section in page.every("section")]
    assert sections == ["summary", "cases", "accuracy", "agreement", "stages", "calibration",
                        "groups", "clinical", "robustness", "regions", "comparison", "difficult",
                        "checklist"]  # fmt: skip
    assert {link["href"] for link in page.every("a")} == {f"#{name}" for name in sections}
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    shown = re.sub(r"base64,[^\"]+", "", text)
    assert not re.search(r"\b(nan|NaN|None|inf)\b", shown)
    topics = {row[1]: row[2] for row in page.rows if row[0].startswith(("CLAIM", "TRIPOD"))}
    assert topics["robustness to changes of the image"] == "robustness"
    assert topics["where on the image the evidence lies"] == "regions"


def test_the_page_holds_the_pictures_of_the_cases(audited: Audited, page: Page) -> None:
    records = [shown for case in audited[2] for shown in (case.record, *case.neighbours)]
    sources = [(image["alt"], image["src"] or "") for image in page.every("img")]
    pictures = [each for each in sources if each[1].startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 2 * len(records) > 10
    assert len(sources) - len(pictures) == 7
    for words, source in pictures:
        assert words
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            assert (image.format, image.height) == ("JPEG", 240)


def test_the_page_shows_every_perturbation_and_every_region(audited: Audited, page: Page) -> None:
    for name in ("flip left-right", "inversion", "sex wrong"):
        assert len(page.row(name)) == 10
    for group in audited[0]["regions"]["groups"]:
        expected = [group["group"], str(group["n"]), f"{100 * group['area']:.1f}%"]
        assert expected in [row[:3] for row in page.rows]


def test_every_table_is_there_as_csv(audited: Audited, out: Path) -> None:
    result = audited[0]
    robustness = pd.read_csv(out / "robustness.csv", keep_default_na=False)
    assert robustness["family"].tolist() == ["flip", "inversion", "sex"]
    expected = [row["clinical"]["stressed"]["high"] for row in result["robustness"]["stresses"]]
    assert robustness["clinical_stressed_high"].tolist() == pytest.approx(expected)
    regions = pd.read_csv(out / "regions.csv")
    expected = [group["energy"]["value"] for group in result["regions"]["groups"]]
    assert regions["energy"].tolist() == pytest.approx(expected)
    uncertain = pd.read_csv(out / "uncertain.csv")
    assert len(uncertain) == len(result["uncertain"])


def test_an_interrupted_audit_is_taken_up_and_ends_like_an_uninterrupted_one(
    audited: Audited, exported: Path, folder: Path, out: Path, tmp_path: Path
) -> None:
    part = Path(shutil.copytree(out, tmp_path / "part"))
    lines = (part / PREDICTIONS).read_text(encoding="utf-8").splitlines(keepends=True)
    (part / PREDICTIONS).write_text("".join([lines[0], *lines[3:6]]), encoding="utf-8")
    lines = (part / STRESS).read_text(encoding="utf-8").splitlines(keepends=True)
    (part / STRESS).write_text("".join([*lines[:5], *lines[9:23]]), encoding="utf-8")
    for name in (AUDITED, REGIONS, "report.html", "audit.json"):
        (part / name).unlink()
    masks = folder / "cohort" / "masks"
    result, table, gallery = run(exported, folder, part, by=["site"], stress=True, regions=masks)
    assert result == audited[0]
    pd.testing.assert_frame_equal(table, audited[1], check_exact=True)
    shown, expected = (
        [(record.image_id, record.picture, record.overlay) for case in cases
         for record in (case.record, *case.neighbours)]
        for cases in (gallery, audited[2])
    )  # fmt: skip
    assert shown == expected


def count_work(patch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[str]]:
    """Count by file name how often an image is decoded from now on, and how often predicted."""
    decoded: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    open_image, predict = Image.open, Predictor.predict

    def count_decoding(file: Any, *args: Any, **options: Any) -> Image.Image:
        name = getattr(file, "name", file)
        if isinstance(name, (str, Path)):  # pictures in memory have no name
            decoded[Path(name).name] += 1
        return open_image(file, *args, **options)

    def count_prediction(self: Predictor, radiograph: Any, sex: Any = None) -> Any:
        predicted[radiograph.path.name] += 1
        return predict(self, radiograph, sex)

    patch.setattr(Image, "open", count_decoding)
    patch.setattr(Predictor, "predict", count_prediction)
    return decoded, predicted


def test_each_image_is_decoded_once_and_predicted_once_as_it_is(
    exported: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, predicted = count_work(monkeypatch)
    masks = folder / "cohort" / "masks"
    run(exported, folder, tmp_path, stress=True, regions=masks)
    names = {path.name for path in (folder / "images").iterdir()}
    assert decoded == dict.fromkeys(names, 1)
    cases = {f"{900001 + i}.png" for i in range(9)}
    without_reference = names - cases - {"900010.png"}
    assert predicted == {
        **dict.fromkeys(cases, 1 + len(FEW)), **dict.fromkeys(without_reference, 1)
    }  # fmt: skip


def test_images_of_a_finished_audit_are_predicted_only_for_their_saliency_maps(
    audited: Audited, exported: Path, folder: Path, out: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    again = Path(shutil.copytree(out, tmp_path / "again"))
    decoded, predicted = count_work(monkeypatch)
    _, _, gallery = run(exported, folder, again, stress=True)
    shown = {image.image_id for case in gallery for image in (case.record, *case.neighbours)}
    assert predicted == {f"{image_id}.png": 1 for image_id in shown}
    # Decoded for the acquisition characteristics, and again for the pictures.
    names = {path.name for path in (folder / "images").iterdir()}
    assert decoded == {name: 1 + (Path(name).stem in shown) for name in names}


def test_an_image_that_was_replaced_is_predicted_anew(
    exported: Path, folder: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    run(exported, folder, out, images=few, stress=True)
    before = pd.read_csv(out / STRESS).sort_values(["path", "family"])["predicted_months"]
    shutil.copy(few / "900002.png", few / "900001.png")
    _, predicted = count_work(monkeypatch)
    run(exported, folder, out, images=few, stress=True)
    after = pd.read_csv(out / STRESS).sort_values(["path", "family"])["predicted_months"]
    assert "1 images predicted again, since the file has changed" in caplog.text
    assert {name for name, n in predicted.items() if n > 1} == {"900001.png"}
    assert predicted["900001.png"] == 1 + len(FEW)
    is_changed = (before.to_numpy() != after.to_numpy()).tolist()
    assert is_changed == [True] * (1 + len(FEW)) + [False] * 3 * (1 + len(FEW))


def test_images_of_an_earlier_audit_that_are_gone_are_in_no_figure(
    audited: Audited, exported: Path, folder: Path, out: Path, few: Path, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(out, tmp_path / "again"))
    result, table, gallery = run(exported, folder, again, images=few)
    assert result["n"] == len(table) == len(gallery) == 4
    assert (result["n_unanswered"], result["n_without_reference"]) == (0, 0)
    # The earlier run's rows stay, that of the image it could not read among them.
    assert len(pd.read_csv(again / PREDICTIONS)) == 12 + 4


def test_without_stress_and_regions_the_page_has_no_such_sections(
    exported: Path, folder: Path, few: Path, tmp_path: Path
) -> None:
    found = run(exported, folder, tmp_path / "out", images=few, resamples=0)
    assert found[0]["robustness"] is found[0]["regions"] is None
    page = Page(save_audit(tmp_path / "out", *found).read_text(encoding="utf-8"))
    assert not {"robustness", "regions"} & {section["id"] for section in page.every("section")}
    assert page.row("CLAIM")[2] != ""
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert not written & {STRESS, REGIONS, "robustness.csv", "regions.csv"}


def test_what_cannot_be_audited_is_refused_before_an_image_is_predicted(
    exported: Path, folder: Path, tmp_path: Path
) -> None:
    texts = {
        "sexes": "id,sex\n900001,M\n", "strangers": "id,sex,boneage\n1,M,90\n",
        "status": "id,sex,boneage,status\n900001,M,90,insured\n",
        "boxes": "id,width,height,region\n900001,9,9,a\n",
        "other": "id,width,height,region,xmin,ymin,xmax,ymax\nx,100,100,a,5,5,50,50\n",
    }  # fmt: skip
    files = {name: tmp_path / f"{name}.csv" for name in [*texts, "gone"]}
    for name, text in texts.items():
        files[name].write_text(text)
    twice = Path(shutil.copytree(folder / "images", tmp_path / "twice"))
    (twice / "second").mkdir()
    shutil.copy(twice / "900001.png", twice / "second")
    for options, message in (
        ({"labels": files["sexes"]}, "has no bone age"),
        ({"labels": files["strangers"]}, "none of the 12 images is in the t"),
        ({"by": ["race"]}, "has no column 'race' to group by; found: id, boneage"),
        ({"by": ["sex"]}, "every figure is given by sex already"),
        ({"by": ["status"], "labels": files["status"]},
         "has a column 'status', and so have the predictions. Rename it there."),
        ({"regions": files["boxes"]}, "has no column 'xmin'"),
        ({"regions": files["gone"]}, "does not exist; expected a CSV of regi"),
        ({"regions": files["other"], "stress": True},
         "none of the 10 images has a region (first ids of reg"),
        ({"images": twice}, f"{twice / '900001.png'} and {twice / 'second' / '900001.png'}"),
    ):  # fmt: skip
        with pytest.raises(BoneAgeError) as caught:
            run(exported, folder, tmp_path / "out", **options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_regions_that_the_report_would_overwrite_are_refused(
    exported: Path, folder: Path, tmp_path: Path
) -> None:
    boxes = tmp_path / "regions.csv"
    boxes.write_text("id,width,height,region,xmin,ymin,xmax,ymax\n900001,100,100,a,5,5,50,50\n")
    for options in ({"regions": boxes}, {"labels": boxes}):
        with pytest.raises(BoneAgeError, match="lies among the tables to be written"):
            run(exported, folder, tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["regions.csv"]


def test_images_that_are_all_unreadable_are_one_line(
    exported: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "900001.png").write_text("no image")
    with pytest.raises(LabelError, match="has no prediction"):
        run(exported, folder, tmp_path / "out", images=tmp_path / "images")
