"""What the options themselves tell before anything is built."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from layersim.commands.recipes import with_paths
from layersim.data import Split, SplitDataModule
from layersim.errors import UserError, as_user_error, user_path
from layersim.report.configuration import flat
from layersim.runs.checkpoints import read_checkpoint
from layersim.runs.directory import DEFAULT_ROOT
from layersim.runs.models import newest_of
from layersim.runs.resume import find_run, run_of_job
from layersim.runs.stored import stored_sections

_LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0, "log_every_n_steps": 0}


def check_limits(trainer: Namespace, verb: str, split: str) -> None:
    """Refuses numbers of the trainer's that Lightning takes as they are, but cannot be, or leave nothing to measure."""
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
    """The data's number of classes, None where there are no labels to tell, or a stream's would have to be read."""
    if data.stream is not None and data.class_names is None:
        return None
    labelled = any(split.labels is not None and len(split) for split in data.splits.values())
    return data.num_classes if labelled else None


def check_labelled(split: Split, callbacks: Iterable[object]) -> None:
    """Refuses samples without the labels that some of the callbacks compare predictions with."""
    needing = [type(call).__name__ for call in callbacks if getattr(call, "reads_labels", False)]
    if needing and split.labels is None:
        raise UserError(
            f"The data have no labels, which {' and '.join(needing)} ask for. Set --data.label_column, or leave these "
            f"out: --without={','.join(needing)}."
        )


def with_checkpoint(given: list[str]) -> list[str]:
    """A verb and its words with a typed checkpoint's model, and its data where none are typed and no typed recipe names
    any, as a recipe that stands before all others. A run's directory stands for its last checkpoint."""
    given = with_paths(given)  # of a sweep's trial
    if (path := _typed(given, "--ckpt_path", "a path")) in (None, "null"):
        return given
    if os.path.exists(last := newest_of(Path(path))) and Path(path).suffix != ".ckpt":  # as a sharded checkpoint has
        given, path = [*given, f"--ckpt_path={last}"], str(last)
    checkpoint = read_checkpoint(path, shapes_only=True)
    typed = any(word.partition("=")[0] == "--data" for word in given)
    own_data = typed or any("data" in recipe for recipe in _recipes(given))
    stored = stored_sections(checkpoint, path, given, () if own_data else ("data", "experiment"))
    return [given[0], "--config", yaml.safe_dump(stored), *given[1:]]


def resumed(given: list[str]) -> list[str]:
    """A verb and its words with the recipe and the checkpoint that `--resume` stands for, typed or, where SLURM has
    started the job of a training again, meant."""
    if given[0] != "fit":
        return given
    where = _typed(given, "--resume", "a run's directory or `last`")
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    if again or where == "last":
        root, experiment = (_told(given, option) for option in ("trainer.default_root_dir", "experiment"))
        home = user_path(root or DEFAULT_ROOT) / (experiment or "default")
    if again and (begun := run_of_job(home)):
        given, where = ["fit", "--resume", str(begun)], str(begun)  # whose recipe holds what was typed
    if where is None:
        return given
    if _typed(given, "--ckpt_path", "a path") is not None:
        raise UserError("--resume finds its checkpoint by itself. Leave --ckpt_path or --resume out.")
    last = where == "last"
    config, checkpoint = find_run(home if last else Path(where), last=last)
    return ["fit", "--config", str(config), "--ckpt_path", str(checkpoint), *given[1:]]


def _told(given: list[str], option: str) -> str | None:
    """What is typed of an option, or else stands in the last typed recipe that tells it."""
    told: Any = None
    for recipe in _recipes(given):
        told = flat(recipe).get(option) or told
    return _typed(given, f"--{option}", "a name") or told


def _recipes(given: list[str]) -> Iterator[dict[str, Any]]:
    """What stands in the typed recipes."""
    for word, following in zip(given, [*given[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--config", "-c") and Path(path := value if equals else following).is_file():
            with as_user_error(f"The recipe {path} cannot be read"):
                recipe: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            yield recipe if isinstance(recipe, dict) else {}


def _typed(args: list[str], option: str, expected: str) -> str | None:
    """What is typed of an option, the last word of which counts."""
    told = None
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            told = value if equals else following
            if not told or (not equals and following.startswith("-")):
                raise UserError(f"Expected {expected} behind {option}, but got {following or 'none'}.")
    return told
