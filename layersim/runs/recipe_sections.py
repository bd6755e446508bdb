"""What a recipe says of its model and its data."""

from pathlib import Path
from typing import Any

import yaml

import layersim.data
from layersim.errors import UserError, as_user_error


def recipe_sections(given: str, path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A recipe's section `model`, and its `data` where it has one, with whole mappings for their classes.

    Raises:
        UserError: a file that is no recipe.
    """
    with as_user_error(f"The recipe {given} cannot be read"):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    model = recipe.get("model") if isinstance(recipe, dict) else None
    if not isinstance(model, dict) or "backbone" not in model:
        raise UserError(f"{given} is no recipe: it has no section `model` with a `backbone`.")
    data = recipe.get("data") and _class(given, "data", recipe["data"])
    if data and hasattr(layersim.data, data["class_path"]):
        data |= {"class_path": f"layersim.data.{data['class_path']}"}
    return model | {"backbone": _class(given, "backbone", model["backbone"])}, data


def _class(given: str, section: str, found: object) -> dict[str, Any]:
    """A class and its options; the class's name alone may stand there."""
    named = {"class_path": found} if isinstance(found, str) else found
    if (
        not isinstance(named, dict)
        or not isinstance(named.get("class_path"), str)
        or not isinstance(named.get("init_args") or {}, dict)
    ):
        raise UserError(f"{given} is no recipe: expected a class in its section `{section}`, but got {found!r}.")
    return named
