"""A finished run, with all that its directory tells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layersim.errors import UserError
from layersim.report.configuration import CONFIG_FILE, read_configuration
from layersim.report.environment import read_environment
from layersim.report.exits import ExitReport, read_exit_report
from layersim.report.records import RECORDS_FILE, LayerRecord
from layersim.report.run import load_run
from layersim.report.transfer import TransferReport, read_transfer_report


@dataclass(frozen=True)
class FinishedRun:
    """A run, with all that is told of its model."""

    directory: Path
    config: dict[str, Any]
    record: LayerRecord
    """Its last validation."""
    exits: ExitReport | None = None
    transfer: TransferReport | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, float] | None:
        """How many it has, as `layersim.runs.parameters` counts them; None where nothing counted."""
        return self.exits.parameters if self.exits else self.environment.get("parameters")

    @property
    def processes(self) -> int:
        """That trained it; one where nothing tells."""
        return int(self.environment.get("processes", 1))

    @property
    def checkpoint(self) -> Path | None:
        """What it was begun from; a relative path is looked for from here, and from the folders that hold the run."""
        given = self.config.get("ckpt_path")
        if not isinstance(given, str):
            return None
        found = [base / given for base in (Path(), *self.directory.resolve().parents) if (base / given).exists()]
        return (found[0] if found else Path(given)).resolve()

    @property
    def evaluated(self) -> bool:
        """Whether it only read a checkpoint."""
        return self.record.step == 0 and self.checkpoint is not None

    @property
    def samples(self) -> int | None:
        """N that are independent of each other: none of a language model's tokens."""
        return None if self.record.unit == "tokens" else self.record.samples


def read_run(directory: Path) -> FinishedRun | None:
    """All that a run's directory tells; None where it holds no validation.

    Raises:
        UserError: no run's directory, no `config.yaml`, or a file that is broken.
    """
    config = read_configuration(directory)
    if config and not (directory / RECORDS_FILE).is_file():
        return None
    run = load_run(directory)
    if not isinstance(config.get("model"), dict):
        raise UserError(
            f"expected {directory / CONFIG_FILE} to tell the run's model, which claims are judged by, but it does not."
        )
    validated = [record for record in run.records if record.stage == "validate"]
    if not validated:
        return None
    return FinishedRun(
        directory,
        config,
        validated[-1],
        read_exit_report(directory),
        read_transfer_report(directory),
        read_environment(directory) or {},
    )
