"""`layersim similarity --a MODEL --b MODEL`: how alike are the layers of two models?"""

import argparse
import json
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console

from layersim import run_directory
from layersim.across.features import ModelFeatures, read_features
from layersim.across.measures import measure_class
from layersim.across.sources import FORMS, Source, open_module, read_source
from layersim.data import SplitDataModule
from layersim.data.blocks import BlockData
from layersim.errors import UserError
from layersim.report.across import AcrossReport, across_figure, across_table, write_across_report
from layersim.report.canvas import save_figure

_EXPERIMENT = "similarity"
FIGURE_FILE = "similarity.png"


def main(args: list[str]) -> int:
    """Runs the command with what stands behind `layersim similarity`; 0 when all went well."""
    parser, sources, options = _parse(args)
    if options.to is None:
        run_directory.check_writable(run_directory.DEFAULT_ROOT, _EXPERIMENT)
    elif Path(options.to).exists():
        raise UserError(f"{options.to} exists. Choose another --to.")
    names = _names(sources)
    first, second = (_read(source, name, parser, options) for source, name in zip(sources, names, strict=True))
    _require_same_samples(first, second, names)
    metric = measure_class(options.measure)(**options.options.as_dict(), max_samples=None)
    metric.update(first.values, torch.arange(first.values.shape[1]), other=second.values)
    report = AcrossReport(
        models={
            side: {"name": name, "given": source.given} for side, name, source in zip("ab", names, sources, strict=True)
        },
        measure=options.measure,
        options={**metric.options, "max_samples": options.max_samples},
        identical=metric.properties.identical,
        data=options.data.as_dict(),
        split=options.split,
        samples=first.values.shape[1],
        similarity=metric.compute().tolist(),
    )
    directory = _directory(options.to)
    console = Console()
    console.print(across_table(report))
    save_figure(across_figure(report), directory / FIGURE_FILE)
    for what, path in {"Numbers": write_across_report(directory, report), "Figure": directory / FIGURE_FILE}.items():
        console.print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _parse(args: list[str]) -> tuple[ArgumentParser, list[Source], Namespace]:
    """The parser, the two models, and all options; where no data are typed, those of the first model that tells its."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--a", "--b", "--data", "--measure"):
        peek.add_argument(option)
    typed, _ = peek.parse_known_args(args)
    parser = _parser(typed.measure or "cka")
    sources = [read_source(given) for given in (typed.a, typed.b) if given is not None]
    stored = [source.data for source in sources if source.data]
    if typed.data is None and stored:
        args = ["--data", json.dumps(stored[0]), *args]
    try:
        options = parser.parse_args(args)
    except ArgumentError as error:
        raise UserError(f"{error} `layersim similarity --help` lists the options.") from error
    if options.data is None:
        raise UserError("Neither model tells its data. Set --data, such as --data=Digits.")
    return parser, sources, options


def _parser(measure: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog="layersim similarity",
        description="Compare two models layer by layer: a heat map of all pairs, and each layer's best match.",
        exit_on_error=False,
    )
    parser.add_argument("--a", type=str, required=True, metavar="MODEL", help=f"{FORMS}.")
    parser.add_argument("--b", type=str, required=True, metavar="MODEL", help="The model to compare it with, alike.")
    parser.add_subclass_arguments(
        SplitDataModule, "data", required=False, help="As in `fit`; where left out, those of model a, else of b."
    )
    parser.add_argument("--split", type=Literal["val", "test"], default="val", help="The split of the data to read.")
    parser.add_argument("--measure", type=str, default="cka", help="The similarity; its options are --options.…")
    parser.add_argument("--max_samples", type=int, default=4096, help="Samples (or tokens) to compare at most.")
    parser.add_argument("--device", type=str, default="auto", help="Where the models run, such as cpu or cuda:1.")
    parser.add_argument("--seed", type=int, default=0, help="Of weights that nobody has trained.")
    parser.add_argument("--to", type=str, default=None, metavar="DIR", help="A new directory for what comes out.")
    parser.add_class_arguments(measure_class(measure), "options", skip={"max_samples"}, instantiate=False)
    if measure == "cka":
        parser.set_defaults({"options.estimator": "debiased"})
    return parser


def _names(sources: list[Source]) -> list[str]:
    """Short names; what was typed where those do not tell different models apart."""
    first, second = sources
    return [first.given, second.given] if first.name == second.name else [first.name, second.name]


def _read(source: Source, name: str, parser: ArgumentParser, options: Namespace) -> ModelFeatures:
    data: SplitDataModule = parser.instantiate_classes(options).data
    module = open_module(source, tokens=isinstance(data, BlockData), seed=options.seed, device=options.device)
    return read_features(module.backbone, data, split=options.split, max_samples=options.max_samples, name=name)


def _require_same_samples(first: ModelFeatures, second: ModelFeatures, names: list[str]) -> None:
    if not torch.equal(first.identity, second.identity):
        raise UserError(
            f"{names[0]} and {names[1]} do not read the same tokens of these data, so that none of the one's is known "
            "to be one of the other's. Compare two language models of one tokenizer, or two classifiers."
        )


def _directory(to: str | None) -> Path:
    if to is None:
        return run_directory.reserve(run_directory.DEFAULT_ROOT, _EXPERIMENT)
    try:
        Path(to).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"The directory {to} cannot be made: {error}. Change --to.") from error
    return Path(to).resolve()
