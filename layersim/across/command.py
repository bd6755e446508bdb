"""`layersim similarity --a MODEL --b MODEL`: how alike are the layers of two models?"""

from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace

from layersim.across.features import ModelFeatures, read_features
from layersim.across.measures import measure_class
from layersim.across.options import add_reading_options, made, parse, print_outcome, typed
from layersim.across.sources import FORMS, Source, open_module, read_source
from layersim.commands.parser import Parser
from layersim.data import SplitDataModule
from layersim.data.blocks import BlockData
from layersim.data.splits import evaluation_generator
from layersim.errors import UserError
from layersim.export import check_destination
from layersim.report.across import AcrossReport, across_figure, across_table, write_across_report
from layersim.report.drawing.canvas import save_figure
from layersim.runs import directory as run_directory

_EXPERIMENT = "similarity"
FIGURE_FILE = "similarity.png"


def main(args: list[str]) -> int:
    """Runs the command with what stands behind `layersim similarity`; 0 when all went well."""
    parser, sources, options = _parse(args)
    if options.to is None:
        run_directory.check_writable(run_directory.DEFAULT_ROOT, _EXPERIMENT)
    elif Path(options.to).exists():  # it has no --overwrite, of which the other refusal speaks
        raise UserError(f"{options.to} exists. Choose another --to.")
    else:
        check_destination(Path(options.to), overwrite=False)
    # refuses its options before any model is read
    metric = measure_class(options.measure)(**options.options.as_dict(), max_samples=None)
    names = _names(sources)
    first, second = (_read(source, name, parser, options) for source, name in zip(sources, names, strict=True))
    _require_same_samples(first, second, names)
    # features come by their index in the source, whose neighbours may be alike: groups are made of an order of our own
    drawn = evaluation_generator(options.seed).permutation(first.values.shape[1])
    metric.update(first.values, torch.from_numpy(drawn), other=second.values)
    report = AcrossReport(
        models={
            side: {"name": name, "given": source.given} for side, name, source in zip("ab", names, sources, strict=True)
        },
        measure=options.measure,
        options={**metric.options, "max_samples": options.max_samples, "order": "drawn by seed"},
        identical=metric.identical,
        data=options.data.as_dict(),
        split=options.split,
        samples=first.values.shape[1],
        similarity=metric.compute().tolist(),
    )
    directory = _directory(options.to)
    save_figure(across_figure(report), directory / FIGURE_FILE)
    print_outcome(across_table(report), write_across_report(directory, report), directory / FIGURE_FILE)
    return 0


def _parse(args: list[str]) -> tuple[ArgumentParser, list[Source], Namespace]:
    """The parser, the two models, and all options; where no data are typed, those of the first model that tells its."""
    given = typed(args, "a", "b", "measure")
    parser = _parser(given["measure"] or "cka")
    sources = [read_source(model) for model in (given["a"], given["b"]) if model is not None]
    options = parse(parser, args, [source.data for source in sources if source.data])
    if options.data is None:
        raise UserError("Neither model tells its data. Set --data, such as --data=Digits.")
    return parser, sources, options


def _parser(measure: str) -> ArgumentParser:
    parser = Parser(
        prog="layersim similarity",
        description="Compare two models layer by layer: a heat map of all pairs, and each layer's best match.",
        allow_abbrev=False,
    )
    parser.add_argument("--a", type=str, required=True, metavar="MODEL", help=f"{FORMS}.")
    parser.add_argument("--b", type=str, required=True, metavar="MODEL", help="The model to compare it with, alike.")
    parser.add_subclass_arguments(
        SplitDataModule, "data", required=False, help="As in `fit`; where left out, those of model a, else of b."
    )
    parser.add_argument("--measure", type=str, default="cka", help="The similarity; its options are --options.…")
    add_reading_options(
        parser, samples="Samples (or tokens) to compare at most.", seed="Of weights that nobody has trained."
    )
    parser.add_argument(
        "--to", type=str | None, default=None, metavar="DIR", help="A new directory for what comes out."
    )
    parser.add_class_arguments(measure_class(measure), "options", skip={"max_samples"}, instantiate=False)
    if measure == "cka":
        parser.set_defaults({"options.estimator": "debiased"})
    return parser


def _names(sources: list[Source]) -> list[str]:
    """Short names; what was typed where those do not tell different models apart."""
    first, second = sources
    return [first.given, second.given] if first.name == second.name else [first.name, second.name]


def _read(source: Source, name: str, parser: ArgumentParser, options: Namespace) -> ModelFeatures:
    data: SplitDataModule = made(parser, options).data
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
