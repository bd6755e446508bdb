"""W&B's own `sweeps` engine: which trial comes next, and which is to be stopped."""

import importlib
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from layersim.errors import UserError
from layersim.sweep.ledger import Trial

_STATES = {"running": "running", "finished": "finished", "stopped": "finished", "failed": "failed"}
"""The engine's words. A stopped trial counts with the metric that it reached."""


class Engine:
    """Draws trials of a sweep as W&B's server does, the same for the same trials before.

    Raises:
        UserError: the package is missing, or refuses the sweep's configuration.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it was written for an older pydantic
            try:
                self._sweeps = importlib.import_module("sweeps")
            except ModuleNotFoundError as error:
                raise UserError(
                    "A sweep without a server needs W&B's engine: pip install 'layersim[sweep]'."
                ) from error
        # `program` and `command` have been checked, and are not the engine's business
        known = {key: value for key, value in config.items() if key not in ("program", "command", "entity", "project")}
        if violations := self._sweeps.schema_violations_from_proposed_config(known):
            raise UserError(f"The sweep's configuration is refused: {'; '.join(violations)}")

    def suggest(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """The next trial's values; None where a grid is through."""
        random.seed(len(trials))
        np.random.seed(len(trials))  # noqa: NPY002 - the engine draws from this
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its Gaussian process, on few trials
            run = self._sweeps.next_run(self._config, [self._run(trial) for trial in trials])
        if run is None:
            return None
        return {name: _python(entry["value"]) for name, entry in run.config.items()}

    def stops(self, trial: Trial, others: Sequence[Trial]) -> bool:
        """Whether a running trial is so far behind the others that `early_terminate` ends it."""
        if "early_terminate" not in self._config:
            return False
        runs = [self._run(one) for one in (*others, trial)]
        return any(run.name == str(trial.trial) for run in self._sweeps.stop_runs(self._config, runs))

    def _run(self, trial: Trial) -> Any:
        name = self._config["metric"]["name"]
        return self._sweeps.SweepRun(
            name=str(trial.trial),
            state=_STATES[trial.state],
            config={key: {"value": value} for key, value in trial.values.items()},
            sampledHistory=[{name: value} for value in trial.history],
            summaryMetrics={name: trial.history[-1]} if trial.history else {},
        )


def _python(value: Any) -> Any:
    """NumPy's scalars as Python's, which print and save as themselves."""
    return value.item() if isinstance(value, np.generic) else value
