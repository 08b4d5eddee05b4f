"""What several tests build: models, files, prediction tables, and a reader of pages."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFilter

from boneage.config import Recipe
from boneage.data.labels import find_images, find_labels
from boneage.evaluation.prediction_table import Predictions, read_all
from boneage.imaging.geometry import Affine
from boneage.imaging.preprocess import Preprocessing
from boneage.imaging.radiograph import Radiograph
from boneage.inference.calibration import Calibration, Spread
from boneage.phantom.cohort import draw_image
from boneage.training.checkpoint import Checkpoint
from boneage.training.model import BoneAgePredictor

ROOT = Path(__file__).parents[1]

TINY = {"image_size": 48, "init": "none", "batch_size": 16, "epochs": 2, "learning_rate": 1e-3}


def load_script(path: str) -> Any:
    """Load a script of the repository that is no part of the package; it may import its peers."""
    if str((ROOT / path).parent) not in sys.path:
        sys.path.append(str((ROOT / path).parent))
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_small(read_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Make the recipes of `train_weights.py` so small that they take seconds."""

    def read(name: str, **changes: Any) -> Recipe:
        return replace(
            read_recipe(name, **changes), image_size=64, epochs=1, batch_size=8,
            backbone="timm:test_resnet", output_stride=32, hold_out=(), split_sha256=None,
            synthetic_images=10 if name == "boneage" else 0,
        )  # fmt: skip

    return read


def write_sizes(raw: Path, folder: Path) -> tuple[Path, Path]:
    """Write all images of a folder at 100 px, and every fourth as it is; give both folders."""
    small, larger = folder / "small", folder / "larger"
    small.mkdir()
    larger.mkdir()
    for i, (image_id, path) in enumerate(find_images(raw).items()):
        Image.open(path).resize((100, 100)).save(small / f"{image_id}.png")
        if i % 4 == 0:
            shutil.copy(path, larger / f"{image_id}.png")
    shutil.copy(find_labels(raw), small / "labels.csv")
    return small, larger


UNCHANGED = Affine.scaling(1.0, 1.0)
"""The map that moves nothing."""


def make_radiograph(height: int, width: int, *, was_inverted: bool = False) -> Radiograph:
    """A radiograph that shows a ramp of grey values."""
    pixels = np.linspace(0.0, 1.0, height * width, dtype=np.float32).reshape(height, width)
    return Radiograph(pixels, "7.png", "7", 8, was_inverted)


def make_checkpoint(*, stored_size: int | None = 64, **settings: Any) -> Checkpoint:
    """A model that nobody trained, with statistics and sex weights as if somebody had."""
    torch.manual_seed(0)
    recipe = Recipe(image_size=48, init="none", **settings)
    model = BoneAgePredictor.from_recipe(recipe)
    model.train()(torch.rand(8, 3, 48, 48), torch.zeros(8))
    for name, parameter in model.named_parameters():
        if "sex_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return Checkpoint(model.eval(), recipe, Preprocessing.of(recipe, stored_size), {"epoch": 3})


def make_calibration(graph_sha256: str, **changes: Any) -> Calibration:
    """A calibration that makes boys 10 years older, girls 11 and others 12."""
    flat = (0.0,) * 12
    values = Calibration(
        graph_sha256, 300, 0.9, -10.0, -11.0, -12.0, 2.0, 1.0, Spread(flat, 1.5), Spread(flat, 2.5)
    )
    return replace(values, **changes)


def save_dicom(
    path: Path, pixels: npt.NDArray[Any], *, compress: str | None = None, **tags: Any
) -> Path:
    """Write pixels as an uncompressed or compressed DICOM file, with further tags."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    if compress is not None:
        dataset.compress(compress)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


EMPTY = {"meta", "link", "img", "br", "hr", "input"}

EVIL = '<script>alert("x")</script> $\\bad{$'


class Page(HTMLParser):
    """Tags in their order, the text of cells by row, and whether all that opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.stack[-2:]):  # a link in a cell is the cell's text
            self.rows[-1][-1] += data

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first)


def make_full_table(n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    reference = rng.uniform(20.0, 220.0, n).round(1)
    highest = rng.uniform(0.5, 1.0, n).round(3)
    stage = np.where(reference < 144, 0, np.where(reference <= 216, 1, 2))
    is_stage = stage[:, None] == np.arange(3)
    p = np.where(is_stage, highest[:, None], (1 - highest[:, None]) / 2)
    predicted = (reference + rng.normal(2.0, 9.0, n)).round(1)
    return pd.DataFrame(
        {"image_id": np.arange(n), "sex": rng.choice(["M", "F", ""], n),
         "reference_months": reference, "predicted_months": predicted,
         "predicted_low_months": predicted - 15, "predicted_high_months": predicted + 15,
         "p_child": p[:, 0], "p_adolescent": p[:, 1], "p_adult": p[:, 2],
         "chronological_age_months": reference, "site": np.where(np.arange(n) < 30, EVIL, "b")}
    )  # fmt: skip


def make_biased(n: int = 400, girls: float = 10.0, boys: float = -9.2) -> pd.DataFrame:
    """A model that makes girls too old and boys too young, by about as much."""
    rng = np.random.default_rng(1)
    sex = np.where(np.arange(n) % 2 == 0, "M", "F")
    reference = rng.uniform(60.0, 200.0, n).round(1)
    error = np.where(sex == "F", girls, boys) + rng.normal(0.0, 7.0, n)
    return pd.DataFrame(
        {"image_id": np.arange(n), "sex": sex, "reference_months": reference,
         "predicted_months": (reference + error).round(2)}
    )  # fmt: skip


def add_intervals(table: pd.DataFrame, covered: Any) -> pd.DataFrame:
    """Intervals of one width, which hold the reference where `covered` says so."""
    middle = table["reference_months"] + np.where(covered, 0.0, 30.0)
    return table.assign(predicted_low_months=middle - 20, predicted_high_months=middle + 20)


def make_plain_table(n: int = 400, seed: int = 0, **columns: Any) -> pd.DataFrame:
    """Predictions of a model that is worse on girls."""
    rng = np.random.default_rng(seed)
    sex = rng.choice(["M", "F"], n)
    reference = rng.uniform(12.0, 225.0, n).round(1)
    error = rng.normal(1.0, np.where(sex == "F", 14.0, 6.0))
    predicted = (reference + error).clip(1.0, 240.0).round(1)
    return pd.DataFrame(
        {"image_id": np.arange(n), "sex": sex, "reference_months": reference,
         "predicted_months": predicted, **columns}
    )  # fmt: skip


def draw_hand(width: int = 120, height: int = 160, shade: int = 210) -> npt.NDArray[np.uint8]:
    """Bright thin bones in a grey soft-tissue blob on dark air."""
    image = Image.new("L", (width, height), 12)
    draw = ImageDraw.Draw(image)
    draw.ellipse((0.1 * width, 0.05 * height, 0.9 * width, 0.95 * height), fill=90)
    for x in np.linspace(0.25, 0.75, 5) * width:
        draw.line((x, 0.15 * height, x, 0.85 * height), fill=shade, width=width // 25)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1)))


def draw_radiograph(height: int = 160, seed: int = 3) -> npt.NDArray[np.uint8]:
    """A synthetic hand, which the hand finder finds."""
    return draw_image(120, "F", np.random.default_rng(seed), height=height).image


def save_pixels(path: Path, pixels: npt.NDArray[Any]) -> Path:
    """Write pixels as an image, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_hands(folder: Path) -> dict[str, Path]:
    """Write three hands of different sizes, ids 7, 8 and 9."""
    sizes = {"7": (120, 160), "8": (100, 150), "9": (140, 130)}
    return {i: save_pixels(folder / f"{i}.png", draw_hand(*size)) for i, size in sizes.items()}


def make_ends(value: float | None, arm: float | None = None) -> dict[str, float | None]:
    """A figure with an interval of so much to either side."""
    if value is None or arm is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": value - arm, "high": value + arm}


def read_tables(folder: Path, *tables: pd.DataFrame, by: tuple[str, ...] = ()) -> list[Predictions]:
    """Write tables of predictions as `model 0.csv` and so on, and read them."""
    paths = [folder / f"model {i}.csv" for i in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        table.to_csv(path, index=False)
    return read_all(paths, by)
