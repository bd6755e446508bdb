"""`environment.json`: what a run's numbers were computed with: Python, the machine's kind, the packages that decide."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ENVIRONMENT_FILE = "environment.json"

PACKAGES = ("layersim", "torch", "lightning", "torchmetrics", "timm", "transformers", "datasets", "numpy")


def environment() -> dict[str, str]:
    """By name, what is installed now; nothing is imported, and a package that is not there is absent."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_environment(directory: Path, facts: dict[str, str]) -> None:
    """Writes the environment, and these facts of the run beside it, into the run's directory."""
    (directory / ENVIRONMENT_FILE).write_text(json.dumps(environment() | facts, indent=2) + "\n")
