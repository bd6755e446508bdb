"""The callbacks that measure and record unless they are removed by name, beside those of a recipe."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from layersim.errors import UserError, meant

_KEYS = ("monitor", "mode", "every_n_train_steps", "every_n_epochs", "train_time_interval")
"""What Lightning tells two ModelCheckpoints apart by."""


def take_shipped_callbacks() -> None:
    """Makes `callbacks` the package that comes with layersim, although the folder where the user works may have a
    callbacks.py and stand before it on Python's path."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    try:
        import_module("callbacks")
    finally:
        del sys.path[0]


def import_for_trials() -> None:
    """Imports what each trial of a sweep would import; nothing here asks for a GPU, which does not outlive a fork."""
    import_module("layersim.commands.training")
    take_shipped_callbacks()


def with_defaults(
    given: Sequence[Any], defaults: Sequence[Any], without: str | Sequence[str] | None
) -> tuple[list[Any], list[str]]:
    """The callbacks of a run, as class paths and their options, without those of `defaults.yaml` that are named in
    `without`; and the class names of the defaults that gave way to the user's: of the same class, or, of
    ModelCheckpoint, one that waits for the same metric as often."""
    removed = without.split(",") if isinstance(without, str) else list(without or [])
    names = sorted({_name(default) for default in defaults})
    for name in removed:
        if name not in names:
            hint = f"{meant(name, names)} There are {', '.join(names)}."
            raise UserError(f"--without names {name}, which is no default callback.{hint}")
    own = [call for call in given if call not in defaults]
    kinds = [_kind(call) for call in own]
    stay = [call for call in defaults if _name(call) not in removed]
    replaced = [_name(call) for call in stay if _kind(call) in kinds]
    return [*(call for call in stay if _kind(call) not in kinds), *own], replaced


def _name(callback: Any) -> str:
    return str(callback.class_path).rpartition(".")[2].replace("LastCheckpoint", "ModelCheckpoint")


def _kind(callback: Any) -> tuple[Any, ...]:
    options = callback.get("init_args") or {}
    return (_name(callback), *(str(options.get(key)) for key in _KEYS if _name(callback) == "ModelCheckpoint"))
