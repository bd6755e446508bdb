"""Loggers that write into the run's directory."""

import contextlib
import csv
import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from wandb.sdk import wandb_setup
from wandb.sdk.lib import wbauth

from layersim.sweep.flags import under_agent, whole_flag
from layersim.writing import named, written_whole

LayerTable = Mapping[str, Sequence[float]]
"""(L,) values by column."""


class Wandb(loggers.WandbLogger):
    """Lightning's W&B logger: online where a key is set, else offline, with a line that says how to sync.

    A server that cannot be reached, or refuses the key, stops nothing: the run goes on offline.

    Args:
        project: W&B's project; `WANDB_PROJECT` or `layersim` where None.
        name: the run's name; experiment and run id where None.
        id: W&B's run id; the run directory's where None, or, resuming, the one in the checkpoint.
        mode: `online` or `offline`; `WANDB_MODE`, or by whether there is a key, where None.
        entity, group, tags, notes: as in `wandb.init`.
        log_model: upload checkpoints as artifacts: at the end (true), each (`all`) or never.
        init_timeout: seconds to wait for the server before going on offline.
        finish_timeout: seconds to wait, at the end, for a server that does not take what is left; it stays on disk.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        id: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        log_model: Literal["all"] | bool = False,
        init_timeout: float = 30.0,
        finish_timeout: float = 120.0,
    ) -> None:
        mode = mode or os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")  # type: ignore[assignment]
        super().__init__(
            project=project or os.environ.get("WANDB_PROJECT", "layersim"),
            name=name,
            id=id or os.environ.get("WANDB_RUN_ID"),
            log_model=log_model,
            mode=mode,
            entity=entity,
            group=group,
            tags=tags,
            notes=notes,
            settings=wandb.Settings(init_timeout=init_timeout, finish_timeout=finish_timeout, silent=mode != "online"),
        )
        del self._wandb_init["anonymous"]  # Lightning passes it on, W&B no longer knows it

    def start_in(self, directory: Path, run_id: str, name: str) -> None:
        self._save_dir = self._wandb_init["dir"] = str(directory)
        self._id = self._wandb_init["id"] = self._wandb_init["id"] or run_id
        self._name = self._wandb_init["name"] = self._wandb_init["name"] or name or None

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # type: ignore[override]
        """As Lightning's; but a setting that a sweep names in short is there already, and stays there once."""
        swept = {whole_flag(name, params) for name in self.experiment.config.keys() if name not in params}  # noqa: SIM118
        super().log_hyperparams({name: value for name, value in params.items() if name not in swept})

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, made when first asked for."""
        if self._experiment is not None:
            return self._experiment
        try:
            run = super().experiment
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            if self._wandb_init["mode"] == "offline":
                raise
            rank_zero_info(f"W&B: going on offline, since the server gave no run ({error}).{_advice(str(error))}")
            wandb.teardown()  # its service still holds the run's id
            self._wandb_init |= {"mode": "offline", "settings": wandb.Settings(silent=True)}
            run = super().experiment
        if self._wandb_init["mode"] == "offline":
            rank_zero_info(f"W&B: offline; `wandb sync {Path(run.dir).parent}` sends the run once a key is set.")
        return run


def log_later(checkpoint: Mapping[str, Any], directory: Path, name: str, figure: Path, table: LayerTable) -> None:
    """Logs to the W&B run of the training that wrote a checkpoint, opened again, a figure and the table
    `<name>_layers`. Offline the files lie in this directory."""
    told = checkpoint["layersim"]
    sections, run_id = told.get("config", {}).get("trainer", {}).get("logger"), told["wandb_run_id"]
    for section in sections if isinstance(sections, list) else [sections]:
        # that class alone, since no checkpoint may say which code runs
        if isinstance(section, dict) and section.get("class_path") == f"{__name__}.{Wandb.__name__}":
            logger = Wandb(**section.get("init_args", {}) | {"id": run_id})
            logger.start_in(directory, run_id, "")
            layers = wandb.Table(columns=["layer", *table], data=[*zip(count(1), *table.values())])
            shown = {name: wandb.Image(str(figure)), f"{name}_layers": layers}
            logger.log_metrics(shown, step=checkpoint.get("global_step"))
            finish(0)


@rank_zero_only
def finish(exit_code: int) -> None:
    """Closes the W&B run and tells the server how it ended.

    A trial of a sweep may fail before it has a run, as with a value that an option refuses. Then its run is opened to
    be closed as failed, or else the sweep would never hear of it.
    """
    if exit_code and wandb.run is None and under_agent():
        with contextlib.suppress(wandb.errors.Error):  # what made the trial fail matters more
            wandb.init(settings=wandb.Settings(init_timeout=30.0, silent=True))
    wandb.finish(exit_code=exit_code)


class WholeTable(loggers.CSVLogger):
    """Lightning's `metrics.csv` in the run's directory, written at each step that logs.

    Whatever ends the run, and when, the rows that were written stay, and each is whole.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        self._experiment = self._experiment or _Rows(self.log_dir)
        return self._experiment

    @property
    def rows(self) -> int:
        """How many were logged, those of a run that goes on here too; of the first process alone."""
        return self._experiment.written + len(self._experiment.metrics) if isinstance(self._experiment, _Rows) else 0


class _Rows(ExperimentWriter):
    written = 0

    def save(self) -> None:
        path, columns, more = Path(self.metrics_file_path), [*self.metrics_keys], len(self.metrics)
        with named(path):
            try:
                super().save()
                self.written += more
            except OSError:
                self.metrics_keys = columns  # those of the file, for the rows that are written when the run ends
                with contextlib.suppress(OSError), path.open("r+b") as file:
                    file.truncate(file.read().rfind(b"\n") + 1)
                raise

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="locale") as file:
            rows = [*csv.DictReader(file)]
        with written_whole(path) as part, part.open("w", newline="", encoding="locale") as file:
            writer = csv.DictWriter(file, fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class TensorBoard(loggers.TensorBoardLogger):
    """Lightning's TensorBoard logger, writing to `tensorboard/` in the run's directory."""

    def __init__(self) -> None:
        super().__init__(save_dir="", name="tensorboard", version="")

    def start_in(self, directory: Path, run_id: str, name: str) -> None:
        self._root_dir = str(directory)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with named(Path(self.log_dir)):
            super().log_metrics(dict(metrics), step)


def _advice(said: str) -> str:
    """What to change, where the server's refusal tells."""
    if "error 401" in said:
        return " It does not know the key: `wandb login --relogin` or WANDB_API_KEY sets another."
    if "permission denied" in said:
        return " Choose where you may write: --trainer.logger.entity and --trainer.logger.project."
    return ""


def _has_key() -> bool:
    """Whether W&B has credentials, in the environment, its settings or the netrc file; the server is not asked."""
    if "WANDB_API_KEY" in os.environ or "WANDB_IDENTITY_TOKEN_FILE" in os.environ:
        return True
    settings = wandb_setup.singleton().settings  # those that a run will have: `wandb.Settings()` reads no file
    try:
        return bool(settings.api_key or wbauth.read_netrc_auth(host=settings.base_url))
    except wandb.errors.AuthenticationError:
        return True  # a key of no key's form: when the run begins, W&B says so
