"""A run's own directory: `<root>/<experiment>/<run id>/`, made once and never shared."""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from layersim.errors import UserError
from layersim.runs.signals import Stopped
from layersim.writing import clear_leftovers

DEFAULT_ROOT = Path("runs")

_made: dict[Path, list[Path]] = {}
"""The directories of this process's runs, and the folders above them that had to be made for them, inmost first."""


def reserve(root: Path, experiment: str) -> Path:
    """Makes a new directory for a run, named by the time and four random hexadecimal digits.

    What killed runs of the experiment left half written is cleared away.
    """
    while True:
        directory = root / experiment / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        above = [folder.resolve() for folder in directory.parents if not folder.exists()]
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            check_writable(root, experiment)
            continue
        except OSError as error:
            raise _cannot_write(root, experiment, str(error)) from error
        _made[directory.resolve()] = above
        for pattern in ("*", "*/checkpoints"):
            for folder in (root / experiment).glob(pattern):
                clear_leftovers(folder, ".*.part")
        return directory.resolve()


@contextlib.contextmanager
def discarding_unused() -> Iterator[None]:
    """A run in here that a UserError ends, of whichever process, leaves no directory, nor folders made for it, unless
    something was measured or trained: what else is there, a configuration and loggers' files, tells nothing. One that a
    signal ends is kept."""
    _made.clear()
    try:
        yield
    except Stopped:
        raise
    except (UserError, SystemExit):
        for directory, above in _made.items():
            results = (path for pattern in ("*.jsonl", "*.ckpt", "*.parquet") for path in directory.rglob(pattern))
            metrics = directory / "metrics.csv"
            if not any(results) and not (metrics.is_file() and metrics.stat().st_size):
                shutil.rmtree(directory, ignore_errors=True)
                with contextlib.suppress(OSError):  # another run stands there by now
                    for folder in above:
                        folder.rmdir()
        raise


def check_writable(root: Path, experiment: str) -> None:
    """Tells early, without making anything, that no run's directory can be made there."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", experiment) or ".." in experiment.split("/"):
        raise UserError(
            f"Expected an experiment name of letters, digits, '.', '_', '-' and '/', but got {experiment!r}. "
            "Change --experiment."
        )
    place = (root / experiment).absolute()
    while not place.exists():
        if place.is_symlink():
            raise _cannot_write(root, experiment, f"{place} is a link that leads nowhere")
        place = place.parent
    if not place.is_dir():
        raise _cannot_write(root, experiment, f"{place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise _cannot_write(root, experiment, f"{place} may not be written")


def _cannot_write(root: Path, experiment: str, why: str) -> UserError:
    return UserError(
        f"No run directory can be made under {root / experiment}: {why}. "
        "Change --trainer.default_root_dir (where runs are kept) or --experiment."
    )
