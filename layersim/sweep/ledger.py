"""What has become of each trial: JSON lines that survive the program."""

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from layersim.errors import UserError, as_user_error

State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial as a line of the ledger; the last line of a number counts."""

    trial: int
    values: dict[str, Any]
    state: State
    history: list[float] = field(default_factory=list)
    """The optimised metric, epoch by epoch."""
    directory: str | None = None
    """The run's directory, once it is known."""

    @property
    def reached(self) -> float:
        """The metric as it was last; NaN where there is none."""
        return self.history[-1] if self.history else math.nan


class Ledger:
    """The trials of one sweep, kept in a file: first the sweep itself, then a line whenever a trial starts or ends."""

    lock: int
    """An open file, while the ledger is held; a trial that inherits it holds the ledger as long as it runs."""

    def __init__(self, path: Path, sweep: dict[str, Any]) -> None:
        """Opens a ledger, which the first trial begins."""
        self.path = path
        self._sweep = sweep
        self._trials: dict[int, Trial] = {}
        self._read()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While in here, no other program runs trials of this ledger, and it tells what others have done before."""
        lock = self.path.with_suffix(".lock")
        with as_user_error(f"No trials can be kept in {self.path}", "Change --trainer.default_root_dir."):
            lock.parent.mkdir(parents=True, exist_ok=True)
            lock.touch()
        with lock.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    "Another `layersim sweep`, or the last trial of one that was killed, is running the trials of "
                    f"{self.path} ({error.strerror}). Wait for it, or stop it."
                ) from error
            self.lock, whole = file.fileno(), self._read()
            if self.path.exists():
                os.truncate(self.path, whole)
            yield

    @property
    def trials(self) -> list[Trial]:
        return [self._trials[number] for number in sorted(self._trials)]

    def write(self, trial: Trial) -> None:
        first, line = (json.dumps(each) + "\n" for each in ({"sweep": self._sweep}, asdict(trial)))
        self._trials[trial.trial] = trial
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line if file.tell() else first + line)

    def _read(self) -> int:
        """Takes in the file's whole lines, and gives their bytes; a program that ended may have cut off the last."""
        text = self.path.read_bytes() if self.path.exists() else b""
        if not (whole := text[: text.rfind(b"\n") + 1]):
            return 0
        try:
            first, *lines = map(json.loads, whole.splitlines())
            self._trials = {line["trial"]: Trial(**line) for line in lines}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.path} is no ledger of a sweep ({error}). Move it away to begin anew.") from error
        if first != {"sweep": json.loads(json.dumps(self._sweep))}:
            raise UserError(
                f"{self.path} belongs to a sweep that was written differently. Move it away, or rename the sweep file."
            )
        return len(whole)
