"""`environment.json`: what a run's numbers were computed with: Python, the machine's kind, the packages
that decide; and what model it was."""

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from layersim.report.reading import damaging, read_json, read_text
from layersim.writing import written_whole

ENVIRONMENT_FILE = "environment.json"

PACKAGES = ("layersim", "torch", "lightning", "torchmetrics", "timm", "transformers", "datasets", "numpy")


def environment() -> dict[str, str]:
    """By name, what is installed now; nothing is imported, and a package that is not there is absent."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write_environment(directory: Path, facts: Mapping[str, Any]) -> None:
    """Writes the environment, and these facts of the run beside it, into the run's directory."""
    with written_whole(directory / ENVIRONMENT_FILE) as part:
        part.write_text(json.dumps(environment() | dict(facts), indent=2) + "\n", encoding="utf-8")


def read_environment(directory: Path) -> dict[str, Any] | None:
    """What a run wrote down of its environment; None where it did not."""
    path = directory / ENVIRONMENT_FILE
    if not path.exists():
        return None
    text = read_text(path)
    with damaging(path):
        return read_json(text)
