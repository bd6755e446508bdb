"""What `layersim look` makes of a model as people have it: its task, the token that counts, what its head can say."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from layersim.backbones import TransformersBackbone
from layersim.backbones.pretrained import configuration
from layersim.commands.guesses import Guess
from layersim.commands.preflight import classes_of
from layersim.data import SplitDataModule
from layersim.errors import as_user_error
from layersim.installed_packages import model_name
from layersim.module import LayerwiseModule
from layersim.runs.class_names import few, head_classes
from layersim.runs.models import Source


class Readable(NamedTuple):
    """What can truly be told of a model on these data, beside its features: whether its head says something, whether
    that can be compared with the data's labels, and why not."""

    head: bool = True
    labels: bool = True
    why: str = ""


def settled(source: Source, options: Mapping[str, Any]) -> tuple[Source, list[str]]:
    """The model with the options that are typed, and with a task, which its configuration tells where there are two."""
    told = []
    if source.any_task:
        task = options.get("task")
        if task is None:
            name = model_name(source.model["backbone"]["init_args"]["name_or_path"])
            hub = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
            kinds = configuration(name, {}, None, "language-modeling", hub).architectures or [""]
            generates = kinds[0].endswith(("ForCausalLM", "LMHeadModel", "DoubleHeadsModel"))
            task = "language-modeling" if generates else "classification"
            told.append(f"task {task} (--model.backbone.task)")
        source = source.for_data(tokens=task == "language-modeling")
    own = {"pretrained": False} if options.get("checkpoint_path") else {}
    return source.with_options({**own, **options}), told


def pooled(source: Source, module: LayerwiseModule, options: Mapping[str, Any]) -> tuple[Source, list[str]]:
    """Where no classifier says which of a text's tokens counts, and the first one is nearly constant in many encoders:
    the mean of all tokens, unless the folder says otherwise, as those of sentence-transformers do."""
    backbone = module.backbone
    if not isinstance(backbone, TransformersBackbone) or not backbone.fresh_classifier or "pool" in options:
        return source, []
    if backbone.input_size is not None or backbone.reads_tokens or backbone.layout.pooling != "first":
        return source, []
    rule = Path(backbone.name) / "1_Pooling/config.json"
    with as_user_error(f"{rule} cannot be read"):
        first = rule.is_file() and json.loads(rule.read_bytes()).get("pooling_mode_cls_token")
    if first:
        return source, ["a text's first token, as its 1_Pooling says (--model.backbone.pool=mean)"]
    backbone.layout = replace(backbone.layout, pooling="mean")
    told = "the mean of a text's tokens (--model.backbone.pool=null: the first one)"
    return source.with_options({"pool": "mean"}), [told]


def readable(source: Source, module: LayerwiseModule, data: SplitDataModule, guess: Guess) -> Readable:
    """Whether there is a head that was trained, and whether its classes are the data's."""
    backbone = module.backbone
    if not source.predicts or (source.state is None and backbone.fresh_classifier):
        return Readable(False, False, "accuracy, loss, exits and saturation: the model has no trained classifier.")
    if backbone.reads_tokens:
        return Readable()
    classes, names = guess.classes or classes_of(data), guess.names or data.class_names
    own = head_classes(backbone, source)
    if classes is None:
        why = "the data have no labels"
    elif classes != backbone.num_classes:
        why = f"the data have {classes} classes, the head tells {backbone.num_classes} others apart"
    elif own and names and [*map(str.casefold, own)] != [*map(str.casefold, names)]:
        why = f"the head's classes ({few(own)}) are not the data's ({few(names)})"
    elif guess.note and not own:
        why = "nobody says that the head's classes are these data's"
    else:
        return Readable()
    return Readable(labels=False, why=f"accuracy, loss and exits: {why}.")
