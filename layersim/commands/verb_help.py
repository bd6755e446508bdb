"""What `layersim VERB --help` tells: the verb's own options first, Lightning's and the classes' on request.

The first page imports no library and none of the verbs, whose options it reads in their source.
"""

import argparse
import ast
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from textwrap import fill
from typing import Any

import docstring_parser

OWN = {
    "config": "(or -c) a recipe: YAML with these options; of several, and of what is typed, the last counts",
    "ckpt_path": "the checkpoint to load (`fit` goes on from it), or a run's directory, for its last one",
    "weights_only": "load nothing but tensors and plain types; by default as torch does",
    "resume": "Go on with the run of this directory, or with the `last` of the experiment, from its newest checkpoint "
    "and by its configuration.",
    "experiment": "Runs are kept in <default_root_dir>/<experiment>/.",
    "without": "Default callbacks to leave out, by the names of their classes: SimilarityHeatmaps,ExitCurveMonitor.",
    "seed_everything": "a number to seed all generators with, or true for one that is drawn; 0 where left out",
    "verbose": "Lightning's table beside layersim's",
    "print_config": "print the whole configuration, and end",
}
"""Options that are no class's: of all loops, but for those that `_ONLY` names."""
_ONLY = {
    "resume": ("fit",),
    "weights_only": ("fit", "validate", "test", "predict"),
    "verbose": ("validate", "test"),
}
LOOPS = ("fit", "validate", "test", "predict", "exits", "export")
"""Verbs that take a model, data and a trainer, whose options `training.py` reads."""
_FUNCTIONS = {"exits": "calibrate_exits", "export": "export_model"}
HANDED_ON = {
    "model", "datamodule", "trainer", "dataloaders", "train_dataloaders", "val_dataloaders", "return_predictions",
}  # fmt: skip
"""What a verb gets from its recipe, and not as an option of its own."""
_MORE = """
more options:
  --trainer.NAME VALUE   Lightning's Trainer and the run's place; --trainer.help
  --model.NAME VALUE     backbone, objective, head, optimizer, ...; --model.help
  --data CLASS           the data, with --data.NAME VALUE; --data.help
  --OPTION.help CLASS    a class's own, such as --trainer.callbacks.help CLASS,
                         --model.backbone.help CLASS, --data.help CLASS
  --help=all             everything at once
"""


def own_help(verb: str, does: str) -> str:
    """The first page, 80 columns wide at most."""
    loop = verb in LOOPS
    described, own, placed = (
        (f"{does[0].upper()}{does[1:]}.", {}, {}) if loop and verb not in _FUNCTIONS else _function(verb)
    )
    parser = argparse.ArgumentParser(
        f"layersim {verb}",
        f"layersim {verb} {'[--config RECIPE] [options]' if loop else ' '.join([*placed, '[options]'])}",
        described,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=79, max_help_position=28),
        add_help=False,
    )
    for name, (_, told) in placed.items():
        parser.add_argument(name, help=told.replace("%", "%%"))
    group = parser.add_argument_group("options")
    group.add_argument("-h", "--help", action="store_true", help="show this text")
    shared = {name: told for name, told in OWN.items() if loop and verb in _ONLY.get(name, (verb,))}
    for name, (value, told) in (own | {name: ("VALUE", told) for name, told in shared.items()}).items():
        takes: dict[str, Any] = {"metavar": value} if value else {"action": "store_true"}
        group.add_argument(f"--{name}", help=told.replace("%", "%%"), **takes)
    return parser.format_help() + _MORE * loop


def print_section(parser: Any, verb: str, asked: str) -> None:
    """Prints what was asked for (`trainer`, `model`, or `all`, own options first) of the verb's own parser."""
    rooms: dict[str, list[Any]] = {"own": [], "trainer": [], "model": [], "data": []}
    for group in parser._action_groups:
        if group._group_actions:
            first = group._group_actions[0].dest.partition(".")[0]
            rooms[first if first in rooms else "own"].append(group)
    parser._action_groups = [*chain(*rooms.values())] if asked == "all" else rooms[asked]
    for group in parser._action_groups:
        group.title = fill(group.title, 79)
        for action in group._group_actions:
            if action.metavar is None and len(action.option_strings[0]) > 25 and not action.choices:
                action.metavar = "VALUE" if sum(map(len, action.option_strings)) < 64 else "X"
    parser.prog, parser.usage = f"layersim {verb}", f"layersim {verb} [options]"
    parser.print_help()


def asked_section(words: Sequence[str]) -> str:
    """What is typed to ask for a part of the help; empty where nothing is."""
    asked = {"--help=all": "all", "--trainer.help": "trainer", "--model.help": "model"}
    return next((asked[word] for word in words if word in asked), "")


def _function(verb: str) -> tuple[str, dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """What a verb's function does, its options, and what stands in its place on the command line, from its source: of
    each the value that it takes, and what it means."""
    spec = find_spec(f"layersim.commands.{verb}")
    assert spec is not None
    tree, name = ast.parse(spec.loader.get_source(spec.name)), _FUNCTIONS.get(verb, verb)  # type: ignore[union-attr]
    (function,) = (one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == name)
    told = docstring_parser.parse(ast.get_docstring(function) or "")
    helps = {one.arg_name: one.description or "" for one in told.params}
    given, named, some = function.args.args, function.args.kwonlyargs, function.args.defaults
    defaults = [*[None] * (len(given) - len(some)), *some, *function.args.kw_defaults]
    found = {}
    for one, default in zip([*given, *named], defaults, strict=True):
        if verb in LOOPS and (one.arg in HANDED_ON or one.arg in OWN):
            continue
        kind, usual = ast.unparse(one.annotation or one), getattr(default, "value", None)
        value = {"bool": "VALUE" if verb in LOOPS else "", "Data": "CLASS"}.get(kind, "VALUE")
        if kind.startswith("Literal[") and kind.endswith("]"):
            value = f"{{{','.join(ast.literal_eval(kind[7:]))}}}"
        more = " (required)" if default is None else f" (default: {usual})" if usual not in (None, False) else ""
        more = f" `--{one.arg}.help CLASS` tells its options." if kind == "Data" else more
        found[one.arg] = value, helps[one.arg] + more
    return told.description or "", found, {one.arg: found.pop(one.arg) for one in given if verb not in LOOPS}
