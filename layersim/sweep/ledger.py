"""What has become of each trial: JSON lines that survive the program."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from layersim.errors import UserError

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


class Ledger:
    """The trials of one sweep, kept in a file: first the sweep itself, then a line whenever a trial starts or ends."""

    def __init__(self, path: Path, sweep: dict[str, Any]) -> None:
        """Opens or begins a ledger.

        Raises:
            UserError: it belongs to another sweep, or cannot be read.
        """
        self.path = path
        self._trials: dict[int, Trial] = {}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"sweep": sweep})
            return
        try:
            # a line without its end was cut off by the end of the program
            first, *lines = [
                json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1:] == "\n"
            ]
            for line in lines:
                self._trials[line["trial"]] = Trial(**line)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no ledger of a sweep ({error}). Move it away to begin anew.") from error
        if first != {"sweep": json.loads(json.dumps(sweep))}:
            raise UserError(
                f"{path} belongs to a sweep that was written differently. Move it away, or rename the sweep file."
            )
        text = path.read_text()
        path.write_text(text[: text.rfind("\n") + 1])

    @contextmanager
    def held(self) -> Iterator[None]:
        """While in here, no other program runs trials of this ledger.

        Raises:
            UserError: another one does.
        """
        try:
            with FileLock(self.path.with_suffix(".lock"), blocking=False):
                yield
        except Timeout as error:
            raise UserError(
                f"Another `layersim sweep` is running the trials of {self.path}. Wait for it, or stop it."
            ) from error

    @property
    def trials(self) -> list[Trial]:
        return [self._trials[number] for number in sorted(self._trials)]

    def write(self, trial: Trial) -> None:
        self._trials[trial.trial] = trial
        self._append(asdict(trial))

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
