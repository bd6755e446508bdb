"""A sweep file, as `wandb sweep` reads it."""

import json
import os
import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from layersim.errors import UserError, as_user_error, meant
from layersim.report.reading import OnceLoader, check_plain, damaging
from layersim.sweep.flags import from_agent

METHODS = ("grid", "random", "bayes")
GOALS = ("maximize", "minimize")
VERBS = ("fit", "validate", "test")
DISTRIBUTIONS: dict[str, tuple[set[str], set[str]]] = {
    "constant": ({"value"}, set()),
    "categorical": ({"values"}, set()),
    "categorical_w_probabilities": ({"values", "probabilities"}, set()),
    **dict.fromkeys(
        ("uniform", "int_uniform", "log_uniform_values", "inv_log_uniform_values"), ({"min", "max"}, set())
    ),
    **dict.fromkeys(("q_uniform", "q_log_uniform_values"), ({"min", "max"}, {"q"})),
    **dict.fromkeys(("normal", "log_normal"), (set(), {"mu", "sigma"})),
    **dict.fromkeys(("q_normal", "q_log_normal"), (set(), {"mu", "sigma", "q"})),
    "beta": ({"a", "b"}, set()),
    "q_beta": ({"a", "b"}, {"q"}),
}
"""Each distribution's keys: those that it needs, and those that it may have."""


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says."""

    path: Path
    config: dict[str, Any]
    before: list[str]
    """The command's words from its verb to `${args}`, which stands for a trial's own flags."""
    after: list[str]
    environment: dict[str, str]
    """What stands before the program, as in `CUDA_VISIBLE_DEVICES=1`."""

    @property
    def metric(self) -> str:
        return str(self.config["metric"]["name"])

    @property
    def maximize(self) -> bool:
        return bool(self.config["metric"].get("goal", "minimize") == "maximize")

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        return dict(self.config["parameters"])

    def command(self, values: dict[str, Any], *more: str) -> list[str]:
        """The words of one trial's command line, as they are read under W&B's agent."""
        return from_agent([*self.before, *more, *(f"--{name}={value}" for name, value in values.items()), *self.after])


def read(path: Path) -> SweepFile:
    """Reads a sweep file; a UserError says what a sweep of layersim lacks."""
    if not path.is_file():
        raise UserError(f"There is no sweep file {path}.")
    if not re.fullmatch(r"[\w.-]+", path.stem):
        raise UserError(
            f"{path}: runs of a sweep are kept in a folder of the file's name. Rename the file: letters, digits, '.', "
            "'_' and '-' may stand in it."
        )
    with damaging(path):
        with as_user_error("expected YAML"):
            config = yaml.load(path.read_text(encoding="utf-8"), OnceLoader)
        check_plain(config)
        with as_user_error("expected text, numbers and lists of them", "Put a date in quotes"):
            json.dumps(config)
    if not isinstance(config, dict) or not isinstance(config.get("parameters"), dict) or not config["parameters"]:
        raise UserError(f"{path}: expected a mapping with `method`, `metric`, `parameters` and `command`.")
    if config.get("method") not in METHODS:
        raise UserError(f"{path}: expected method {', '.join(METHODS)}, but got {config.get('method')!r}.")
    if not isinstance(config.get("metric"), dict) or "name" not in config["metric"]:
        raise UserError(f"{path}: expected `metric: {{name: val/accuracy, goal: maximize}}` or its like.")
    if config["metric"].get("goal", "minimize") not in GOALS:
        raise UserError(f"{path}: expected goal {' or '.join(GOALS)}, but got {config['metric']['goal']!r}.")
    cap = config.get("run_cap", 1)
    if not isinstance(cap, int) or isinstance(cap, bool) or cap < 1:
        raise UserError(f"{path}: expected run_cap 1 or more, the trials of the sweep, but got {cap!r}.")
    target = config["metric"].get("target", 0)
    if not isinstance(target, int | float) or isinstance(target, bool):
        raise UserError(f"{path}: expected a number as the metric's target, but got {target!r}. Write 1e-3 as 0.001.")
    for name, entry in config["parameters"].items():
        if not isinstance(entry, dict) or "parameters" in entry:
            raise UserError(
                f"{path}: expected `values`, `value` or a range under {name!r}. A section within a section makes one "
                "flag that no option has: name each option by its whole flag."
            )
        if wrong := broken_rule(entry):
            raise UserError(f"{path}: {name}: {wrong}.")
    return SweepFile(path, config, *_split(path, config.get("command")))


def _split(path: Path, command: Any) -> tuple[list[str], list[str], dict[str, str]]:
    words = [_expanded(str(word)) for word in command] if isinstance(command, list) else []
    verb = next((place for place, word in enumerate(words) if word in VERBS), None)
    if verb is None or "${args}" not in words[verb:]:
        raise UserError(
            f"{path}: expected `command: [${{program}}, fit, --config, RECIPE, ${{args}}]`, with the verb one of "
            f"{', '.join(VERBS)}, but got {command!r}."
        )
    usual = re.compile(
        r"[A-Za-z_]\w*=.*|\$\{(env|interpreter|program)\}|(.*/)?(env|layersim|python[\d.]*)|-m|-u|uv|run"
    )
    if others := [word for word in words[:verb] if not usual.fullmatch(word)]:
        raise UserError(
            f"{path}: a local sweep starts layersim itself, but `command` has {' '.join(others)} before {words[verb]}. "
            "Leave that out, or give the file to `wandb agent`."
        )
    place = words.index("${args}", verb)
    environment = dict(word.split("=", 1) for word in words[:verb] if re.match(r"[A-Za-z_]\w*=", word))
    before, after = words[verb:place], words[place + 1 :]
    if any(word.partition("=")[0] in ("--config", "-c") for word in after):
        raise UserError(
            f"{path}: --config stands after ${{args}}, so that the recipe would undo each trial. Put it before."
        )
    return before, after, environment


def _expanded(word: str) -> str:
    """With what W&B's `${envvar:NAME}` stands for."""
    if lacking := [name for name in re.findall(r"\$\{envvar:(\w+)\}", word) if name not in os.environ]:
        raise UserError(f"{lacking[0]} is not set, which the sweep file's command names: {word}.")
    return re.sub(r"\$\{envvar:(\w+)\}", lambda found: os.environ[found[1]], word)


def broken_rule(entry: dict[str, Any]) -> str | None:
    """What is wrong with a parameter's entry; None where nothing is.

    The engine's own word on min and max, and on probabilities, is left to it.
    """
    name = entry.get("distribution") or _implied(entry)
    if name in ("log_uniform", "inv_log_uniform", "q_log_uniform"):
        return f"{name} takes exponents of e as min and max: write {name}_values, which takes the limits themselves"
    if not isinstance(name, str) or name not in DISTRIBUTIONS:
        return f"there is no distribution {name!r}.{meant(name, DISTRIBUTIONS)} There are {', '.join(DISTRIBUTIONS)}"
    needed, allowed = DISTRIBUTIONS[name]
    given = entry.keys() - {"distribution"}
    if given - needed - allowed or needed - given:
        keys = ", ".join([*sorted(needed), *(f"{key} (optional)" for key in sorted(allowed))])
        return f"{name} takes {keys}, but got {', '.join(sorted(given)) or 'nothing'}"
    if "values" in given and (not isinstance(entry["values"], list) or not entry["values"]):
        return f"values is a list of one or more, but got {entry['values']!r}"
    for key in given - {"value", "values", "probabilities"}:
        if isinstance(entry[key], str):
            return f"{key} is the text {entry[key]!r}, not a number: YAML reads 1.0e-5 as one, and 1e-5 as text"
        if not isinstance(entry[key], int | float) or isinstance(entry[key], bool) or not isfinite(entry[key]):
            return f"{key} is a number, but got {entry[key]!r}"
    return None


def _implied(entry: dict[str, Any]) -> str:
    """The distribution that an entry's keys stand for where it names none."""
    if "probabilities" in entry:
        return "categorical_w_probabilities"
    if "values" in entry:
        return "categorical"
    return "constant" if "value" in entry else "uniform"
