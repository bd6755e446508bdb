"""The command. A verb is the file of its name in `commands/`; `--help` and `--version` import none of them."""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from types import ModuleType

from layersim.errors import UserError
from layersim.runs.signals import Stopped, ended_by_signals
from layersim.writing import REFUSED, refusal

VERBS = {
    "look": "look into a model as it is: the first thing to type",
    "fit": "train a model, measuring every layer each validation epoch",
    "validate": "measure a model on the validation split, trained or not",
    "test": "measure it on the test split",
    "predict": "write predictions and confidences of every layer (parquet)",
    "exits": "choose, with a guarantee, when samples may leave early; measure what it saves",
    "export": "write a stock checkpoint (or ONNX) that needs no layersim, cut to the depth it needs",
    "lens": "tell what is readable, recoverable and known at each layer of any model, as it is",
    "similarity": "compare two models layer by layer: all pairs, and each layer's best match",
    "sweep": "check a W&B sweep file, and run its trials here without a server",
    "transfer": "measure a model's layers on shifted images, and by linear probes on another task",
    "compare": "set finished runs side by side: a table, figures, a page",
    "claims": "judge the paper's claims on finished runs: a number, an interval, a verdict",
    "report": "write one run as a page that opens in any browser",
    "runs": "list runs: what made them, accuracy, effective depth, age, what can go on",
    "dashboard": "make a W&B workspace and a report of what layersim logs",
    "recipes": "list the recipes that come with layersim, or print one",
    "families": "list the families of timm and transformers that are read, and why others are not",
}
_LINES = "\n".join(f"  {verb:<10} {does}" for verb, does in VERBS.items())
HELP = f"""usage: layersim VERB [options]

Train, measure and use transformers whose one classifier works at every layer.

verbs:
{_LINES}

Each verb explains its options: `layersim fit --help`.
A recipe is a YAML file with options: `layersim fit --config recipe:digits/aligned`.
What is typed beats the recipe: `--model.optimizer.init_args.lr=0.0005 --trainer.max_epochs=10`.

options:
  -h, --help     show this text
  --version      show the version
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        args: what stands behind the command's name; `sys.argv` where None.

    Returns:
        The exit status: 0; 2 where what the user gave cannot be used; 128 and the number of the signal that ended it.
    """
    load = _for_good if args is None else import_module
    args = list(sys.argv[1:] if args is None else args)
    verb, rest = (args[0], args[1:]) if args else ("--help", [])
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # where the locale lacks a letter, "?" stands for it
    try:
        with ended_by_signals():
            if verb in ("-h", "--help", "--version"):
                print(f"layersim {version('layersim')}" if verb == "--version" else HELP, flush=True)
                return 0
            if verb not in VERBS:
                raise UserError(f"There is no verb {verb!r}. `layersim --help` lists them.")
            verb, *rest = args = list(load("layersim.commands.recipes").with_paths(args))
            page = load("layersim.commands.verb_help")
            if {"-h", "--help"} & {*rest}:
                print(page.own_help(verb, VERBS[verb]))
            elif verb in page.LOOPS:
                load("layersim.commands.training").main(args)
            elif main := getattr(home := load(f"layersim.commands.{verb}"), "main", None):
                main(rest)
            else:
                load("layersim.commands.parser").call(getattr(home, verb), rest)
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # whoever reads has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python writes when it ends
        return 128 + signal.SIGPIPE
    except (UserError, OSError) as error:
        known = isinstance(error, UserError) or error.errno in REFUSED or _is_typed(error, args)
        if not known or os.environ.get("LAYERSIM_DEBUG"):
            raise
        said = f"{refusal(error)}." if isinstance(error, OSError) else error
        print(f"layersim: error: {said}", file=sys.stderr)
        return 2
    except Stopped as stop:
        if not stop.told:
            print(f"layersim: stopped by {stop.name}", file=sys.stderr)
        return stop.status


def _for_good(name: str) -> ModuleType:
    """The module, in a process of the command's own: what importing makes stays, and is not searched for garbage, which
    takes a seventh of the time until a training's first batch."""
    gc.disable()
    module = import_module(name)
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # as nanobind, when a process ends, takes what is frozen for leaks
    return module


def _is_typed(error: OSError, args: Sequence[str]) -> bool:
    """Whether what the system refuses is a path among the words: one too long, or that may not be looked at."""
    name = os.path.basename(os.fsdecode(error.filename or ""))
    return bool(name) and any(name in word for word in args)


if __name__ == "__main__":
    sys.exit(main())
