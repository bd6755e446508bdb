"""Python source files below a folder."""

import os
from collections.abc import Collection
from pathlib import Path


def source_files(folder: Path, *, left_out: Collection[str]) -> dict[str, Path]:
    """Every .py file by its path relative to the folder, sorted; folders of these names are not entered."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out]
        paths = (Path(place, name) for name in names if name.endswith(".py"))
        found.update({path.relative_to(folder).as_posix(): path for path in paths})
    return dict(sorted(found.items()))
