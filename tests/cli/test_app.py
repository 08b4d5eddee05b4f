import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from boneage.audit.perturbations import PERTURBATIONS
from boneage.cli.app import app, main, option_names
from boneage.cli.use_commands import EXAMPLE, EXAMPLE_YEARS
from boneage.config import Paths
from boneage.data.labels import find_labels
from boneage.files import locked
from boneage.inference.contract import CONTRACT_KEY, Contract
from boneage.inference.prediction import COLUMNS, columns_of_run
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import draw_image
from builders import ROOT, draw_radiograph, make_calibration, save_dicom

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
TINY = ["--image-size", "48", "--init", "none", "--epochs", "1", "--batch-size", "16",
        "--workers", "0", "--device", "cpu"]  # fmt: skip


@dataclass
class Said:
    """How a command ended and what it printed."""

    status: int
    out: str
    error: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Command = Callable[..., Said]


@pytest.fixture
def boneage(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, run in this process."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        return Said(main([str(argument) for argument in arguments]), *capsys.readouterr())

    return run


@pytest.fixture
def predict(boneage: Command, exported: Path) -> Command:
    """`boneage predict` with the exported model."""

    def run(*arguments: object, model: Path = exported) -> Said:
        return boneage("predict", *arguments, "--model", model, "--workers", "1")

    return run


@pytest.fixture
def site(exported: Path, tmp_path: Path) -> Path:
    """A calibration of the exported model."""
    make_calibration(Predictor(exported).contract.graph_sha256).save(tmp_path / "site.toml")
    return tmp_path / "site.toml"


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=ENV, capture_output=True, text=True, check=False
    )


def options(paths: Paths) -> list[str]:
    return ["--data", str(paths.data), "--processed", str(paths.processed),
            "--output", str(paths.output)]  # fmt: skip


def test_the_version_is_the_package_s(boneage: Command) -> None:
    said = boneage("--version")
    assert said.status == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", said.out)


@pytest.mark.performance
def test_help_loads_nothing_heavy_and_appears_at_once() -> None:
    code = "import sys, boneage.cli.app; boneage.cli.app.main(['--help']); print(*sys.modules)"
    loaded = python("-c", code).stdout.split()
    for heavy in ("torch", "pandas", "numpy", "matplotlib", "sklearn", "PIL"):
        assert heavy not in loaded

    def seconds(*arguments: str) -> float:
        started = time.perf_counter()
        assert python(*arguments).returncode == 0
        return time.perf_counter() - started

    # How fast this machine is, one of those imports tells.
    heavy_import = min(seconds("-c", "import pandas") for _ in range(5))
    assert min(seconds("-m", "boneage", "--help") for _ in range(5)) < heavy_import


def test_help_says_that_this_is_no_medical_device(boneage: Command) -> None:
    assert "Research use only, not a medical device" in " ".join(boneage("--help").out.split())


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [("train --epohcs 3", "--epochs"), ("trian", '"train"'), ("train --epochs many", "many")],
)
def test_wrong_usage_exits_with_2_and_suggests(
    boneage: Command, line: str, suggestion: str
) -> None:
    said = boneage(*line.split())
    assert said.status == 2
    assert suggestion in said.error


def test_a_user_s_error_is_one_line_and_exits_with_1(boneage: Command, tmp_path: Path) -> None:
    said = boneage("train", "--data", tmp_path / "nowhere")
    assert said.status == 1
    assert said.error.startswith("boneage: ")
    assert said.error.count("\n") == 1
    said = boneage("train", "--epochs", "0")
    assert said.status in (1, 2)
    assert "epochs is 0; expected 1 or more" in said.error


def test_an_error_of_the_disk_is_one_line(boneage: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said = boneage("phantom", tmp_path / "file" / "raw", "--n", "1")
    assert said.status == 1
    assert re.fullmatch("boneage: .*Not a directory.*", said.error.splitlines()[-1])


def test_an_install_without_the_training_extra_names_it(
    paths: Paths, boneage: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boneage.training.workflows", None)
    said = boneage("train", *options(paths))
    assert said.status == 1
    assert "pip install '.[train]'" in said.error


def test_one_name_of_an_option_means_one_thing() -> None:
    types: dict[str, set[str]] = {}
    commands = [name for name in app if not name.startswith("-")]
    assert len(commands) == 10
    for command in commands:
        for argument in app[command].assemble_argument_collection():
            if argument.names[0].startswith("--"):
                types.setdefault(argument.names[0], set()).add(str(argument.hint | None))
    assert {name: hints for name, hints in types.items() if len(hints) > 1} == {}
    assert "n" in option_names()


@pytest.mark.slow
def test_settings_come_from_defaults_then_file_then_flags(
    paths: Paths, tmp_path: Path, boneage: Command
) -> None:
    from boneage.training.checkpoint import load_checkpoint

    file = tmp_path / "run.toml"
    file.write_text(
        f'data = "{paths.data}"\nprocessed = "{paths.processed}"\nuse-processed = true\n'
        'image_size = 48\ninit = "none"\nepochs = 7\nbatch_size = 16\nworkers = 0\n'
        'device = "cpu"\n'
    )
    said = boneage("train", "--config", file, "--output", paths.output, "--epochs=1")
    assert said.status == 0, said.error
    recipe = load_checkpoint(paths.output / "models/best_model.pt").recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (1, 16, 1e-4)
    assert boneage("evaluate", f"--config={file}", "--output", paths.output).status == 0


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [("epohcs = 3\n", 1, "did you mean 'epochs'"), ('epochs = "many"\n', 2, "many")],
)
def test_a_bad_config_file_is_an_error(
    tmp_path: Path, boneage: Command, text: str, status: int, message: str
) -> None:
    (tmp_path / "run.toml").write_text(text)
    said = boneage("train", "--config", tmp_path / "run.toml")
    assert said.status == status
    assert message in said.error


def test_config_without_a_file_is_an_error(boneage: Command) -> None:
    said = boneage("train", "--config")
    assert said.status == 1
    assert "--config expects" in said.error


@pytest.mark.slow
def test_training_prints_figures_by_sex_and_both_approaches(paths: Paths, boneage: Command) -> None:
    said = boneage("train", *options(paths), "--use_processed", *TINY)
    assert said.status == 0
    for word in ("val split, n = 12", "test split, n = 12", "MAE", "QWK", "by the stage head",
                 "by thresholds on the age", "male", "female", "baseline"):  # fmt: skip
        assert word in said.out
    metrics = json.loads((paths.output / "metrics_test.json").read_text())
    assert f"{metrics['regression']['mae_months']:.2f}" in said.out
    model = paths.output / "model.onnx"
    said = boneage("export", "--output", paths.output, "--out", model)
    assert said.status == 0
    assert "differs from its checkpoint by at most" in said.out
    assert model.is_file()


@pytest.mark.slow
def test_the_report_s_command_lines_run_verbatim(raw: Path, tmp_path: Path) -> None:
    """In a folder that holds nothing but the scripts and data/raw, with the defaults."""
    for name in ("main.py", "preprocess.py", "gradcam_demo.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(raw, tmp_path / "data" / "raw")
    radiographs = sorted((tmp_path / "data/raw/boneage-training-dataset").rglob("*.png"))
    for image in radiographs[40:]:
        image.unlink()  # fewer images, since the defaults are the report's 256 px and 10 epochs
    (tmp_path / "run.toml").write_text('epochs = 1\ninit = "none"\nimage_size = 64\n')

    def run(line: str, *extra: str) -> str:
        script, *arguments = line.removeprefix("python ").split()
        result = python(script, *arguments, *extra, cwd=tmp_path)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    assert "40 images: 40 reduced to 256 px" in run("python preprocess.py")
    run("python main.py --mode train --use_processed", "--config", "run.toml")
    figures = run("python main.py --mode evaluate --use_processed")
    assert "test split, n = 6" in figures
    pictures = run("python gradcam_demo.py").split()
    assert "output/plots/gradcam_example_1.png" in pictures
    for name in ("scatter_pred_vs_true_test.png", "confusion_matrix_test.png"):
        assert (tmp_path / "output/plots" / name).stat().st_size > 10_000


def test_main_py_explains_its_mode() -> None:
    bare = python("main.py")
    assert bare.returncode == 2
    assert "usage: python main.py --mode" in bare.stderr
    assert python("main.py", "--help").returncode == 0
    wrong = python("main.py", "--mode=predict")
    assert wrong.returncode == 2
    assert "--mode is 'predict'; expected train or evaluate" in wrong.stderr
    assert python("main.py", "--mode", "train", "--nonsense").returncode == 2


def test_preprocess_reports_what_it_did(raw: Path, tmp_path: Path, boneage: Command) -> None:
    data = Path(shutil.copytree(raw, tmp_path / "raw"))
    broken, second, *_ = sorted((data / "boneage-training-dataset").rglob("*.png"))
    broken.write_bytes(b"no image")
    command = ["preprocess", "--data", data, "--processed", tmp_path / "processed",
               "--workers", "1", "--image-size", "32"]  # fmt: skip
    said = boneage(*command)
    assert said.status == 0
    assert "80 images: 79 reduced to 32 px, 0 up to date, 1 broken" in said.out
    assert f"broken: {broken.stem}: {broken} is not an image" in said.out
    said = boneage(*command, "--invert", "always")
    assert said.status == 0
    assert f"inverted because bones were dark: {second.stem}" in said.out


def test_phantom_draws_the_rsna_layout(tmp_path: Path, boneage: Command) -> None:
    out = tmp_path / "raw"
    said = boneage("phantom", out, "--n", "3", "--height", "96", "--workers", "1")
    assert said.status == 0
    assert "not patient data" in said.out
    labels = pd.read_csv(out / "boneage-training-dataset.csv")
    assert list(labels.columns) == ["id", "boneage", "male"]
    assert len(list((out / "boneage-training-dataset/boneage-training-dataset").iterdir())) == 3


@pytest.mark.slow
def test_an_interrupted_training_says_how_to_continue(raw: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "boneage", "train", "--data", str(raw), "--output",
               str(tmp_path / "output"), *TINY]  # fmt: skip
    command[command.index("--epochs") + 1] = "500"
    # A background job of a shell ignores SIGINT, and so would its children: undo that here.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        history = tmp_path / "output/history.csv"
        deadline = time.monotonic() + 120
        while not history.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume continues" in error
    assert "Traceback" not in error
    assert (tmp_path / "output/models/last.pt").is_file()


def copy_images(raw: Path, folder: Path, n: int) -> Path:
    """Copy the first images of the table."""
    folder.mkdir()
    for image_id in pd.read_csv(find_labels(raw))["id"].head(n):
        shutil.copy(next(raw.rglob(f"{image_id}.png")), folder)
    return folder


@pytest.fixture
def radiographs(raw: Path, tmp_path: Path) -> Path:
    """A folder of three images."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name, image in zip(
        ("1.png", "2.png", "below/3.png"), sorted(raw.rglob("*.png")), strict=False
    ):
        shutil.copy(image, folder / name)
    return folder


def test_one_image_is_described_in_full(predict: Command, radiographs: Path, site: Path) -> None:
    said = predict(radiographs / "1.png", "--sex", "F", "--calibration", site)
    assert said.status == 0
    assert said.lines[0] == str(radiographs / "1.png")
    assert [line.split()[0] for line in said.lines[1:5]] == ["bone", "interval", "stage", "sex"]
    assert re.search(r"\d+ years? \d+ months? to \d+ years? \d+ months? \(90%", said.lines[2])
    assert said.lines[4].endswith("female")
    assert said.lines[-1].strip() == "Research use only, not a medical device."


def test_the_example_is_predicted_in_full_without_any_image_at_hand(
    tmp_path: Path, boneage: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = boneage("predict", "--example")
    assert said.status == 0
    assert [line.split()[0] for line in said.lines[1:6]] == [
        "bone", "interval", "stage", "sex", "reference",
    ]  # fmt: skip
    assert "  sex        male\n  reference  11 years 0 months, Child\n" in said.out
    assert "computer drawing" in said.error
    assert not list(tmp_path.iterdir())


def test_the_prediction_of_the_example_agrees_with_its_age_and_its_map_is_written(
    tmp_path: Path, boneage: Command
) -> None:
    said = boneage("predict", "--example", "--json", "--heatmap", tmp_path / "maps")
    assert said.status == 0
    (row,) = json.loads(said.out)
    assert (row["status"], row["reference_years"]) == ("ok", EXAMPLE_YEARS)
    assert row["predicted_low_years"] < EXAMPLE_YEARS < row["predicted_high_years"]
    assert (tmp_path / "maps" / EXAMPLE.name).stat().st_size > 10_000


@pytest.mark.parametrize(("word", "sex"), [("girl", "F"), ("unknown", None)])
def test_the_sex_of_the_example_can_be_changed(
    boneage: Command, word: str, sex: str | None
) -> None:
    (row,) = json.loads(boneage("predict", "--example", "--sex", word, "--json").out)
    assert row["sex"] == sex


def test_the_example_is_the_drawing_that_its_notice_describes() -> None:
    notice = (EXAMPLE.parent / "SYNTHETIC.txt").read_text()
    assert "NOT patient data" in notice
    assert 'draw_image(132, "M", numpy.random.default_rng(14), height=512)' in notice
    drawn = draw_image(132, "M", np.random.default_rng(14), height=512).image
    shown = np.asarray(Image.open(EXAMPLE))
    assert shown.shape == drawn.shape
    assert np.abs(shown.astype(int) - drawn.astype(int)).max() <= 2  # rounding of other machines


def test_several_images_are_a_line_each_and_a_count(predict: Command, radiographs: Path) -> None:
    (radiographs / "notes.txt").write_text("text")
    said = predict(radiographs)
    assert said.status == 0
    assert [line.split(":")[0] for line in said.lines[:3]] == [
        str(radiographs / name) for name in ("1.png", "2.png", "below/3.png")
    ]
    assert said.lines[3].startswith("3 images: 3 ok; 1 other file left out. Research use only")
    table = radiographs.parent / "table.csv"
    table.write_text("id,sex\n1,M\n")
    said = predict(radiographs, "--table", table)
    assert said.status == 0
    last = said.lines[-1]
    assert last.startswith("3 images: 3 ok; 2 not in the table; 1 other file left out.")


def test_an_unreadable_image_is_named_the_run_goes_on_and_the_status_is_1(
    predict: Command, radiographs: Path, tmp_path: Path
) -> None:
    (radiographs / "2.png").write_text("no image")
    said = predict(radiographs, "--out", tmp_path / "out.csv")
    assert said.status == 1
    assert "3 images: 2 ok, 1 error" in said.lines[-1]
    assert pd.read_csv(tmp_path / "out.csv")["status"].tolist() == ["ok", "error", "ok"]
    said = predict(radiographs / "2.png")
    assert said.status == 1
    assert said.out.startswith(f"error: {radiographs / '2.png'} is not an image")
    said = predict(radiographs / "gone.png")
    assert said.status == 1
    assert said.out.endswith("gone.png does not exist.\n")


def test_json_is_an_array_of_rows_and_nothing_else_on_stdout(
    predict: Command, radiographs: Path
) -> None:
    said = predict(radiographs, "--json", "--sex", "M")
    assert said.status == 0
    rows = json.loads(said.out)
    assert [row["image_id"] for row in rows] == ["1", "2", "3"]
    assert all(tuple(row) == columns_of_run(with_reference=False) for row in rows)
    assert (rows[0]["predicted_low_years"], rows[0]["sex"]) == (None, "M")
    assert "3 images: 3 ok" in said.error
    (radiographs / "1.png").write_text("no image")
    said = predict(radiographs / "1.png", "--json")
    assert said.status == 1
    (row,) = json.loads(said.out)
    assert (row["status"], row["predicted_years"]) == ("error", None)


def test_out_holds_one_row_per_image_and_later_runs_of_the_same_model_continue_it(
    predict: Command, radiographs: Path, site: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    assert f"3 images: 3 ok; in {out}." in predict(radiographs, "--out", out).out
    whole = out.read_text()
    assert whole.splitlines()[0] == ",".join(columns_of_run(with_reference=False))
    out.write_text(whole[:-30])
    said = predict(radiographs, "--out", out)
    assert said.status == 0
    assert "1 image: 1 ok; 2 predicted before;" in said.out
    assert out.read_text() == whole
    said = predict(radiographs, "--out", out)
    assert "0 images: none left to predict; 3 predicted before" in said.out
    assert json.loads(predict(radiographs, "--json", "--out", out).out) == []
    said = predict(radiographs, "--out", out, "--calibration", site)
    assert said.status == 1
    assert "holds predictions of calibration_sha256 none, this run has" in said.error
    shutil.copy(radiographs / "below" / "3.png", radiographs / "1.png")
    said = predict(radiographs, "--out", out)
    assert said.status == 0
    assert "2 predicted before; 1 predicted again, because the file has changed;" in said.out
    assert pd.read_csv(out)["image_sha256"].nunique() == 2


def test_a_rejected_image_is_predicted_on_demand(predict: Command, tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "ct.dcm", draw_radiograph(), Modality="CT")
    (row,) = json.loads(predict(path, "--json").out)
    assert (row["status"], row["predicted_years"]) == ("reject", None)
    (row,) = json.loads(predict(path, "--json", "--force").out)
    assert (row["status"], row["reason_codes"][:2]) == ("warn", ["not_a_radiograph", "forced"])
    assert row["predicted_years"] is not None


def test_out_is_written_by_one_run_at_a_time(
    predict: Command, radiographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    with locked(out):
        said = predict(radiographs, "--out", out)
    assert said.status == 1
    assert "out.csv is being written by another run" in said.error
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "sexes", "years"),
    [
        ("id,boneage,male\n1,120,True\n2,216,False\n", ["M", "F", None], [10.0, 18.0, None]),
        ("Case ID,Sex\n1.png,F\n3,M\n", ["F", None, "M"], None),
    ],
)
def test_a_table_gives_the_sex_and_the_age_where_it_has_them(
    predict: Command, radiographs: Path, tmp_path: Path,
    text: str, sexes: list[str | None], years: list[float | None] | None,
) -> None:  # fmt: skip
    (tmp_path / "table.csv").write_text(text)
    rows = json.loads(predict(radiographs, "--table", tmp_path / "table.csv", "--json").out)
    assert [row["sex"] for row in rows] == sexes
    assert tuple(rows[0]) == (COLUMNS if years else columns_of_run(with_reference=False))
    assert [row.get("reference_years") for row in rows] == (years or [None] * 3)


def test_the_table_overrides_the_sex_option_and_both_override_the_file(
    predict: Command, radiographs: Path, tmp_path: Path
) -> None:
    pixels = np.asarray(Image.open(radiographs / "1.png").convert("L"))
    save_dicom(radiographs / "4.dcm", pixels, PatientSex="M")
    (tmp_path / "table.csv").write_text("id,sex\n1,F\n2,U\n")

    def sexes(*arguments: object) -> list[str | None]:
        return [row["sex"] for row in json.loads(predict(radiographs, "--json", *arguments).out)]

    table = ("--table", tmp_path / "table.csv")
    assert sexes() == [None, None, "M", None]
    assert sexes("--sex", "unknown") == [None, None, None, None]
    assert sexes(*table, "--sex", "F") == ["F", None, "F", "F"]
    assert sexes(*table) == ["F", None, "M", None]


def test_heat_maps_are_written_on_request(
    predict: Command, radiographs: Path, tmp_path: Path
) -> None:
    assert predict(radiographs, "--heatmap", tmp_path / "maps").status == 0
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["1.png", "2.png", "3.png"]


def test_predictions_are_printed_above_the_progress_bar(exported: Path, radiographs: Path) -> None:
    seen = subprocess.run(
        [sys.executable, "-u", "-m", "boneage", "predict", radiographs, "--model", exported],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, text=True, bufsize=1,
    ).stdout  # fmt: skip
    assert "image/s" in seen
    for name in ("1.png", "2.png", "3.png"):
        assert re.search(rf"^\S*{name}: .* sex unknown", seen, re.MULTILINE)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes there say nothing of their reader")
def test_a_closed_pipe_is_not_reported_as_an_error(exported: Path, radiographs: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "boneage", "predict", radiographs, "--model", exported],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        said = running.stderr.read()
    assert "image/s" in said
    assert "roken" not in said
    assert "Exception" not in said


def test_a_model_without_a_map_is_refused_for_heat_maps(
    predict: Command, tmp_path: Path, exported: Path, radiographs: Path
) -> None:
    mute = Path(shutil.copy(exported, tmp_path / "mute.onnx"))
    model = onnx.load(mute)
    (place,) = (i for i, output in enumerate(model.graph.output) if output.name == "age_map")
    del model.graph.output[place]
    (entry,) = (entry for entry in model.metadata_props if entry.key == CONTRACT_KEY)
    contract = Contract.from_json(entry.value)
    outputs = tuple(name for name in contract.outputs if name != "age_map")
    entry.value = replace(contract, outputs=outputs).to_json()
    onnx.save(model, mute)
    said = predict(radiographs, "--heatmap", tmp_path / "maps", model=mute)
    assert said.status == 1
    assert f"{mute} gives no map of the age. Leave --heatmap out." in said.error
    assert not (tmp_path / "maps").exists()


def test_an_error_before_the_prediction_is_one_line(
    predict: Command, radiographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "table.csv").write_text("id,sex\n77,F\n")
    table, gone = tmp_path / "table.csv", tmp_path / "gone.csv"
    for arguments, status, message in (
        ((), 1, "there is nothing to predict; pass images or folders, or --example."),
        (("--example", radiographs), 1, "--example brings its own image."),
        (("--example", "--table", "table.csv"), 1, "--example brings its own image."),
        ((radiographs / "below", "--out", radiographs), 1,
         f"{radiographs} is no ordinary file, so it cannot be taken up."),
        ((radiographs, "--sex", "diverse"), 2,
         "sex is 'diverse'; expected M or F (also male, female, boy, girl,"),
        ((radiographs, "--table", table), 1, "none of the 3 images is in the table"),
        ((radiographs, "--table", gone), 1, "gone.csv does not exist"),
        ((radiographs, "--calibration", tmp_path / "gone.toml"), 1, "gone.toml does not exist"),
    ):  # fmt: skip
        said = predict(*arguments)
        assert said.status == status
        assert message in said.error
        assert said.error.count("\n") == 1
    assert not list(tmp_path.glob(".*.part"))
    said = predict(radiographs, model=tmp_path / "gone.onnx")
    assert said.status == 1
    assert "gone.onnx does not exist; expected a file of" in said.error


def test_an_invalid_file_name_and_a_damaged_dicom_image_print_one_line_each(
    exported: Path, radiographs: Path
) -> None:
    if sys.platform == "linux":
        shutil.copy(radiographs / "1.png", radiographs / os.fsdecode(b"caf\xe9.png"))
    whole = save_dicom(radiographs / "4.dcm", np.eye(90, dtype=np.uint8), compress=RLELossless)
    whole.write_bytes(whole.read_bytes()[:-9])
    result = python("-m", "boneage", "predict", str(radiographs), "--model", str(exported))
    assert result.returncode == 1
    assert "4.dcm cannot be read as DICOM: it is cut short." in result.stdout
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    assert "4.dcm" not in result.stderr


def test_a_model_is_calibrated_on_labelled_images(
    boneage: Command, predict: Command, exported: Path, raw: Path, tmp_path: Path
) -> None:
    labels = pd.read_csv(find_labels(raw))
    labels.head(36).to_csv(tmp_path / "few.csv", index=False)
    images, site = copy_images(raw, tmp_path / "images", 34), tmp_path / "site.toml"
    (images / f"{labels['id'][0]}.png").write_text("no image")
    said = boneage("calibrate", tmp_path / "few.csv", "--model", exported, "--out", site,
                   "--images", images, "--workers", "1")  # fmt: skip
    assert said.status == 0
    assert said.out.startswith("33 images\n  bias, male")
    assert re.search(r"^left out: \S+ is not an image", said.out, re.MULTILINE)
    assert f"left out: 2 labelled ids without an image in {images}\n" in said.out
    assert f"boneage predict --calibration {site}" in said.out
    said = predict(images / f"{labels['id'][1]}.png", "--calibration", site)
    assert said.status == 0
    assert "90% prediction interval" in said.out


def test_a_calibration_without_its_images_or_ages_is_an_error(
    boneage: Command, exported: Path, radiographs: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    command = ["calibrate", table, "--model", exported, "--images"]
    for text, folder, message in (
        ("id,sex\n1,F\n", radiographs,
         f"none of the 3 images in {radiographs} has an age in {table}. Pass"),
        ("id,sex\n9,F\n", radiographs, "none of the 3 images is in the table"),
        ("id,sex,boneage\n1,F,90\n", radiographs / "gone",
         "gone is not a folder; expected the images of"),
        ("id,sex,boneage\n1,F,90\n", radiographs, "1 labelled images are too few"),
    ):  # fmt: skip
        table.write_text(text)
        said = boneage(*command, folder, "--out", tmp_path / "site.toml")
        assert said.status == 1
        assert message in said.error
    assert not (tmp_path / "site.toml").exists()
    said = boneage(*command, radiographs, "--out", table)
    assert said.status == 1
    assert f"--out is {table}, the table itself" in said.error
    assert table.read_text() == text


TABLE = "image_id,sex,site,reference_months,predicted_years\n" + "".join(
    f"{i},{'MF'[i % 2]},{'ab'[i % 3 == 0]},{60 + 2 * i},{(61 + 2 * i + i % 5) / 12:.4f}\n"
    for i in range(70)
)


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    """Two tables of one name."""
    paths = [tmp_path / folder / "table.csv" for folder in ("ours", "theirs")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(TABLE)
    return paths


def test_predictions_are_audited_into_a_page_and_its_figures(
    boneage: Command, tables: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "evidence"
    said = boneage("audit", tables[0], "--by", "site", tables[1], "--out", out, "--resamples", "50")
    assert (said.status, said.error) == (0, "")
    assert said.out.startswith("ours/table.csv, n = 70\n  MAE   3.00 [")
    assert said.out.endswith(f"report in {out / 'report.html'}\n")
    result = json.loads((out / "audit.json").read_text())
    assert result["n"] == 70
    assert result["accuracy"]["bias_months"]["value"] == pytest.approx(3.0, abs=0.01)
    assert {"a", "b"} < {group["group"] for group in result["groups"]}
    (row,) = result["comparison"]
    assert (row["first"], row["second"]) == ("ours/table.csv", "theirs/table.csv")


def test_one_case_is_audited_without_an_interval(boneage: Command, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("".join(TABLE.splitlines(keepends=True)[:2]))
    said = boneage("audit", tmp_path / "one.csv", "--out", tmp_path / "out")
    assert said.status == 0
    assert "  MAE   1.00 months\n" in said.out


@pytest.mark.parametrize("is_full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_images_are_predicted_and_audited_and_on_request_stressed_and_their_regions_measured(
    boneage: Command, exported: Path, raw: Path, site: Path, tmp_path: Path, is_full: bool
) -> None:
    images, out, boxes = copy_images(raw, tmp_path / "images", 4), tmp_path / "o", tmp_path / "b"
    first, second, broken, _ = (path.stem for path in sorted(images.iterdir()))
    shutil.copy(images / f"{first}.png", images / "stranger.png")
    (images / f"{broken}.png").write_text("no image")
    boxes.write_text(
        "id,width,height,region,xmin,ymin,xmax,ymax\n"
        + "".join(f"{image_id},100,100,wrist,30,60,70,95\n" for image_id in (first, second))
    )
    said = boneage("audit", "--images", images, "--labels", find_labels(raw), "--out", out,
                   "--model", exported, "--calibration", site, "--resamples", "20",
                   "--workers", "1", *(["--stress", "--regions", boxes] * is_full))  # fmt: skip
    assert said.status == 0
    assert f"report in {out / 'report.html'}" in said.out
    result = json.loads((out / "audit.json").read_text(), parse_constant=pytest.fail)
    assert (result["n"], result["n_unanswered"], result["n_without_reference"]) == (3, 1, 1)
    assert result["accuracy"]["coverage"]["value"] is not None
    assert (result["robustness"] is not None) == (result["regions"] is not None) == is_full
    if is_full:
        assert len(result["robustness"]["stresses"]) == len(PERTURBATIONS)
        assert result["regions"]["groups"][1]["group"] == "wrist"
        assert {"robustness.csv", "regions.csv"} <= {path.name for path in out.iterdir()}


def test_an_audit_without_inputs_or_of_contradicting_inputs_is_one_line(
    boneage: Command, tables: list[Path], raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "sexes.csv").write_text("id,sex\n1,F\n")
    table, images, labels = tables[0], ["--images", raw], ["--labels", find_labels(raw)]
    either = "pass either CSV files of predictions, or --images with --labels"
    for arguments, status, message in (
        ([], 1, either),
        (images, 1, either),
        (labels, 1, either),
        ([table, *labels], 1, either),
        ([table, *images, *labels], 1, either),
        (["--stress"], 1, either),
        ([*images, "--labels", tmp_path / "sexes.csv"], 1, "sexes.csv has no bone age"),
        ([table, table], 1, "table.csv is given twice"),
        ([table, "--by", "race"], 1, "has no column 'race'"),
        ([table, "--stress"], 1, "--stress and --regions need the images; pass --images with"),
        ([table, "--regions", "boxes.csv"], 1, "--stress and --regions need the images"),
        ([table, "--resamples", "-1"], 2, "--resamples"),
        ([tmp_path / "gone.csv"], 1, "gone.csv does not exist"),
    ):
        said = boneage("audit", *arguments, "--out", tmp_path / "out")
        assert said.status == status
        assert message in said.error
        assert said.error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_audit_does_not_overwrite_its_inputs(
    boneage: Command, tables: list[Path], tmp_path: Path
) -> None:
    table = Path(shutil.copy(tables[0], tmp_path / "groups.csv"))
    for inputs in ([table], [tables[1], table]):
        said = boneage("audit", *inputs, "--out", tmp_path, "--resamples", "0")
        assert said.status == 1
        assert "groups.csv lies among the tables to be written" in said.error
    assert table.read_text() == TABLE
    assert [path.name for path in tmp_path.glob("*.*")] == ["groups.csv"]


def test_an_audit_without_its_libraries_names_the_extra_that_brings_them(
    tables: list[Path], tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules['jinja2'] = None; "
        "from boneage.cli.app import main; sys.exit(main())"
    )
    result = python("-c", code, "audit", str(tables[0]), "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert result.stderr == (
        "boneage: jinja2 is not installed; this command needs pip install '.[audit]'.\n"
    )


def test_images_of_the_same_name_need_ids_with_folders(
    predict: Command, radiographs: Path, tmp_path: Path
) -> None:
    for name, number in (("patientA", 1), ("patientB", 2)):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(radiographs / f"{number}.png", tmp_path / "in" / name / "00001.png")
    table = tmp_path / "sexes.csv"
    table.write_text("id;sex\n00001;boy\n")
    said = predict(tmp_path / "in", "--table", table)
    assert said.status == 1
    assert "the table's id '00001' fits" in said.error
    table.write_text("id;sex\npatientA/00001.png;boy\npatientC/00001;girl\n")
    said = predict(tmp_path / "in", "--table", table, "--json")
    assert [(row["image_id"], row["sex"]) for row in json.loads(said.out)] == [
        ("patientA/00001", "M"), ("patientB/00001", None),
    ]  # fmt: skip
    assert "; 1 not in the table; 1 row of the table without an image." in said.error


@pytest.fixture(scope="module")
def run_and_export(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run on the cohort, whose validation part has 12 images, and its export."""
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", "--data", str(raw), "--output", str(folder / "run"), *TINY]) == 0
    plain = folder / "plain.onnx"
    assert main(["export", "--output", str(folder / "run"), "--out", str(plain)]) == 0
    return folder / "run", plain


def test_a_run_s_own_validation_part_calibrates_it(
    boneage: Command, run_and_export: tuple[Path, Path], raw: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, plain = run_and_export
    command = ["calibrate", "--images", raw, "--model", plain, "--part", "val",
               "--output", run, "--out", tmp_path / "site.toml"]  # fmt: skip
    said = boneage(*command)
    assert said.status == 1
    assert "12 labelled images are too few to calibrate on; expected 20" in said.error
    monkeypatch.setattr("boneage.inference.calibration_fit.MIN_IMAGES", 12)
    said = boneage(*command)
    assert said.status == 0
    assert said.out.startswith("12 images\n")
    assert "without a" not in said.out
    assert "with 12 images, intervals meant to hold 90% of new references may hold" in said.out


def test_a_part_of_another_split_is_refused(
    boneage: Command, run_and_export: tuple[Path, Path], raw: Path, tmp_path: Path
) -> None:
    run, plain = run_and_export
    command = ["calibrate", "--images", raw, "--model", plain, "--part", "val", "--output"]
    text = (run / "split.csv").read_text()
    (tmp_path / "split.csv").write_text(text.replace(",val", ",x").replace(",test", ",val"))
    for arguments, message in (
        ([*command, tmp_path / "gone"], "split.csv does not exist; expected the split of a train"),
        ([*command, tmp_path], "is not the split that the model was trained with"),
        (["calibrate", "--part", "val"], "pass a table of labels, or --images with a folder"),
    ):
        said = boneage(*arguments)
        assert said.status == 1
        assert message in said.error


@pytest.mark.slow
def test_export_logs_its_own_steps_and_not_the_exporter_s(
    run_and_export: tuple[Path, Path], tmp_path: Path
) -> None:
    run, _ = run_and_export
    found = python("-m", "boneage", "export", "--output", str(run), "--out", str(tmp_path / "m"))
    assert found.returncode == 0
    lines = [line for line in found.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert "translating the network to ONNX" in lines
    assert all(line.startswith(("translating", "comparing", "phantom", "draw", "compare"))
               for line in lines), lines  # fmt: skip
    assert found.stdout.count("\n") == 1
