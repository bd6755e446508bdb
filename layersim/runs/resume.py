"""Resuming: which run goes on, what a checkpoint carries of the optimizer and the training's length, and what is given
now."""

import csv
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from layersim.errors import UserError, as_user_error
from layersim.report.environment import read_environment
from layersim.report.secrets import masked
from layersim.runs.checkpoints import check_complete, read_checkpoint
from layersim.runs.place import PLACE
from layersim.writing import bring_to_disk, hidden_beside, named, written_whole

STEPS_PER_EPOCH = "steps_per_epoch"
"""A checkpoint's entry: how many optimizer steps an epoch took."""
RATES = "learning_rates"
"""A checkpoint's entry: the learning rate that each parameter group started from, which a schedule may have moved."""


def find_run(where: Path, *, last: bool) -> tuple[Path, Path]:
    """The `config.yaml` and the newest checkpoint that training can go on from, of a run's directory; with `last` of
    the run in an experiment's directory that has the newest checkpoint."""
    found = sorted(where.glob("*/checkpoints/*.ckpt" if last else "checkpoints/*.ckpt"), key=_age)
    if found and last:
        found = [path for path in found if path.parent == found[-1].parent]
    for path in reversed(found):
        config = path.parent.parent / "config.yaml"
        try:
            checkpoint = read_checkpoint(path, shapes_only=True)
            check_complete(checkpoint, path, resume=True, sharded=path.is_dir())
        except UserError as error:
            rank_zero_info(f"{error} The one before it is tried.")
            continue
        if not config.is_file():
            raise UserError(
                f"{config.parent} holds no config.yaml to go on with. Give --config and --ckpt_path {path}."
            )
        rank_zero_info(f"The run {config.parent} goes on from {path.name}, step {checkpoint['global_step']}.")
        return config, path
    other = " Another experiment's is named by --experiment or --config." if last else ""
    raise UserError(
        f"There is no checkpoint of {'a run in' if last else 'the run'} {where} that training can go on from. Give "
        f"--resume the directory of a run that has saved one, or train anew.{other}"
    )


def keep_finished(trainer: Trainer) -> None:
    """Puts the checkpoint that a training went on from into the run's directory, where nothing was left to train.

    As where a kill came between an epoch's two checkpoints: the newest run's `last.ckpt` is what a training ends with.
    """
    folder, source = Path(trainer.default_root_dir) / "checkpoints", trainer.ckpt_path
    if not (trainer.is_global_zero and source and trainer.checkpoint_callbacks) or any(folder.glob("*.ckpt")):
        return
    if read_checkpoint(source)["global_step"] == trainer.global_step:
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "last.ckpt"
        if Path(source).is_dir():  # a sharded model's
            with named(kept):
                part = Path(shutil.copytree(source, hidden_beside(kept, "part")))
                for file in part.iterdir():
                    bring_to_disk(file)
                part.rename(kept)
        else:
            with written_whole(kept, Path(source).stat().st_size) as part:
                shutil.copyfile(source, part)
        rank_zero_info(f"Nothing was left to train: {kept} is {source}.")


def begun_by() -> dict[str, str]:
    """The command line that began a run, and SLURM's job where it is one: facts of its `environment.json`."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"command": masked(shlex.join(["layersim", *sys.argv[1:]])), **({"slurm_job": job} if job else {})}


def run_of_job(experiment: Path) -> Path | None:
    """The run, in an experiment's directory, that this command of this job of SLURM's had begun before the job was
    started again; the one that saved last, None where none did."""
    mine = begun_by().items()
    saved = [path.parent.parent for path in sorted(experiment.glob("*/checkpoints/*.ckpt"), key=_age, reverse=True)]
    for run in dict.fromkeys(saved):
        with suppress(UserError):  # of a damaged file
            if mine <= (read_environment(run) or {}).items():
                return run
    rank_zero_info("SLURM has started this job again, but it had saved nothing yet: it begins anew.")
    return None


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def earlier_rows(path: Path, checkpoint: dict[str, Any]) -> list[dict[str, str]]:
    """What `metrics.csv` of a checkpoint's run told when it was saved, and what its step and epoch were yet to log."""
    if not path.is_file():
        if (checkpoint.get(PLACE) or {}).get("rows"):
            rank_zero_info(f"{path} is not there: metrics.csv tells of this run alone.")
        return []
    place, last = checkpoint[PLACE], checkpoint["global_step"] - 1
    with as_user_error(f"{path} cannot be read"), path.open(newline="", encoding="locale") as file:
        rows = islice(csv.DictReader(file), place["rows"])
        kept = [{name: value for name, value in row.items() if value} for row in rows]
    at = {"epoch": str(checkpoint["epoch"]), "step": str(last)}
    if coming := place["unlogged"]:
        kept.append(at | {name: str(value) for name, value in coming.items()})
    epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["total"]
    total, count = place["loss"].tolist()
    told = any("train/loss" in row and row.get("step") == at["step"] for row in kept)
    if count and not told and epoch["processed"] == epoch["ready"]:  # killed between the epoch's checkpoint and its row
        kept.append(at | {"train/loss": str(total / count)})
    return kept


def starting_rates(optimizer: Optimizer) -> list[float]:
    """The rates of an optimizer's groups where its schedule, if it has one, starts."""
    return [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]


def prefer_given_options(
    checkpoint: dict[str, Any], given: Optimizer, hparams: dict[str, Any], loaded: Sequence[Optimizer] = ()
) -> None:
    """Rewrites a checkpoint's optimizer and scheduler states, in place, to the options of the optimizer that was given.

    Group by group: momenta and counts stay. A changed learning rate moves the whole schedule by its ratio to the old
    one.

    Args:
        checkpoint: as Lightning saves it, with `RATES`; rates that it does not tell are taken to be those of now.
        given: an optimizer with the options that training shall go on with, and with its schedule.
        hparams: the module's hyper-parameters now; compared to the checkpoint's where both were made by the command.
        loaded: the training's optimizers, where they hold the checkpoint's state already: of a sharded model.
    """
    stored = checkpoint.get("hyper_parameters") or {}
    if "optimizer" in stored and "optimizer" in hparams:
        _refuse_change("optimizer", stored["optimizer"]["class_path"], hparams["optimizer"]["class_path"])
        for what in ("lr_scheduler", "lr_scheduler_interval"):
            _refuse_change(what, stored.get(what), hparams.get(what))
    peaks = checkpoint.get(RATES) or starting_rates(given)
    moved = {"params", "lr", "initial_lr"}
    if any(schedule.get("cycle_momentum") for schedule in checkpoint.get("lr_schedulers", [])):
        moved |= {"momentum", "betas"}
    states = checkpoint.get("optimizer_states", [])
    for groups in [each.param_groups for each in loaded] or [state["param_groups"] for state in states]:
        _refuse_change("parameter groups", [*map(_told, groups)], [*map(_told, given.param_groups)])
        for number, (group, now, rate) in enumerate(
            zip(groups, given.param_groups, starting_rates(given), strict=True)
        ):
            options = {key: value for key, value in now.items() if key not in moved}
            if missing := options.keys() - group.keys():
                raise UserError(
                    f"The checkpoint's optimizer has no {', '.join(sorted(missing))}: it is of another kind than "
                    f"{type(given).__name__}. Resume with the optimizer it was trained with."
                )
            if rate != (peak := peaks[number]):
                if peak == 0:
                    raise UserError("The checkpoint was trained with a learning rate of 0, which no factor raises.")
                group["lr"] *= rate / peak
                if "initial_lr" in group:
                    group["initial_lr"] = rate
                for schedule in _every(checkpoint.get("lr_schedulers", [])):
                    for key in {"base_lrs", "_last_lr"} & schedule.keys():
                        schedule[key] = [*schedule[key]]  # which a schedule may share with the one within
                        schedule[key][number] *= rate / peak
            group.update(options)


def _every(schedules: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """These states of schedules and those within them, as a SequentialLR has some."""
    for schedule in schedules:
        yield schedule
        yield from _every(schedule.get("_schedulers") or [])


def check_length(checkpoint: dict[str, Any], steps: int) -> None:
    """Refuses a checkpoint whose step is another share of a training that has so many optimizer steps an epoch now."""
    if (stored := checkpoint.get(STEPS_PER_EPOCH, steps)) != steps:
        raise UserError(
            f"The checkpoint's training took {stored} optimizer steps an epoch, but now there are {steps}, so that a "
            "schedule over the training would lose its place. Resume with the data, --data.batch_size, "
            "--trainer.devices and --trainer.accumulate_grad_batches it was trained with, or say by "
            "--trainer.max_steps how long the training is."
        )


def _told(group: dict[str, Any]) -> str:
    return f"{group.get('name', 'one')} of {len(group['params'])} parameters"


def _refuse_change(what: str, stored: Any, given: Any) -> None:
    if stored != given:
        raise UserError(
            f"The checkpoint was trained with {what} {stored}, but {given} is given, and the one's state means nothing "
            f"to the other. Resume with the checkpoint's {what}, or train anew."
        )
