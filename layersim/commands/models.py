"""What a model may be given as: a checkpoint, a run's directory, a recipe, or a name in one of the libraries."""

import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import instantiate_module
from torch import Tensor

from layersim.commands.reading import FORMS
from layersim.commands.refusals import refusing
from layersim.errors import UserError, as_user_error
from layersim.module import LayerwiseModule
from layersim.runs.checkpoints import check_fits, read_checkpoint

_LAST = Path("checkpoints/last.ckpt")


@dataclass(frozen=True)
class Source:
    """A model, not built yet."""

    given: str
    """As it was typed."""
    name: str
    """Short, for figures and tables."""
    model: dict[str, Any]
    """A recipe's section `model`."""
    state: dict[str, Tensor] | None = None
    """The weights of a checkpoint."""
    data: dict[str, Any] | None = None
    """A recipe's section `data`: what the model was trained on."""
    any_task: bool = False
    """Whether the data settle what it is: a name in transformers may be a classifier or a language model."""


def read_source(given: str) -> Source:
    """What was typed for a model, looked up but not built.

    Raises:
        UserError: none of the forms, a file that cannot be read, or one that does not say which model it is of.
    """
    library, colon, name = given.partition(":")
    if colon and library == "timm":
        # a classifier of one class, for the published models that have none; nothing reads it
        return Source(given, name, _backbone("TimmBackbone", name=name, pretrained=True, num_classes=1))
    if colon and library == "transformers":
        return Source(given, name, _backbone("TransformersBackbone", name_or_path=name), any_task=True)
    path = Path(given).expanduser()
    if path.is_dir():
        if not (path / _LAST).is_file():
            raise UserError(f"{given} is no run's directory: it holds no {_LAST}. Expected {FORMS}.")
        path /= _LAST
    if path.suffix == ".ckpt":
        return _checkpoint(given, path)
    if path.suffix in (".yaml", ".yml"):
        return _recipe(given, path)
    raise UserError(f"Expected {FORMS}, but got {given}.")


def open_module(source: Source, *, tokens: bool = False, seed: int = 0, device: str = "cpu") -> LayerwiseModule:
    """The model, in evaluation mode.

    Args:
        source: what `read_source` found.
        tokens: whether the data are a language model's, which settles the task of a mere name in transformers.
        seed: of weights that nobody has trained.
        device: where to put it, such as `cpu` or `cuda:1`; `auto` for an accelerator where there is one.

    Raises:
        UserError: a model that cannot be built, weights that do not fit it, or a device that is not here.
    """
    section = deepcopy(source.model)
    if source.any_task:
        section["backbone"]["init_args"]["task"] = "language-modeling" if tokens else "classification"
    torch.manual_seed(seed)
    with warnings.catch_warnings(), refusing(f"The model of {source.given} cannot be built"):
        warnings.filterwarnings("ignore", ".* has no trained .*", UserWarning)  # classifiers: none is read here
        module: LayerwiseModule = instantiate_module(LayerwiseModule, section)
    if source.state is not None:
        check_fits(source.state, module, source.given)
        module.load_state_dict(source.state)
    where = torch.accelerator.current_accelerator(check_available=True) if device == "auto" else device
    with as_user_error(f"There is no device {device!r} here", "Change --device."):
        return module.eval().to(where or "cpu")


def _backbone(kind: str, /, **options: Any) -> dict[str, Any]:
    return {"backbone": {"class_path": f"layersim.backbones.{kind}", "init_args": options}}


def _checkpoint(given: str, path: Path) -> Source:
    checkpoint = read_checkpoint(path)
    model = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key != "_instantiator"}
    if "backbone" not in model:
        raise UserError(
            f"{given} does not say which model it is of, as checkpoints of `layersim fit` do. Export the model to a "
            "folder, or give its recipe with the weights' path in it."
        )
    run = path.resolve().parent.parent if path.resolve().parent.name == "checkpoints" else None
    name = path.stem if run is None else f"{run.parent.name}/{run.name}"
    if run is not None and path.name != _LAST.name:
        name = f"{name} {path.stem}"
    data = checkpoint.get("layersim", {}).get("config", {}).get("data")
    return Source(given, name, model, checkpoint["state_dict"], data)


def _recipe(given: str, path: Path) -> Source:
    with as_user_error(f"The recipe {given} cannot be read"):
        recipe = yaml.safe_load(path.read_text())
    model = recipe.get("model") if isinstance(recipe, dict) else None
    if not isinstance(model, dict) or "backbone" not in model:
        raise UserError(f"{given} is no recipe: it has no section `model` with a `backbone`.")
    return Source(given, f"{path.resolve().parent.name}/{path.stem}", model, data=recipe.get("data"))
