"""W&B's own `sweeps` engine: which trial comes next, and which is to be stopped."""

import importlib
import random
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from layersim.errors import UserError, as_user_error
from layersim.sweep.ledger import Trial

_OURS = ("program", "command", "entity", "project", "run_cap")
_refused = partial(as_user_error, "W&B's engine refuses the sweep", "Change its method, parameters or early_terminate.")


class Engine:
    """Draws trials of a sweep as W&B's server does, the same for the same trials before."""

    def __init__(self, config: dict[str, Any]) -> None:
        with warnings.catch_warnings(action="ignore"):  # it was written for an older pydantic
            try:
                self._sweeps = importlib.import_module("sweeps")
            except ModuleNotFoundError as error:
                raise UserError(
                    "A sweep without a server needs W&B's engine: pip install 'layersim[sweep]'."
                ) from error
        # `program`, `command` and `run_cap` have been checked, and are not the engine's business
        self._config = {key: value for key, value in config.items() if key not in _OURS}
        with _refused():
            violations = self._sweeps.schema_violations_from_proposed_config(self._config)
        if violations:
            raise UserError(f"W&B's engine refuses the sweep: {'; '.join(dict.fromkeys(violations))}.")

    def rehearse(self) -> None:
        """Draws, and asks whether to stop, as if three trials had ended: the engine refuses here what it would refuse
        then."""
        trials: list[Trial] = []
        while len(trials) < 3 and (values := self.suggest(trials)):
            trials.append(Trial(len(trials) + 1, values, "finished", [0.1 * len(trials)] * 9))
        self.suggest(trials)
        self.stops(Trial(len(trials) + 1, trials[0].values, "running", [0.0] * 9), trials)

    def suggest(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """The next trial's values; None where a grid is through."""
        random.seed(len(trials))
        np.random.seed(len(trials))  # noqa: NPY002 - the engine draws from this
        with warnings.catch_warnings(action="ignore"), _refused():  # of its Gaussian process, on few trials
            run = self._sweeps.next_run(self._config, [self._run(trial) for trial in trials])
        if run is None:
            return None
        drawn = {name: entry["value"] for name, entry in run.config.items()}  # NumPy's scalars among them
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in drawn.items()}

    def stops(self, trial: Trial, others: Sequence[Trial]) -> bool:
        """Whether a running trial is so far behind the others that `early_terminate` ends it."""
        if "early_terminate" not in self._config:
            return False
        runs = [self._run(one) for one in (*others, trial)]
        with _refused():
            stopped = self._sweeps.stop_runs(self._config, runs)
        return any(run.name == str(trial.trial) for run in stopped)

    def _run(self, trial: Trial) -> Any:
        name = self._config["metric"]["name"]
        return self._sweeps.SweepRun(
            name=str(trial.trial),
            state="finished" if trial.state == "stopped" else trial.state,  # counts with the metric that it reached
            config={key: {"value": value} for key, value in trial.values.items()},
            sampledHistory=[{name: value} for value in trial.history],
            summaryMetrics={name: trial.history[-1]} if trial.history else {},
        )
