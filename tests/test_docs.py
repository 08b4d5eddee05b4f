import re
import tomllib
from pathlib import Path

import pytest

import boneage
from boneage.cli.app import app, option_names
from boneage.config import load_config
from boneage.phantom.cohort import contact_sheet
from builders import ROOT, load_script

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize(
    ("script", "make", "page"),
    [("cli", "make_page", "cli"), ("card", "make_card", "model_card"),
     ("api", "make_page", "python")],
)  # fmt: skip
def test_a_page_made_from_code_or_results_is_up_to_date(script: str, make: str, page: str) -> None:
    made = getattr(load_script(f"docs/make_{script}.py"), make)()
    assert (ROOT / f"docs/{page}.md").read_text() == made, "stale: run `make docs`"


def test_every_command_has_its_place_on_the_page() -> None:
    commands = {name for name in app if not name.startswith("-")}
    assert commands == set(load_script("docs/make_cli.py").COMMANDS) - {""}


def test_the_model_card_begins_with_the_limits() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs/model_card.md").read_text(), re.MULTILINE)
    assert headings[0] == "Limits"


def test_the_python_page_has_every_public_name() -> None:
    page = (ROOT / "docs/python.md").read_text()
    missing = [name for name in vars(boneage)["__all__"] if f"\n### {name}\n" not in page]
    assert missing == []


def test_the_architecture_page_names_every_module_and_no_other() -> None:
    folder = ROOT / "src/boneage"
    modules = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    modules = {name for name in modules if Path(name).stem not in ("__init__", "__main__")}
    text = (ROOT / "docs/architecture.md").read_text()
    assert set(re.findall(r"^\| `([\w/]+\.py)` \|", text, re.MULTILINE)) == modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        if heading:
            assert heading in find_anchors(file), f"{target}#{heading}"


def find_anchors(page: Path) -> list[str]:
    """Give the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]


def test_the_readme_is_short_and_says_at_the_top_that_this_is_no_medical_device() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 130
    assert "not a medical device" in " ".join(text.partition("\n## ")[0].split())


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_recipe_is_valid(recipe: Path) -> None:
    assert load_config(recipe, option_names())


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()


def test_the_contact_sheet_in_the_docs_is_what_is_drawn_today() -> None:
    from PIL import Image, ImageChops

    shown = Image.open(ROOT / "docs/images/phantom_contact_sheet.png").convert("L")
    drawn = contact_sheet().convert("L")
    assert shown.size == drawn.size
    assert ImageChops.difference(shown, drawn).histogram()[3:] == [0] * 253
