"""README and docs say what works: every block is run as it is written, in the order of its page, in an empty folder.

A block whose first line is a comment with a file's name is that file; other Python is run, and so is each line of a
console.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layersim.__main__ import main

ROOT = Path(__file__).parent.parent
EXTEND = ROOT / "docs" / "extend.md"
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {EXTEND})]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+\.\w+)\n")
LINES = {
    "worst_layer.py": 6,
    "gram.py": 10,
    "scaled_head.py": 12,
    "my_backbone.py": 20,
    "norms.py": 12,
    "stripes.py": 12,
}
"""At most, of what an extension says, without imports and empty lines."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name.partition('.')[0]}.py").exists():
            del sys.modules[name]


def run_blocks(page: Path, folder: Path) -> None:
    names: dict[str, object] = {"__name__": page.stem}
    for kind, text in BLOCK.findall(page.read_text()):
        if file := FILE.match(text):
            (folder / file[1]).write_text(text)
        elif kind == "python":
            exec(compile(text, f"{page.name}: {text.splitlines()[0]}", "exec"), names)
        elif kind == "console":
            for line in text.splitlines():
                words = shlex.split(line.removeprefix("$ PYTHONPATH=. ").removeprefix("$ "))
                assert words[0] == "layersim", line
                assert main(words[1:]) == 0, line


@pytest.mark.filterwarnings("ignore")  # as a user's own Python has it
@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_block_runs_as_written(page: Path, folder: Path) -> None:
    run_blocks(page, folder)


@pytest.mark.filterwarnings("ignore")
def test_what_is_extended_is_drawn_and_recorded_by_its_own_name(folder: Path) -> None:
    run_blocks(EXTEND, folder)
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
