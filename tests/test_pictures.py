"""One program draws what README and docs show; no picture lies about that no page shows."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PICTURE = re.compile(r"!\[[^\]]+\]\((?!\w+:)([^)]+\.png)\)")
DOCS = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import figures

    return figures


def shown(pages: list[Path]) -> set[str]:
    found = {(page.parent / target).resolve() for page in pages for target in PICTURE.findall(page.read_text())}
    return {path.relative_to(ROOT / "experiments").as_posix() for path in found}


def test_every_picture_of_readme_and_docs_has_its_drawing(figures: Any) -> None:
    drawn = {picture for drawing in figures.DRAWINGS.values() for picture in drawing.pictures}
    assert len(shown(DOCS)) > 4
    assert shown(DOCS) <= drawn
    assert all((ROOT / "experiments" / picture).exists() for picture in drawn)
    assert all(drawing.depends for drawing in figures.DRAWINGS.values())


def test_every_picture_is_shown_by_a_page() -> None:
    pages = [*DOCS, *(ROOT / "experiments").rglob("*.md")]
    there = {path.relative_to(ROOT / "experiments").as_posix() for path in (ROOT / "experiments").rglob("*.png")}
    assert there == shown(pages)


def test_what_a_terminal_and_a_browser_show(figures: Any, tmp_path: Path) -> None:
    figures.terminal("layersim runs", " run    epoch\n mine       3", tmp_path / "terminal.png")
    with Image.open(tmp_path / "terminal.png") as picture:
        assert picture.width > picture.height > 50
    pytest.importorskip("playwright")
    if not any(shutil.which(name) for name in figures.BROWSERS):
        pytest.skip("no Chromium on the PATH")
    page = tmp_path / "page.html"
    page.write_text("<svg class='marks' width='9' height='9'></svg>")
    figures.screenshot(page, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1180, 1100)


@pytest.mark.parametrize(
    ("words", "message"), [(["digts"], "there is no drawing digts: choose from digits"), (["evidence"], "Say where")]
)
def test_a_drawing_that_cannot_be_is_told(words: list[str], message: str, tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "experiments" / "figures.py"), *words]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert message in done.stderr
