"""What a model may be given as, a checkpoint, a run's directory, a recipe, or a name in one of the libraries; and its
features of a sample of the data. Letters: L layers, N samples, D width."""

import json
import os
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_module
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from layersim.backbones import Backbone
from layersim.backbones.tiny_input import check_last_token
from layersim.data import SplitDataModule
from layersim.data.blocks import BlockData
from layersim.data.splits import Integers, Sample, Split
from layersim.errors import UserError, as_user_error, check_seed, user_path
from layersim.evaluation import evaluate
from layersim.installed_packages import model_name
from layersim.metrics import KeptSamples
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures
from layersim.runs.checkpoints import check_fits, class_names_of, read_checkpoint
from layersim.runs.recipe_sections import recipe_sections
from layersim.runs.refusals import refusing
from layersim.runs.stopping import STOPPED_FILE
from layersim.runs.stored import stored_sections
from layersim.similarity.positions import splitmix64

FORMS = (
    "a checkpoint (….ckpt), a run's directory, a recipe (….yaml), a folder with a model of transformers or timm in it, "
    "timm:NAME, or transformers:NAME, where NAME is on the hub, a folder, or package:PACKAGE/FOLDER"
)
LEAST = 4
"""Samples that all measures are defined for, with options that ask for no more."""
TOKENS_EACH = 8
"""Tokens that a language model reads for each that is kept."""
LAST = Path("checkpoints/last.ckpt")
"""In a run's directory."""


@dataclass(frozen=True)
class Source:
    """A model, not built yet."""

    given: str
    """As it was typed."""
    name: str
    """Short, for figures and tables."""
    model: dict[str, Any]
    """A recipe's section `model`."""
    state: dict[str, Tensor] | None = None
    """The weights of a checkpoint."""
    data: dict[str, Any] | None = None
    """A recipe's section `data`: what the model was trained on."""
    any_task: bool = False
    """Whether the data settle what it is: a name in transformers may be a classifier or a language model."""
    path: Path | None = None
    """Of a checkpoint."""
    class_names: list[str] | None = None
    """Of the data that it was trained on, where they are known."""
    predicts: bool = True
    """Whether it has a classifier; some models are published without."""

    def for_data(self, *, tokens: bool) -> "Source":
        """The same with its task settled: whether the data are a language model's."""
        if not self.any_task:
            return self
        task = "language-modeling" if tokens else "classification"
        return replace(self.with_options({"task": task}), any_task=False)

    def with_options(self, options: Mapping[str, Any]) -> "Source":
        """The same with these options of its backbone."""
        backbone = self.model["backbone"]
        section = {**backbone, "init_args": {**(backbone.get("init_args") or {}), **options}}
        return replace(self, model=self.model | {"backbone": section})


def read_source(given: str) -> Source:
    """What was typed for a model, looked up but not built.

    Raises:
        UserError: none of the forms, a file that cannot be read, or one that does not say which model it is of.
    """
    if not given:
        raise UserError(f"Expected {FORMS}, but got none.")
    library, colon, name = given.partition(":")
    if colon and library == "timm":
        return _timm(given, name)
    if colon and library == "transformers":
        return Source(given, name, _backbone("TransformersBackbone", name_or_path=name), any_task=True)
    path = user_path(model_name(given))
    if path.is_dir() and path.suffix != ".ckpt":  # as a sharded checkpoint's
        if not os.path.exists(kept := newest_of(path)):
            return _folder(given, path)
        path = kept
    if path.suffix == ".ckpt":
        return _checkpoint(given, path)
    if path.suffix in (".yaml", ".yml"):
        model, data = recipe_sections(given, path)
        return Source(given, f"{path.resolve().parent.name}/{path.stem}", model, data=data)
    hint = " Give the folder that it lies in, or of timm's weights timm:NAME, with the backbone's checkpoint_path."
    if not path.exists():
        hint = "" if given[:1] in "/.~" else f" For one on the hub say timm:{given} or transformers:{given}."
    raise UserError(f"Expected {FORMS}, but got {given}.{hint}")


def open_module(source: Source, *, tokens: bool = False, seed: int = 0, device: str = "cpu") -> LayerwiseModule:
    """The model, in evaluation mode.

    Args:
        source: what `read_source` found.
        tokens: whether the data are a language model's, which settles the task of a mere name in transformers.
        seed: of weights that nobody has trained.
        device: where to put it, such as `cpu` or `cuda:1`; `auto` for an accelerator where there is one.

    Raises:
        UserError: a model that cannot be built, weights that do not fit it, or a device that is not here.
    """
    section = deepcopy(source.for_data(tokens=tokens).model)
    torch.manual_seed(check_seed(seed))
    with warnings.catch_warnings(), refusing(f"The model of {source.given} cannot be built"):
        warnings.filterwarnings("ignore", ".* has no trained .*", UserWarning)  # classifiers: none is read here
        module: LayerwiseModule = instantiate_module(LayerwiseModule, section)
    if source.state is not None:
        check_fits(source.state, module, source.given)
        module.load_state_dict(source.state)
    where = torch.accelerator.current_accelerator(check_available=True) if device == "auto" else device
    with as_user_error(f"There is no device {device!r} here", "Change --device."):
        return module.eval().to(where or "cpu")


def make_data(section: Mapping[str, Any]) -> SplitDataModule:
    """The data that a recipe's section `data` names; what their class refuses is a UserError."""
    with refusing("These options do not go together", "Change --data."):
        own = deepcopy(section.get("init_args", {}))  # in which jsonargparse puts objects of its own
        given = {"_class_path": section["class_path"], **own}
        data: SplitDataModule = instantiate_module(SplitDataModule, given)  # type: ignore[type-abstract]
        data.section = {"class_path": section["class_path"], "init_args": deepcopy(section.get("init_args", {}))}
        return data


def _backbone(kind: str, /, **options: Any) -> dict[str, Any]:
    return {"backbone": {"class_path": f"layersim.backbones.{kind}", "init_args": options}}


def _timm(given: str, name: str, told: Mapping[str, Any] | None = None) -> Source:
    """A published model, `told` the config.json of a local one; one without a classifier gets one of two classes, which
    says nothing."""
    from timm import is_model
    from timm.models import get_pretrained_cfg

    known = told if told is not None else get_pretrained_cfg(name).to_dict() if is_model(name) else {}
    without = {} if known.get("num_classes", 1) else {"num_classes": 2}
    channels = {key: value for key, value in known.get("model_args", {}).items() if key == "in_chans"}
    section = _backbone("TimmBackbone", name=name, pretrained=True, **without, **channels)
    return Source(given, name.rpartition("/")[2], section, predicts=not without)


def _folder(given: str, path: Path) -> Source:
    """A model as transformers, timm or `layersim export` write it."""
    told: dict[str, Any] = {}
    for file in path.glob("*.json"):
        if file.name in ("config.json", "layersim.json"):
            with as_user_error(f"{file} cannot be read"):
                told |= json.loads(file.read_text(encoding="utf-8"))
    form, own = told.get("format", "stock"), told.get("library", "timm") not in ("timm", "transformers")
    if form != "stock" or own:
        what = f"a program ({form})" if form != "stock" else "weights for a class of your own"
        raise UserError(
            f"{given} holds {what}, whose layers cannot be read: its README.md has the lines that serve it. Give the "
            "run or model that it was exported from, or an export of --format stock."
        )
    if "architecture" in told:  # which timm alone writes
        return _timm(given, f"local-dir:{path.resolve()}", told)
    if not (path / "config.json").is_file():
        below = sorted(file.parent for file in path.glob("*/config.json"))
        hint = f"Expected {FORMS}."
        if (path / "adapter_config.json").is_file():
            hint = "What it holds is an adapter: merge it into its model, and save that (peft's merge_and_unload)."
        elif below:
            hint = f"Perhaps {' or '.join(map(str, below))} is meant."
        raise UserError(
            f"{given} is no run's directory: it holds no {LAST}; nor a model's: it holds no config.json. {hint}"
        )
    inside = given.partition("package:")[2]
    name, whole = (inside, given) if inside else (path.resolve().name, str(path))
    return Source(given, name, _backbone("TransformersBackbone", name_or_path=whole), any_task=True)


def _checkpoint(given: str, path: Path) -> Source:
    checkpoint = read_checkpoint(path)
    stored = stored_sections(checkpoint, path)
    if "backbone" not in stored["model"]:
        raise UserError(
            f"{given} does not say which model it is of, as checkpoints of `layersim fit` do. Export the model to a "
            "folder, or give its recipe with the weights' path in it."
        )
    run = run_of(path)
    name = path.stem if run is None else f"{run.parent.name}/{run.name}"
    if run is not None and path.name != LAST.name:
        name = f"{name} {path.stem}"
    names = class_names_of(checkpoint)
    return Source(
        given, name, stored["model"], checkpoint["state_dict"], stored.get("data"), path=path, class_names=names
    )


def newest_of(run: Path) -> Path:
    """A run's last checkpoint, or that of where it was stopped after it; the first where there is neither."""
    both = [path for path in (run / LAST, run / LAST.with_name(STOPPED_FILE)) if os.path.exists(path)]
    return max(both, key=lambda path: path.stat().st_mtime_ns, default=run / LAST)


def run_of(path: Path) -> Path | None:
    """A run's directory, given itself or a checkpoint in it."""
    path = user_path(path).resolve()
    if path.is_dir() and path.suffix != ".ckpt":  # as a sharded checkpoint has
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else None


def read_features(
    backbone: Backbone, data: SplitDataModule, *, split: str = "val", max_samples: int = 4096, name: str = "the model"
) -> LayerFeatures:
    """Runs the model over the split, with a progress bar.

    A sample's position is its index in the source, ascending, since data modules may order a split by the lengths that
    a model's own tokenizer gives; its target is its class or token, 0 where it has none. Of more than `max_samples`
    those whose index has the smallest hash are read, and the others are not even run. A language model's samples are
    tokens: blocks are chosen so until they hold eight times as many, and of their tokens those of smallest hash, lest
    they come from few texts.

    Args:
        backbone: the model, on its device.
        data: a data module for this model alone: some take its tokenizer or image size.
        split: such as `val`; read as evaluation reads it, `train` too.
        max_samples: how many samples to keep at most.
        name: what the progress bar and errors call the model.

    Raises:
        UserError: data that the model cannot read, no such split, or `max_samples` below 4.
    """
    kept = KeptSamples(max_samples=max_samples, least=LEAST, keep_on="host")
    chosen = fitted_split(backbone, data, split, name)
    drawn = splitmix64(torch.from_numpy(chosen.index)).argsort().tolist()
    if backbone.reads_tokens:
        held = accumulate(len(chosen[row]["label"]) for row in drawn)
        drawn = drawn[: 1 + sum(1 for _ in takewhile(lambda tokens: tokens < TOKENS_EACH * max_samples, held))]
    else:
        drawn = drawn[:max_samples]
    loader: DataLoader[Sample] = DataLoader(
        Subset(chosen, sorted(drawn)),
        batch_size=data.eval_batch_size,
        num_workers=data.num_workers,
        collate_fn=data.collate,
    )
    batches: Any = track(loader, description=f"Reading {name}")
    ((values, targets, index),) = evaluate(backbone, ({**batch, "position": batch["index"]} for batch in batches), kept)
    return LayerFeatures(values, torch.zeros_like(index) if targets is None else targets.cpu(), index)


def fitted_split(backbone: Backbone, data: SplitDataModule, split: str, name: str) -> Split:
    """The split, as this model reads it.

    Raises:
        UserError: data that the model cannot read, or no such split.
    """
    try:
        check_kind(backbone, data)
        if split not in data.splits:
            raise UserError(f"there is no {split} split: set --data.{data.test_option}, or --split val")
        chosen = data.evaluation_split(split)
        if not len(chosen):
            raise UserError(f"the {split} split is empty: change --data")
        data.check_sample(chosen[0], split, backbone)
    except UserError as error:
        raise UserError(f"The data do not fit {name}: {error}") from error
    return chosen


def labels_of(data: SplitDataModule, split: str) -> Integers:
    """Of a split that is to be measured, as `fitted_split` gave it; a UserError where it has none."""
    labels = data.splits[split].labels
    if labels is None:
        raise UserError(f"Accuracy needs labels, but the {split} split has none. Choose other data.")
    return labels


def check_kind(backbone: Backbone, data: SplitDataModule) -> None:
    """Whether these data are of a kind that the model reads; they are set up for it.

    Raises:
        UserError: they are for a classifier and it is a language model, or the other way round; texts, and it reads
            images; texts of which it looks at another token than is read here.
    """
    if (found := isinstance(data, BlockData)) != backbone.reads_tokens:
        kinds = ("a classifier", "a language model")
        raise UserError(f"the data are for {kinds[found]}, but it is {kinds[not found]}: choose other --data")
    data.setup()
    data.adapt(backbone)
    for first in (split[0] for split in data.splits.values() if len(split)):
        if "image" not in first and backbone.input_size is not None:
            raise UserError("the data are texts, but the model reads images: choose other --data")
        if "image" in first and getattr(backbone, "vocabulary_size", None):
            raise UserError("the data are images, but the model reads texts: choose other --data")
        check_last_token(backbone, lambda sample=first: data.collate([sample]))  # type: ignore[misc]
        break
