"""What a checkpoint says of its model and its data, less what would run code, or fetch weights, that nobody typed."""

import os
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from sys import modules
from typing import Any

from layersim.errors import UserError
from layersim.report.configuration import below
from layersim.report.secrets import MASK

_TRUST = "trust_remote_code"
_FETCHED = {"pretrained": False, "checkpoint_path": None}
"""Options that fetch other weights than the checkpoint's own, and how they do not."""
_CLASSES = ("class_path", "backbone", "head", "objective", "optimizer", "lr_scheduler", "data")
"""Keys whose text is imported."""


def stored_sections(
    checkpoint: Mapping[str, Any], path: str | Path, typed: Sequence[str] = (), others: Sequence[str] = ("data",)
) -> dict[str, Any]:
    """A checkpoint's section `model`, and those of the others that it has.

    A checkpoint comes from anywhere. `trust_remote_code` is left out, which a UserWarning tells; whoever means it
    types it. Weights are the checkpoint's: `pretrained` is false, and `checkpoint_path` null.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        path: of the checkpoint, for messages.
        typed: the command's words; what they or the recipes among them name is the user's own.
        others: names of sections.

    Raises:
        UserError: a class that only a file in the working directory has, and that is not typed.
    """
    model = {key: value for key, value in below(checkpoint, "hyper_parameters").items() if key != "_instantiator"}
    config = below(below(checkpoint, "layersim"), "config")
    sections = {"model": model} | {key: config[key] for key in others if key in config}
    files = [Path(word.rpartition("=")[2]) for word in typed]
    recipes = [file for file in files if file.suffix in (".yaml", ".yml") and file.is_file()]
    own = "\n".join([*typed, *(recipe.read_text(errors="replace", encoding="utf-8") for recipe in recipes)])
    found = {key: _without_code(value, key, path, own) for key, value in sections.items()}
    options = below(below(found["model"], "backbone"), "init_args")
    fetched = {"pretrained"} if "name_or_path" in options else set()
    if isinstance(options, dict):
        options |= {key: unset for key, unset in _FETCHED.items() if key in options.keys() | fetched}
    return found


def _without_code(value: Any, flag: str, path: str | Path, own: str) -> Any:
    if isinstance(value, Mapping):
        inner = {key: each for key, each in value.items() if key != _TRUST and each != MASK}
        if value.get(_TRUST) and _TRUST not in own:
            warnings.warn(
                f"{path} asks for {_TRUST}, which counts only where it is typed: --{flag}.{_TRUST}=true, or a recipe "
                "that says so, runs the code that comes with the model.",
                UserWarning,
                stacklevel=2,
            )
        return {key: _without_code(each, f"{flag}.{key}", path, own) for key, each in inner.items()}
    if isinstance(value, list):
        return [_without_code(each, flag, path, own) for each in value]
    option = flag.removesuffix(".class_path")
    if isinstance(value, str) and flag.rpartition(".")[2] in _CLASSES and value not in own and _is_local(value):
        raise UserError(
            f"{path} names the class {value}, whose file lies in the working directory and would be run: that counts "
            f"only where it is typed. Add --{option}={value} or a recipe that says so, or PYTHONPATH=."
        )
    return value


def _is_local(path: str) -> bool:
    """Whether a class would be imported from the working directory alone, which `python -m` looks into."""
    name, dot, _ = path.partition(".")
    if not dot or name in modules:
        return False
    given = {Path(folder).resolve() for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder}
    found = PathFinder.find_spec(name)
    if found is None or found.origin is None:
        return False
    file = Path(found.origin).resolve()
    return Path.cwd() not in given and Path.cwd() in (file.parent, file.parent.parent)
