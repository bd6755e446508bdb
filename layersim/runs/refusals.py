"""Doors to libraries that call this project's code back: what they refuse becomes one line, a bug stays a traceback."""

import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

from layersim.errors import UserError, reason
from layersim.writing import REFUSED, refusal

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_OURS = ("layersim", "callbacks")
_LOGGERS = ("lightning.pytorch.loggers", "lightning.fabric.loggers")


@contextmanager
def refusing(what: str, remedy: str = "") -> Iterator[None]:
    """As `as_user_error`, but an exception that came through code of this project or the user's, called back from in
    here, goes on as it is. A UserError that a library has wrapped comes out."""
    try:
        yield
    except Exception as error:
        first: BaseException = error
        while not isinstance(first, UserError) and (before := first.__cause__ or first.__context__):
            first = before
        if isinstance(first, UserError):
            raise first from (None if first is error else error)
        if is_bug(first):
            raise
        raise UserError(f"{what}: {reason(first).rstrip('.')}. {remedy}".strip()) from error


@contextmanager
def running(trainer: "Trainer") -> Iterator[None]:
    """Around the trainer's loops, where exceptions are bugs, but for those by which Lightning says that options do not
    go together, torch that memory is full, and the system that a file cannot be written.

    What Lightning itself raises before training has taken a step is of its options, too.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from torch import OutOfMemoryError
    from torch.distributed import DistError, is_initialized

    from layersim.runs.whole_checkpoints import newest_whole

    directory = Path(trainer.default_root_dir)
    try:
        yield
    except OutOfMemoryError as error:
        raise UserError(
            f"The device's memory is full: {reason(error)} Lower --data.batch_size (and raise "
            "--trainer.accumulate_grad_batches to match), or set --model.activation_checkpointing=true."
        ) from error
    except Exception as error:
        if isinstance(error, DistError) and not is_initialized():
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(
                f"The run's {trainer.world_size} processes did not come together at {where}: {reason(error)} Start all "
                "of them, where that address can be reached, with the same MASTER_ADDR and MASTER_PORT."
            ) from error
        if isinstance(error, OSError) and (error.errno in REFUSED or str(directory) in str(error.filename)):
            newest = newest_whole(directory / "checkpoints")
            raise UserError(
                f"{refusal(error)}. "
                + (f"The newest whole checkpoint is {newest}." if newest else "No checkpoint had been written yet.")
            ) from error
        modules = _modules(error)
        asked = [name for name in modules if not name.startswith("torch.")]  # who called torch raised what torch raises
        raised_by = asked[-1]
        if modules[-1].startswith("torch.optim"):
            raise UserError(f"The optimizer cannot take a step: {reason(error)} Change --model.optimizer.") from error
        by_a_callback = raised_by.startswith("lightning.pytorch.callbacks")  # such as a metric that is not there
        # a training that goes on has the steps of its checkpoint when it begins
        begins = trainer.global_step == 0 or "lightning.pytorch.loops.training_epoch_loop" not in modules
        before = raised_by.startswith("lightning.") and begins and not is_bug(error)
        by_a_logger = any(name.startswith(_LOGGERS) for name in modules)
        if by_a_logger and begins and _from_libraries(error)[-1]:
            raise UserError(f"A logger cannot begin: {reason(error)} Change --trainer.logger.") from error
        if isinstance(error, MisconfigurationException) or by_a_callback or before:
            raise UserError(f"Lightning refuses this: {reason(error)} Change the option under --trainer.") from error
        raise


def is_bug(error: BaseException) -> bool:
    """Whether code of this project or the user's stands between the guard, or whatever caught the exception first, and
    where it was raised; none where jsonargparse itself refuses to make a class, an abstract one."""
    if _modules(error)[-1].startswith("jsonargparse."):
        return False
    ours = [
        module.partition(".")[0] in _OURS or not library
        for module, library in zip(_modules(error), _from_libraries(error), strict=True)
    ]
    if True not in ours or False not in ours:
        return all(ours)
    return any(ours[ours.index(False) :])


def _from_libraries(error: BaseException) -> list[bool]:
    """Of each frame that an exception came through, whether its code was installed and not written here."""
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    return [
        "site-packages" in file or "dist-packages" in file or file.startswith((sysconfig.get_path("stdlib"), "<"))
        for file in files
    ]


def _modules(error: BaseException) -> list[str]:
    """The modules that an exception came through, the one that raised it last."""
    return [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
