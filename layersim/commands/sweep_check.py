"""Whether every flag of a sweep exists and takes its values, asked of the command's parser before the first trial."""

import contextlib
from collections.abc import Iterator
from typing import Any

import yaml

from layersim.commands.preflight import with_checkpoint
from layersim.commands.training import LayerwiseCLI
from layersim.errors import UserError, meant
from layersim.report.configuration import flat
from layersim.runs.rehearsal import STAGES, logged_names, require_logged
from layersim.sweep.file import SweepFile
from layersim.sweep.flags import CONFIG, whole_flag


class Made(LayerwiseCLI):
    """Model, data and callbacks of a command line, and nothing run."""

    def _set_seed(self) -> None: ...

    def instantiate_trainer(self, **kwargs: Any) -> Any: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


class Parsed(Made):
    """The command line as far as it is read, and nothing made of it."""

    def instantiate_classes(self) -> None: ...


class Options:
    """What a sweep's command line says, flag by flag; the parser is built once."""

    def __init__(self, file: SweepFile) -> None:
        self._file = file
        # what there is to set depends on these: without them a model may not even be named
        first = {name: _choices(file.parameters[name])[0] for name in (CONFIG, "ckpt_path") if name in file.parameters}
        words = file.command(first)
        with self._refused(words):
            self._parser = Parsed(words).parser
        self.recipe = self.parse(first)
        """Each option by its whole flag, as the recipe sets it; where recipes or checkpoints are swept, the first."""

    def parse(self, values: dict[str, Any]) -> dict[str, Any]:
        """Each option by its whole flag, as a trial with these values has it."""
        words = self._file.command(values)
        with self._refused(words):
            config = self._parser.parse_args(with_checkpoint(words))
            return flat(yaml.safe_load(self._parser.dump(config, skip_none=False))[words[0]])

    def check_metric(self, values: dict[str, Any]) -> None:
        """Refuses a sweep of which a trial with these values does not log the metric, as far as its callbacks tell."""
        words = self._file.command(values)
        with self._refused(words):
            trial = Made(words)
        callbacks = trial.config_init[words[0]].trainer.callbacks
        names = logged_names(callbacks, trial.model, verb=words[0], stage=STAGES[words[0]])
        require_logged(self._file.metric, names, f"The sweep {self._file.path}", "metric.name")

    @contextlib.contextmanager
    def _refused(self, words: list[str]) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(f"{self._file.path}: `layersim {' '.join(words)}` is refused.\n{error}") from error


def check_sweep(file: SweepFile) -> dict[str, Any]:
    """Tries every value of every parameter, ranges at both ends, the other parameters at their first; gives each option
    by its whole flag, as the recipe sets it.

    A parameter is an option's flag, whole or in short as on the command line (`model.optimizer.lr` for
    `model.optimizer.init_args.lr`), or `config`, whose values are recipes to lay over the command's own. Then the first
    trial's model and callbacks are made, to see whether they log the sweep's metric.
    """
    options = Options(file)
    choices = {name: _choices(entry) for name, entry in file.parameters.items()}
    flags = {name: whole_flag(name, options.recipe) for name in choices}
    if unknown := [name for name, flag in flags.items() if not _may_exist(flag, options.recipe)]:
        raise UserError("\n".join(_no_such_flag(file, name, options.recipe) for name in unknown))
    named: dict[str, str] = {}
    for name, flag in flags.items():
        if (other := named.setdefault(flag, name)) != name:
            raise UserError(f"{file.path}: {other} and {name} are one option. Sweep it under one name.")
    first = {name: values[0] for name, values in choices.items()}
    for name, values in choices.items():
        for value in values:
            try:
                parsed = options.parse(first | {name: value})
            except UserError as error:
                if name == CONFIG or flags[name] in options.recipe:
                    raise
                raise UserError(f"{_no_such_flag(file, name, options.recipe)}\n{error}") from error
            if name != CONFIG and whole_flag(name, parsed) not in parsed:
                raise UserError(_no_such_flag(file, name, options.recipe))
    options.check_metric(first)
    return options.recipe


def _choices(entry: dict[str, Any]) -> list[Any]:
    if "values" in entry:
        return list(entry["values"])
    if "min" in entry and "max" in entry:
        return [entry["min"], entry["max"]]
    return [entry.get("value", entry.get("mu", 0.5))]  # the other distributions are of floats


def _may_exist(name: str, recipe: dict[str, Any]) -> bool:
    """Whether a flag is among the recipe's, or an argument of a class or mapping that the recipe names."""
    section = name.rpartition(".")[0]
    return name in (CONFIG, *recipe) or any(key.startswith(f"{section}.") for key in recipe if section)


def _no_such_flag(file: SweepFile, name: str, recipe: dict[str, Any]) -> str:
    hint = meant(name, recipe) or " `layersim fit --help` lists the options."
    return f"{file.path}: there is no option --{name}.{hint}"
