"""`layersim lens --ckpt_path MODEL`: what is readable, recoverable and known at each layer of a model as it is?"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from layersim.backbones import Backbone
from layersim.commands.outcome import data_of, made_place, run_directory, show_outcome
from layersim.commands.parser import Data
from layersim.data import SplitDataModule
from layersim.data.blocks import BlockData
from layersim.errors import UserError, at_least
from layersim.heads import Head, LinearProbes, SharedHead
from layersim.metrics.effective_depth import CONFIDENCE, paired_interval
from layersim.module import LayerwiseModule
from layersim.objectives import Reading
from layersim.outputs import LayerFeatures
from layersim.report.lens import CHANCE, GAPS, READABLE, lens_figure, lens_quantities, lens_table, write_lens_record
from layersim.report.page import PAGE_FILE, write_page
from layersim.report.records import RECORDS_FILE, LayerRecord, read_records
from layersim.runs.checkpoints import read_checkpoint
from layersim.runs.class_names import check_same_classes, head_classes
from layersim.runs.models import Source, fitted_split, labels_of, make_data, open_module, read_features, read_source
from layersim.runs.whole_checkpoints import WholeCheckpoints
from layersim.transfer.frozen_heads import fit_probes, train_head

FOLDER = "lens"
Kind = Literal["tuned", "linear", "separate"]
_EVENLY = {"class_path": "layersim.objectives.Aligned", "init_args": {"weights": "uniform"}}
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "tuned": ("TunedLens", {"class_path": "layersim.objectives.KLToLast"}, "recoverable"),
    "linear": ("LinearProbes", _EVENLY, "known"),
    "separate": ("SeparateHeads", _EVENLY, "head each"),
}
"""By kind the head, the objective that it is trained on, and what it tells of a layer."""
MOST_BYTES = 2**31
"""Of features that are kept, of both splits together."""
_TOGETHER = 4096  # samples that are measured at once


def lens(
    *,
    ckpt_path: str,
    kind: list[Kind] = ["tuned", "linear", "separate"],  # noqa: B006
    data: Data = None,
    split: Literal["val", "test"] = "val",
    max_samples: int = 16384,
    steps: int = 1000,
    device: str = "auto",
    seed: int = 0,
    to: Path | None = None,
) -> LayerRecord:
    """Measure what is readable at each layer of a model as it is (by its own head), recoverable (by an affine map in
    front of that head), and known (by a linear probe), beside a head for each layer and chance. Heads are trained on
    features of the training split; the model is not. Writes lens.json and lens.png into the run's directory, and a
    checkpoint for each kind into its folder lens, which `exits`, `validate` and `export` take. A training that logged
    to W&B gets figure and table there.

    Args:
        ckpt_path: a run's directory, a checkpoint, a recipe, timm:NAME or transformers:NAME
        kind: tuned, linear, separate, or several of these, such as --kind tuned linear; all where left out
        data: as in `fit`; where left out, those it was trained on
        split: to measure on
        max_samples: samples (or tokens) of each split at most; fewer where their features exceed 2 GiB
        steps: of Adam, where a head is trained so
        device: where the model runs, such as cpu or cuda:1
        seed: of weights that nobody has trained, and of samples that are drawn
        to: a directory in place of the run's

    Raises:
        UserError: a model or data that cannot be read, or do not fit; data of other classes than the model tells apart;
            a split without labels; fewer training samples than classes; a directory that cannot be made.
    """
    at_least(1, "--steps", steps)
    source = read_source(ckpt_path)
    data = data_of(data, source)
    if to is None and source.path is not None:
        to = run_directory(ckpt_path)
    own = make_data(data)
    tokens = isinstance(own, BlockData)
    source, module = _opened(source.for_data(tokens=tokens), own, split, kind, seed=seed, device=device)
    backbone = module.backbone
    to = made_place(to, "lens")
    if (most := max(1, MOST_BYTES // (8 * backbone.num_layers * backbone.width))) < max_samples:
        rank_zero_info(f"At most {most:,} samples of each split are read, whose features are 2 GiB together.")
    most = min(max_samples, most)
    shown, measured = (
        read_features(backbone, own, split=name, max_samples=most, name=f"the {name} split")
        for name in ("train", split)
    )
    heads: dict[str, Head] = {}
    if source.predicts:
        heads[READABLE] = module.head if type(module.head) is SharedHead else SharedHead(backbone)
        if source.state is not None and (objective := type(module.objective).__name__) != "LastLayer":
            trained = f"This model's head was trained at its layers already ({objective})"
            rank_zero_info(f"{trained}: a lens may add little to it.")
    known = {} if source.path is None else read_checkpoint(source.path)
    options: dict[str, dict[str, Any]] = {}
    for each in dict.fromkeys(kind):
        _, _, told = KINDS[each]
        heads[told], options[told] = _trained(each, source, known, data, module, shown, steps, seed, to / FOLDER)
    rights: dict[str, Tensor] = {}
    losses: dict[str, list[float]] = {}
    for name, head in heads.items():
        rights[name], losses[name] = _measure(head, measured)
    accuracies = {name: right.double().mean(dim=1).tolist() for name, right in rights.items()}
    accuracies[CHANCE], losses[CHANCE] = _chance(shown, measured, backbone.num_classes, backbone.num_layers)
    options[CHANCE] = {"answer": "the training samples' classes, each counted once more"}
    assert shown.targets is not None
    options = {name: {"fitted to": len(shown.targets)} | options.get(name, {}) for name in accuracies}
    options[READABLE] = {}
    record = LayerRecord(
        epoch=0,
        step=0,
        stage="validate" if split == "val" else "test",
        layers=backbone.num_layers,
        samples=measured.values.shape[1],
        unit="tokens" if tokens else "samples",
        quantities=lens_quantities(accuracies, losses, options, {} if tokens else _intervals(rights), tokens=tokens),
    )
    show_outcome(lens_table(record), numbers := write_lens_record(to, record), lens_figure(record))
    if known.get("layersim", {}).get("wandb_run_id"):
        from layersim.runs.tracking import log_later  # here, because W&B takes a second

        columns = {name: quantity.values for name, quantity in record.quantities.items()}
        log_later(known, to, "lens", numbers.with_suffix(".png"), columns)
    if (to / PAGE_FILE).exists() and (to / RECORDS_FILE).exists() and (read := read_records(to / RECORDS_FILE)):
        write_page([to], to / PAGE_FILE, stage=read[-1].stage)
    return record


def _opened(
    source: Source, data: SplitDataModule, split: str, kind: list[Kind], *, seed: int, device: str
) -> tuple[Source, LayerwiseModule]:
    """The model, which these data fit; for probes alone one of the data's classes, whatever it was made for."""
    module = open_module(source, seed=seed, device=device)
    for name in ("train", split):  # all that is asked for is checked before anything is measured
        fitted_split(module.backbone, data, name, source.given)
        if not module.backbone.reads_tokens:
            labels_of(data, name)
    classes = data.num_classes
    if source.state is None and module.backbone.fresh_classifier:
        source = replace(source, predicts=False)
    if source.predicts:
        check_same_classes(head_classes(module.backbone, source), data)
    if module.backbone.reads_tokens or (source.predicts and classes == module.backbone.num_classes):
        return source, module
    predicts = f"tells {module.backbone.num_classes} classes apart" if source.predicts else "predicts nothing"
    if [*kind] != ["linear"] or source.state is not None:
        raise UserError(
            f"{source.given} {predicts}, but the data have {classes} classes: none can be read or recovered. "
            "What a published model's layers know of them, probes tell: --kind linear; of a checkpoint's, "
            "`layersim transfer --to_data`."
        )
    source = replace(source.with_options({"num_classes": classes}), predicts=False)
    return source, open_module(source, seed=seed, device=device)


def _trained(
    kind: str,
    source: Source,
    known: dict[str, Any],
    data: dict[str, Any],
    module: LayerwiseModule,
    shown: LayerFeatures,
    steps: int,
    seed: int,
    folder: Path,
) -> tuple[Head, dict[str, Any]]:
    """The head of this kind, trained on the features and saved with the model, and how it was trained."""
    name, objective, told = KINDS[kind]
    backbone = module.backbone
    start = _classifier(backbone) if kind == "linear" and backbone.reads_tokens else None
    args = {} if start is None else {"features": "normed"}
    head = {"class_path": f"layersim.heads.{name}", "init_args": args}
    loss = instantiate_class((), objective)
    frozen = LayerwiseModule(backbone, loss, partial(instantiate_class, init=head), freeze="backbone")
    frozen.to(module.device)
    made = frozen.head
    options: dict[str, Any] = {"steps": steps}
    if isinstance(made, LinearProbes):
        found = fit_probes(made, loss, shown, steps=steps, seed=seed, told=f"Fitting what is {told}", start=start)
        options = (options if None in found else {"penalty": found}) | args
    else:
        each = Reading.divergences if kind == "tuned" else lambda read: read.losses
        train_head(made, loss, each, shown, steps=steps, seed=seed, told=f"Training ({name})")
    trained = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "state_dict")
    section = {"head": head, "objective": objective, "freeze": "backbone"}
    config = {**known.get("layersim", {}).get("config", {}), "model": source.model | section, "data": data}
    checkpoint = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": version("lightning")}
    checkpoint |= {key: value for key, value in known.items() if key not in trained}
    checkpoint |= {
        "state_dict": {key: value.cpu() for key, value in frozen.state_dict().items()},
        "hyper_parameters": {"_instantiator": "lightning.pytorch.cli.instantiate_module", **config["model"]},
        "layersim": {"config": config, "wandb_run_id": None},
    }
    WholeCheckpoints().save_checkpoint(checkpoint, folder / f"{kind}.ckpt")
    return made.eval(), options


def _classifier(backbone: Backbone) -> nn.Linear | None:
    """The linear part of the model's classifier that gives the logits; None where it has none of features' width."""
    linear = (each for each in backbone.classifier.modules() if isinstance(each, nn.Linear))
    return next((each for each in linear if each.weight.shape == (backbone.num_classes, backbone.width)), None)


def _measure(head: Head, features: LayerFeatures) -> tuple[Tensor, list[float]]:
    """(L, N) whether a layer is right, and (L,) losses in nats."""
    assert features.targets is not None
    total, device = len(features.targets), next(head.parameters()).device
    right, lost = [], torch.zeros(head.num_layers, dtype=torch.float64)
    for rows in torch.split(torch.arange(total), _TOGETHER):
        targets = features.targets[rows].to(device)
        with torch.no_grad():
            read = head(features.values[:, rows].to(device), targets, range(head.num_layers))
        right.append((read.predictions == targets).cpu())
        lost += read.losses.double().cpu() * len(rows)
    return torch.cat(right, dim=1), (lost / total).tolist()


def _intervals(rights: Mapping[str, Tensor]) -> dict[tuple[str, str], dict[str, Any]]:
    """Of each gap between two accuracies on the same samples, of (L, N) right or not."""
    found = {}
    for gap in (gap for gap in GAPS if {*gap} <= {*rights}):
        one, other = (rights[who] for who in gap)
        counts = zip((one & ~other).sum(dim=1).tolist(), (other & ~one).sum(dim=1).tolist(), strict=True)
        low, high = zip(*(paired_interval(more, less, one.shape[1]) for more, less in counts), strict=True)
        found[gap] = {"confidence": CONFIDENCE, "low": [*low], "high": [*high]}
    return found


def _chance(
    shown: LayerFeatures, measured: LayerFeatures, classes: int, layers: int
) -> tuple[list[float], list[float]]:
    """Accuracy of always saying the training samples' most frequent class, and the loss of saying their frequencies,
    each class counted once more than it came; the same at every layer."""
    assert shown.targets is not None
    assert measured.targets is not None
    counts = shown.targets.bincount(minlength=classes)
    right = (measured.targets == counts.argmax()).double().mean().item()
    nats = -((counts + 1).double() / (counts + 1).sum()).log()[measured.targets].mean().item()
    return [right] * layers, [nats] * layers
