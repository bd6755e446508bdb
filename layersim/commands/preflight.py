"""What the options themselves tell before anything is built."""

from collections.abc import Mapping
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from layersim.commands.stored import stored_sections
from layersim.data import SplitDataModule
from layersim.errors import UserError
from layersim.runs.checkpoints import read_checkpoint

_LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0, "log_every_n_steps": 0}


def check_limits(trainer: Namespace, verb: str, split: str) -> None:
    """Whether numbers of the trainer's that Lightning takes as they are can be, and leave something to measure.

    Raises:
        UserError: one that is too small.
    """
    for option, least in _LEAST.items():
        if (value := trainer[option]) is not None and not value >= least:
            raise UserError(f"Expected at least {least}, but got {value}. Change --trainer.{option}.")
    if trainer.val_check_interval == 0:
        raise UserError(
            "Expected a share of an epoch or a number of batches, but got 0. Change --trainer.val_check_interval."
        )
    limit = f"limit_{ {'validate': 'val', 'fit': 'val', 'exits': split}.get(verb, verb) }_batches"
    if trainer.get(limit) == 0:
        if verb != "fit":
            raise UserError(f"Nothing would be measured, since trainer.{limit} is 0. Change --trainer.{limit}.")
        rank_zero_info(f"No layer is measured in this training, since trainer.{limit} is 0.")


def is_new_head(options: Mapping[str, Any]) -> bool:
    """Whether a backbone's options make a new classifier, of a number of classes that nobody gives."""
    more = {**(options.get("config_args") or {}), **(options.get("model_args") or {})}
    given = [options.get(key) for key in ("pretrained", "checkpoint_path", "num_classes")]
    given += [more.get(key) for key in ("num_classes", "num_labels", "id2label")]
    return "num_classes" in options and options.get("task") != "language-modeling" and not any(given)


def classes_of(data: SplitDataModule) -> int | None:
    """The data's number of classes, None where there are no labels to tell."""
    labelled = any(split.labels is not None and len(split) for split in data.splits.values())
    return data.num_classes if labelled else None


def with_checkpoint(given: list[str]) -> list[str]:
    """A verb and its words with a typed checkpoint's model, and its data where neither recipe nor data are typed, as a
    recipe that stands before all others."""
    if not (path := _typed_checkpoint(given)):
        return given
    checkpoint = read_checkpoint(path)
    own_data = any(word.partition("=")[0] in ("--config", "-c", "--data") for word in given)
    stored = stored_sections(checkpoint, path, given, () if own_data else ("data", "experiment"))
    return [given[0], "--config", yaml.safe_dump(stored), *given[1:]]


def _typed_checkpoint(args: list[str]) -> str | None:
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == "--ckpt_path":
            path = value if equals else following
            if not path or (not equals and following.startswith("-")):
                raise UserError(f"Expected a path behind --ckpt_path, but got {following or 'none'}.")
            return None if path == "null" else path
    return None
