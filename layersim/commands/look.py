"""`layersim look MODEL`: a model's layers as they are, on data as people have them."""

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer

from layersim.commands import guesses
from layersim.commands.console import in_few_lines, quiet, unsaid
from layersim.commands.default_callbacks import take_shipped_callbacks
from layersim.commands.guesses import Guess
from layersim.commands.model_guesses import Readable, pooled, readable, settled
from layersim.commands.outcome import check_place, made_place
from layersim.commands.parser import call
from layersim.commands.screens import print_facts, print_next, shown
from layersim.commands.start import exits_command
from layersim.errors import as_user_error, at_least
from layersim.module import LayerwiseModule
from layersim.report.configuration import CONFIG_FILE, RANDOM, is_random
from layersim.report.page import PAGE_FILE
from layersim.report.records import LayerRecord
from layersim.report.secrets import masked
from layersim.runs.class_names import few, head_classes
from layersim.runs.configuration import write_facts
from layersim.runs.directory import discarding_unused
from layersim.runs.models import Source, fitted_split, make_data, open_module, read_source
from layersim.runs.refusals import running
from layersim.runs.stopping import StopOnSignal, stopped_first
from layersim.writing import written_whole

_EXPERIMENT = "look"
_OTHER_NAMES = (
    (r"^--data\.(init_args\.)?path(?==|$)", "--data"),
    (r"^--data\.(init_args\.)?(?=\w)", "--data_options."),
    (r"^--model\.backbone\.(init_args\.)?(?=\w)", "--backbone_options."),
)
"""Options of every other verb, and what they are here."""
_MONITORS = (
    "LayerAccuracyMonitor",
    "SimilarityHeatmaps",
    "SaturationMonitor",
    "ExitCurveMonitor",
    "LayerGeometryMonitor",
)


def main(args: Sequence[str]) -> None:
    """Runs `layersim look …`; messages name the data's and the backbone's options as those of every verb, and so they
    are taken."""
    words = list(args)
    for name, other in _OTHER_NAMES:
        words = [re.sub(name, other, word) for word in words]
    call(look, words)


def look(
    model: str,
    *,
    data: str | None = None,
    split: str | None = None,
    max_samples: int = 2048,
    data_options: dict[str, Any] = {},  # noqa: B006 - read only
    backbone_options: dict[str, Any] = {},  # noqa: B006 - read only
    device: str = "auto",
    seed: int = 0,
    to: Path | None = None,
) -> LayerRecord:
    """Look into a model as it is, in one process: how alike its layers are, how their features are spread, and, where
    its head can say, how much each layer knows. Nothing is trained. Says what it guesses, prints a table, and leaves
    layers.jsonl, figures and report.html in a run's directory.

    Args:
        model: a folder with a model of transformers or timm (an export of `layersim export` too), timm:NAME,
            transformers:NAME, a run's directory, a checkpoint (….ckpt), or a recipe (….yaml, recipe:NAME)
        data: a folder of images; a file (csv, tsv, json, jsonl, parquet, txt); digits, docstrings or stdlib_code, which
            every installation has; a name on the hub; a recipe or a run, for its data. Where left out those that the
            model was trained on, or what every installation has.
        split: of the data to read; by default the first there is of validation, test and train, and of a recipe's data
            val
        max_samples: samples (of a language model tokens) to read at most
        data_options: of the data's class, typed as --data.NAME=VALUE, such as --data.text_column=review
        backbone_options: of the model's, typed as --model.backbone.NAME=VALUE, such as
            --model.backbone.task=classification or --model.backbone.pool=mean
        device: where the model runs, such as cpu or cuda:1
        seed: of weights that nobody has trained, and of the samples that are drawn
        to: a new directory for what comes out

    Raises:
        UserError: a model or data that cannot be read, or do not fit; what cannot be guessed; a place that cannot be
            written to.
    """
    quiet()
    check_place(to, _EXPERIMENT)
    at_least(4, "--max_samples", max_samples)
    source, told = settled(read_source(model), backbone_options)
    found = source.data if data is None else guesses.opened(data)
    module = open_module(source, seed=seed)
    source, pooling = pooled(source, module, backbone_options)
    guess = guesses.guess(found, module.backbone, split=split, max_samples=max_samples, options=data_options)
    with unsaid("Data: ", "Docstrings: "):  # of splits that nobody looks at
        own = make_data(guess.section)
        samples = fitted_split(module.backbone, own, guess.stage, source.given)
    told_by = readable(source, module, own, guess)
    if told_by.labels and guess.classes and not head_classes(module.backbone, source):
        names = guess.names or [*map(str, range(guess.classes))]
        guess.told.append(f"the head's classes are these, in this order: {few(names)}")
    if not told_by.labels and not module.backbone.reads_tokens:
        own.splits[guess.stage].labels = None  # which the head cannot be compared with
    with discarding_unused():
        place = made_place(to, _EXPERIMENT)
        total = sum(parameter.numel() for parameter in module.parameters())
        where = guess.section["init_args"].get("path", "")
        unit = {"images": "images", "texts": "texts", "tokens": "blocks of tokens"}[guesses.kind_of(module.backbone)]
        count = f"{len(samples):,}" + (f" of {guess.rows:,}" if (guess.rows or 0) > len(samples) else "")
        trainer, left_out = _trainer(device, place, told_by)
        print_facts(
            {
                "Model": f"{source.name}, {module.num_layers} layers, {total:,} parameters, on "
                f"{trainer.strategy.root_device}",
                "Data": f"{count} {unit} of {where or type(own).__name__}",
                "Guessed": [*(told if module.backbone.input_size is None else []), *pooling, *guess.told],
                "Left out": told_by.why,
                "Weights": RANDOM if source.state is None and is_random(source.model["backbone"]) else "",
                "Note": guess.note,
                "Kept in": shown(place),
            }
        )
        _write_configuration(place, source, guess, trainer, module, left_out, seed)
        run = trainer.validate if guess.stage == "val" else trainer.test
        with stopped_first(trainer), running(trainer):
            run(module, datamodule=own, verbose=False)
        (recorder,) = (call for call in trainer.callbacks if hasattr(call, "records"))  # type: ignore[attr-defined]
    print_facts({"Page": shown(place / PAGE_FILE)})
    promising = 0 if module.backbone.reads_tokens else len(samples)
    as_is = not (pooling or backbone_options)  # else a model's name alone stands for another reading of it
    print_next(_next(source, guess, place, left_out, promising, source.given if as_is else shown(place / CONFIG_FILE)))
    return recorder.records[-1]


def _trainer(device: str, place: Path, told_by: Readable) -> tuple[Trainer, list[str]]:
    """One process's, which measures what can be told, records it, and logs nowhere; and the monitors left out."""
    take_shipped_callbacks()
    shipped = import_module("callbacks")
    monitors = [getattr(shipped, name)() for name in _MONITORS]
    kept = [call for call in monitors if call.reads_head <= told_by.head and call.reads_labels <= told_by.labels]
    callbacks = [*kept, shipped.RunRecorder(), shipped.ReportWriter()]
    kind, _, number = device.partition(":")
    if kind == "auto" and torch.backends.mps.is_available():  # which has no float64
        kind = "cpu"
    with as_user_error(f"There is no device {device!r} here", "Change --device."):
        trainer = Trainer(
            accelerator=kind,
            devices=[int(number)] if number else 1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=place,
            callbacks=[*callbacks],  # to which Lightning adds its own
        )
    trainer.callbacks = [*in_few_lines(trainer.callbacks, callbacks), StopOnSignal()]  # type: ignore[attr-defined]
    return trainer, [type(call).__name__ for call in monitors if call not in kept]


def _write_configuration(
    place: Path,
    source: Source,
    guess: Guess,
    trainer: Trainer,
    module: LayerwiseModule,
    left_out: Sequence[str],
    seed: int,
) -> None:
    """What `layersim validate` measures the same with."""
    config: dict[str, Any] = {"experiment": _EXPERIMENT, "seed_everything": seed, "without": [*left_out]}
    config |= {} if source.path is None else {"ckpt_path": str(source.path.resolve())}
    config |= {"trainer": {"callbacks": [{"class_path": "callbacks.LayerGeometryMonitor"}]}}
    init = dict(guess.section["init_args"])
    init |= {"label_column": None} if "label_column" in init and "LayerAccuracyMonitor" in left_out else {}
    config |= {"model": source.model, "data": {**guess.section, "init_args": init}}
    with written_whole(place / CONFIG_FILE) as part:
        part.write_text(masked(yaml.safe_dump(config, sort_keys=False)), encoding="utf-8")
    write_facts(place, trainer, module, "look")


def _next(
    source: Source, guess: Guess, place: Path, left_out: Sequence[str], samples: int, model: str
) -> dict[str, list[str]]:
    """Two commands that go on from here; `model` is how it is named."""
    commands = {}
    if source.data is not None and source.path is not None:
        commands = exits_command(shown(source.path), samples)
    elif guess.classes is not None or guess.section["class_path"].endswith("LanguageModeling"):
        init = guess.section["init_args"]
        # but for what look itself leaves out of the data
        own = [f"max_{what}" for what in ("train_samples", "eval_samples", "bytes")]
        own += ["find_duplicates", "on_bad_sample", "val_fraction", "per_package", "eval_batch_size"]
        kept = [key for key in init if not key.endswith("_split") and key not in own]
        kind = "linear" if left_out else "tuned"
        commands["What each layer knows, by a probe or a lens that is trained on it"] = [
            *("layersim", "lens", f"--ckpt_path={model}", f"--kind={kind}"),
            f"--data={guess.section['class_path'].rpartition('.')[2]}",
            *(f"--data.{key}={init[key]}" for key in kept if init[key] is not None),
        ]
    elif guess.note:
        commands["On your own data"] = ["layersim", "look", source.given, "--data=PATH"]
    again = ["layersim", "validate", f"--config={shown(place / CONFIG_FILE)}"]
    return commands | {"The same with all options in a file, to change": again}
