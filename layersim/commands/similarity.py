"""`layersim similarity --a MODEL --b MODEL`: how alike are the layers of two models?

Letters: L layers of model a, M layers of model b.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from layersim.commands.outcome import check_place, data_of, made_place, show_outcome
from layersim.commands.parser import Data, Parser
from layersim.data.blocks import BlockData
from layersim.data.splits import evaluation_generator
from layersim.errors import UserError
from layersim.outputs import LayerFeatures
from layersim.report.across import AcrossReport, across_figure, across_table
from layersim.runs.models import make_data, open_module, read_features, read_source
from layersim.similarity.measure import Measure, measure_named

_EXPERIMENT = "similarity"


def similarity(
    *,
    a: str,
    b: str,
    data: Data = None,
    measure: str = "cka",
    options: dict[str, Any] = {},  # noqa: B006 - read only
    split: Literal["val", "test"] = "val",
    max_samples: int = 4096,
    null: int | None = None,
    device: str = "auto",
    seed: int = 0,
    to: Path | None = None,
) -> AcrossReport:
    """Compare two models layer by layer: a heat map of all pairs, and each layer's best match.

    Args:
        a: a checkpoint (….ckpt), a run's directory, a recipe (….yaml), timm:NAME, or transformers:NAME, where NAME is
            on the hub, a folder, or package:PACKAGE/FOLDER
        b: the model to compare it with, alike
        data: as in `fit`; where left out, those of model a, else of b.
        measure: cosine, angular, cka, rbf_cka, cknna, mutual_knn, rsa, procrustes, mean_cca, svcca, pwcca or r2
        options: of the measure, as `layersim.similarity` has them, such as --options.estimator=minibatch; CKA is
            debiased where none is given
        split: of the data to read
        max_samples: samples (or tokens) to compare at most
        null: tell which pairs of layers are more alike than chance makes them, from so many permutations of the
            samples of model b, such as 200
        device: where models run, such as cpu or cuda:1
        seed: of weights that nobody has trained, of the order of the samples, and of permutations
        to: a new directory for what comes out

    Raises:
        UserError: a model or data that cannot be read, or do not fit; options that the measure refuses; a place that
            cannot be written to.
    """
    sources = {"a": read_source(a), "b": read_source(b)}
    data = data_of(data, *sources.values())
    check_place(to, _EXPERIMENT)
    metric = _metric(measure, options, None if null is None else max_samples)
    if null is not None:
        metric.expect_null(null, seed)
    told = [source.name for source in sources.values()]
    names = told if told[0] != told[1] else [a, b]
    features = []
    for source, name in zip(sources.values(), names, strict=True):
        own = make_data(data)  # for this model alone: some take its tokenizer
        module = open_module(source, tokens=isinstance(own, BlockData), seed=seed, device=device)
        features.append(read_features(module.backbone, own, split=split, max_samples=max_samples, name=name))
    first, second = features
    similarity = _compared(first, second, metric, seed, names).tolist()
    report = AcrossReport(
        models={
            side: {"name": name, "given": source.given}
            for (side, source), name in zip(sources.items(), names, strict=True)
        },
        measure=measure,
        options={**metric.options, "max_samples": max_samples, "order": "drawn by seed"},
        label=metric.label,
        range=metric.value_range,
        identical=metric.identical,
        data=data,
        split=split,
        samples=first.values.shape[1],
        similarity=similarity,
        null=None if null is None else metric.null(null, seed).told(),
    )
    show_outcome(across_table(report), report.write(made_place(to, _EXPERIMENT)), across_figure(report))
    return report


def _compared(first: LayerFeatures, second: LayerFeatures, metric: Measure, seed: int, names: Sequence[str]) -> Tensor:
    """How alike the layers of two models are on the same data, (L, M) in float64; refuses language models that do not
    read the same tokens."""
    pairs = ((first.position, second.position), (first.targets, second.targets))
    if not all(ours is not None and theirs is not None and torch.equal(ours, theirs) for ours, theirs in pairs):
        raise UserError(
            f"{names[0]} and {names[1]} do not read the same tokens of these data, so that none of the one's is known "
            "to be one of the other's. Compare two language models of one tokenizer, or two classifiers."
        )
    # features come by their index in the source, whose neighbours may be alike: groups are made of an order of our own
    drawn = evaluation_generator(seed).permutation(first.values.shape[1])
    metric.update(first.values, torch.from_numpy(drawn), other=second.values)
    return metric.compute()


def _metric(name: str, options: dict[str, Any], most: int | None) -> Measure:
    """The measure of that name, of all samples that it is given; it refuses its options before any model is read. With
    `most` one that could do without keeps so many of them."""
    kind = measure_named(name)
    parser = Parser(prog="layersim similarity")
    parser.add_class_arguments(kind, "options", skip={"max_samples"}, instantiate=False)
    if name == "cka":
        options = {"estimator": "debiased"} | options
    capped = {"max_samples": most if name in ("cosine", "angular") else None}
    return kind(**parser.parse_object({"options": options}).options.as_dict(), **capped)
