"""`layersim similarity --a MODEL --b MODEL`: how alike are the layers of two models?

Letters: L layers of model a, M layers of model b.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from layersim.commands.reading import FORMS, ReadingParser, make_directory, peek, print_outcome, reading_parser
from layersim.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from layersim.commands.features import ModelFeatures
    from layersim.commands.models import Source
    from layersim.similarity.samples import SampleMetric

MEASURES = {
    "cosine": "CosineSimilarity",
    "angular": "AngularDistance",
    "cka": "LinearCKA",
    "rbf_cka": "RBFCKA",
    "cknna": "CKNNA",
    "mutual_knn": "MutualKNN",
    "rsa": "RSA",
    "procrustes": "Procrustes",
    "mean_cca": "MeanCCA",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "r2": "RegressionR2",
}
"""The classes of `layersim.similarity`, by the names that figures and records give their values."""
FIGURE_FILE = "similarity.png"
_EXPERIMENT = "similarity"


def compare_models(
    first: "ModelFeatures",
    second: "ModelFeatures",
    metric: "SampleMetric",
    *,
    seed: int = 0,
    names: Sequence[str] = ("model a", "model b"),
) -> "Tensor":
    """How alike the layers of two models are, which may differ in depth, width and tokenizer: (L, M) in float64.

    Args:
        first: what `layersim.commands.features.read_features` has read of model a.
        second: of model b, on the same data.
        metric: of `layersim.similarity`, with `max_samples=None`.
        seed: of the order in which samples form the groups of a minibatch measure.
        names: what an error calls the models.

    Raises:
        UserError: language models that do not read the same tokens.
    """
    import torch

    from layersim.data.splits import evaluation_generator

    if not torch.equal(first.identity, second.identity):
        raise UserError(
            f"{names[0]} and {names[1]} do not read the same tokens of these data, so that none of the one's is known "
            "to be one of the other's. Compare two language models of one tokenizer, or two classifiers."
        )
    # features come by their index in the source, whose neighbours may be alike: groups are made of an order of our own
    drawn = evaluation_generator(seed).permutation(first.values.shape[1])
    metric.update(first.values, torch.from_numpy(drawn), other=second.values)
    similarity: Tensor = metric.compute()
    return similarity


def measure_class(name: str) -> "type[SampleMetric]":
    """The metric of that name in `MEASURES`.

    Raises:
        UserError: there is none; those with names alike are named.
    """
    if name not in MEASURES:
        near = get_close_matches(name.lower(), MEASURES)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"There is no measure {name!r}.{hint} Choose --measure from {', '.join(MEASURES)}.")
    metric: type[SampleMetric] = getattr(import_module("layersim.similarity"), MEASURES[name])
    return metric


def main(args: Sequence[str]) -> None:
    """Runs the command with what stands behind `layersim similarity`."""
    parser = _parser(args)
    from layersim.commands.models import read_source
    from layersim.report.across import AcrossReport, across_figure, across_table, write_across_report
    from layersim.report.drawing.canvas import save_figure
    from layersim.runs import directory as run_directory

    sources = [read_source(model) for model in peek(args, "a", "b").values() if model is not None]
    options = parser.read([source.data for source in sources])
    if options.data is None:
        raise UserError("Neither model tells its data. Set --data, such as --data=Digits.")
    _check_place(options.to)
    # refuses its options before any model is read
    metric = measure_class(options.measure)(**options.options.as_dict(), max_samples=None)
    first, second = sources
    names = [first.name, second.name] if first.name != second.name else [first.given, second.given]
    features = _read(first, names[0], parser, options)
    similarity = compare_models(
        features, _read(second, names[1], parser, options), metric, seed=options.seed, names=names
    )
    report = AcrossReport(
        models={
            side: {"name": name, "given": source.given} for side, name, source in zip("ab", names, sources, strict=True)
        },
        measure=options.measure,
        options={**metric.options, "max_samples": options.max_samples, "order": "drawn by seed"},
        identical=metric.properties.identical,
        data=options.data.as_dict(),
        split=options.split,
        samples=features.values.shape[1],
        similarity=similarity.tolist(),
    )
    if options.to is None:
        directory = run_directory.reserve(run_directory.DEFAULT_ROOT, _EXPERIMENT)
    else:
        directory = make_directory(options.to).resolve()
    save_figure(across_figure(report), directory / FIGURE_FILE)
    print_outcome(across_table(report), write_across_report(directory, report), directory / FIGURE_FILE)


def _parser(args: Sequence[str]) -> ReadingParser:
    parser = reading_parser(
        args,
        samples="Samples (or tokens) to compare at most.",
        seed="Of weights that nobody has trained.",
        to="A new directory for what comes out.",
        prog="layersim similarity",
        description="Compare two models layer by layer: a heat map of all pairs, and each layer's best match.",
    )
    parser.add_argument("--a", type=str, required=True, metavar="MODEL", help=f"{FORMS}.")
    parser.add_argument("--b", type=str, required=True, metavar="MODEL", help="The model to compare it with, alike.")
    parser.add_data("data", "As in `fit`; where left out, those of model a, else of b.")
    told = f"One of {', '.join(MEASURES)}; `--measure NAME --help` tells its options, which are --options.…"
    parser.add_argument("--measure", type=str, default="cka", help=told)
    if parser.helps:
        parser.read()
    measure = peek(args, "measure")["measure"] or "cka"
    parser.add_class_arguments(measure_class(measure), "options", skip={"max_samples"}, instantiate=False)
    if measure == "cka":
        parser.set_defaults({"options.estimator": "debiased"})
    return parser


def _read(source: "Source", name: str, parser: ReadingParser, options: Namespace) -> "ModelFeatures":
    from layersim.commands.features import read_features
    from layersim.commands.models import open_module
    from layersim.data.blocks import BlockData

    data = parser.made(options).data  # for this model alone: some take its tokenizer
    module = open_module(source, tokens=isinstance(data, BlockData), seed=options.seed, device=options.device)
    return read_features(module.backbone, data, split=options.split, max_samples=options.max_samples, name=name)


def _check_place(to: Path | None) -> None:
    """Refuses, before anything is read, a place that nothing can be written to."""
    from layersim.export import check_destination
    from layersim.runs import directory as run_directory

    if to is None:
        run_directory.check_writable(run_directory.DEFAULT_ROOT, _EXPERIMENT)
    elif to.exists():  # it has no --overwrite, of which the other refusal speaks
        raise UserError(f"{to} exists. Choose another --to.")
    else:
        check_destination(to, overwrite=False)
