"""What the numbers were computed with: Python, the machine's kind, and the packages that decide."""

import platform
from importlib.metadata import PackageNotFoundError, version

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
