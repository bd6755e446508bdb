"""Who may import whom: one direction, no way back (docs/house.md)."""

import ast
from pathlib import Path

import pytest

from layersim.__main__ import VERBS

ROOT = Path(__file__).parent.parent

FORBIDDEN = {
    # room: what it must not import
    "layersim/outputs.py": {"lightning", "timm", "transformers", "layersim."},
    "layersim/errors.py": {"torch", "lightning", "layersim."},
    "layersim/similarity": {"lightning", "timm", "layersim.backbones", "layersim.data", "layersim.module"},
    "layersim/metrics": {"lightning", "timm", "layersim.backbones", "layersim.data", "layersim.module"},
    "layersim/exits": {"lightning", "timm", "layersim.data", "layersim.module", "layersim.report"},
    "layersim/tapping": {"lightning", "timm", "layersim.backbones", "layersim.module"},
    "layersim/evaluation.py": {"lightning", "layersim."},
    "layersim/sweep": {"torch", "lightning"},
    "layersim/export": {"lightning", "layersim.data", "layersim.module", "layersim.report"},
    "layersim/objectives": {"lightning", "timm", "layersim.backbones", "layersim.heads", "layersim.module"},
    "layersim/heads.py": {"lightning", "layersim.data", "layersim.module", "layersim.objectives.base"},
    "layersim/backbones": {"lightning", "layersim.heads", "layersim.data", "layersim.module"},
    "layersim/data": {"layersim.backbones", "layersim.heads", "layersim.module"},
    "layersim/report": {"torch", "lightning", "timm", "layersim.module", "layersim.backbones", "layersim.metrics"},
    "layersim": {"callbacks"},
    "layersim/optimization": {"layersim.backbones", "layersim.data", "layersim.module"},
    "callbacks": {"timm"},
}
BELOW_RUNS = ("data", "similarity", "metrics", "tapping", "export", "objectives", "backbones", "report", "optimization")
FORBIDDEN |= {f"layersim/{room}": FORBIDDEN[f"layersim/{room}"] | {"layersim.runs"} for room in BELOW_RUNS}
TOP = ("layersim/__main__.py", "layersim/commands")
"""Nobody below imports these."""


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_room_imports_what_stands_above_it(room: str) -> None:
    files = [ROOT / room] if room.endswith(".py") else sorted((ROOT / room).rglob("*.py"))
    assert files
    broken = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imports(file)
        for barred in FORBIDDEN[room]
        if name == barred.rstrip(".") or name.startswith(barred if barred.endswith(".") else f"{barred}.")
    ]
    assert not broken


def test_commands_stand_above_all_others() -> None:
    below = [
        file
        for folder in ("layersim", "callbacks")
        for file in (ROOT / folder).rglob("*.py")
        if not str(file.relative_to(ROOT)).startswith(TOP)
    ]
    assert len(below) > 100
    assert not [str(file) for file in below if any(name.startswith("layersim.commands") for name in imports(file))]


def test_every_verb_is_the_file_of_its_name() -> None:
    loops = {"fit", "validate", "test", "predict"}  # Lightning's own: one file, training.py
    for verb in VERBS.keys() - loops:
        assert "argparse" not in imports(ROOT / f"layersim/commands/{verb}.py"), "one parser for all"


def test_the_rule_can_fail() -> None:
    assert "timm" in imports(ROOT / "layersim/backbones/vision.py")


def test_no_file_holds_two_ideas() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("layersim", "callbacks")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 320
    }
    assert not long


def test_every_text_file_is_in_an_encoding_that_is_named() -> None:
    """Else it is the locale's: a page of one machine would be none on another."""
    unnamed = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for room in ("layersim", "callbacks")
        for file in (ROOT / room).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and _is_of_text(call, call.func.attr)
        if "encoding" not in {keyword.arg for keyword in call.keywords}
    ]
    assert not unnamed


def _is_of_text(call: ast.Call, name: str) -> bool:
    modes = {arg.value for arg in call.args if isinstance(arg, ast.Constant)} & {"r", "w", "a", "x", "r+", "w+", "a+"}
    lines = any(keyword.arg == "newline" for keyword in call.keywords)
    return name in ("read_text", "write_text") or (name == "open" and (bool(modes) or lines))
