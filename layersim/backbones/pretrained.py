"""Opening transformers models: configuration and weights, from the hub, a local folder, or nothing but a family."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from inspect import getsource
from textwrap import shorten
from types import SimpleNamespace
from typing import Any

import transformers
from PIL.Image import Resampling
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from layersim.backbones.families import Task
from layersim.backbones.resized_weights import resized
from layersim.errors import UserError, as_user_error, meant, reason

_OFFLINE = (
    "Without a network, name_or_path may be a local folder that `save_pretrained` or `hf download` wrote; "
    "with HF_HUB_OFFLINE=1 only the hub's local cache is asked."
)

_UNSIZED = ("id2label", "label2id", "dtype", "transformers_version")
"""Ends of those names in a configuration that have no say in a weight's size, but the classifier's."""


_NAME = "Change the backbone's name_or_path, or the model_type in config_args."
_CLASSIFIERS: list[Any] = [AutoModelForImageClassification, AutoModelForSequenceClassification]
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files by which a folder has an image processor."""
_USUAL_SIZE = 224
_MOST_CLASSES = 2**24
"""transformers names each class in a dictionary before anything else."""


def configuration(
    name: str | None, overrides: dict[str, Any], num_classes: int | None, task: Task, hub: dict[str, Any]
) -> Any:
    """The model's configuration, with the user's overrides and number of classes.

    Args:
        name: a hub name or folder; None where `overrides` names a `model_type`.
        hub: `revision` and `trust_remote_code`.

    Raises:
        UserError: a name that leads nowhere, an unknown `model_type` or override, a number of classes that cannot be.
    """
    overrides = dict(overrides)
    if name is None:
        kind = _family(overrides.pop("model_type", None))
        with as_user_error(f"transformers cannot make a {kind.model_type} of its own accord", _NAME):
            known = kind()
        base: dict[str, Any] = {}
    else:
        known = _published(name, hub)
        base = known.to_dict()
    if inside := {"dtype", "torch_dtype"} & {*overrides}:
        raise UserError(f"Expected dtype beside the backbone's config_args, but got {', '.join(inside)} in it.")
    names = [*known.to_dict(), *known.attribute_map]
    for key in overrides:
        if key not in names and not hasattr(type(known), key) and not _reads(known, key):
            raise UserError(
                f"A configuration of the family {known.model_type!r} has no {key!r}.{meant(key, names)} "
                "Change the backbone's config_args."
            )
    for key, asked in (("num_classes", num_classes), ("config_args: {num_labels}", overrides.get("num_labels"))):
        if isinstance(asked, int) and not 2 <= asked <= _MOST_CLASSES and task == "classification":
            raise UserError(f"Expected 2 … {_MOST_CLASSES} classes, but got {asked}. Change the backbone's {key}.")
    own = {known.attribute_map.get(key, key): value for key, value in overrides.items()}
    with as_user_error(f"transformers refuses config_args {overrides}", why=shortened):
        config = type(known).from_dict({**base, **own})
    told = {"num_labels", "id2label"} & {*overrides} if task == "classification" else None
    if told and num_classes not in (None, config.num_labels):
        raise UserError(
            f"Expected one number of classes, but got num_classes {num_classes} and, by {', '.join(sorted(told))} in "
            f"config_args, {config.num_labels}. Leave one out."
        )
    _set_classes(config, num_classes, task)
    return config


def untrained(config: Any, task: Task, options: dict[str, Any]) -> Any:
    """A model with random weights. Raises UserError where the family has none for the task or refuses an option."""
    config.architectures = config.architectures or []  # which DeiT's auto class wants to iterate
    with _told(config.name_or_path or config.model_type):
        return _auto(config, task).from_config(config, **options)


def trained(name: str, config: Any, task: Task, options: dict[str, Any]) -> tuple[Any, set[str]]:
    """A model with published weights, and the names of those parameters that are drawn anew.

    As timm does it, a classifier for another number of classes is drawn anew, and weights that hang on the image size
    or the channels are resized, which one warning tells.

    Raises:
        UserError: no weights there, weights of other sizes than the configuration's, no model of the family for the
            task.
    """

    def opened(config: Any) -> tuple[Any, Any]:
        with _told(name), _quiet():
            return _auto(config, task).from_pretrained(
                name, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )

    model, report = opened(config)
    sizes = {key: (tuple(found), tuple(expected)) for key, found, expected in report["mismatched_keys"]}
    drawn = {
        key
        for key, (found, ours) in sizes.items()
        if task == "classification" and ours == (config.num_labels, *found[1:])
    }
    if rest := {key: sizes[key] for key in sorted(set(sizes) - drawn)}:
        published = _published(name, {key: options[key] for key in ("revision", "trust_remote_code") if key in options})
        state = opened(published)[0].state_dict()
        weights = {key: resized(state[key], ours, published, config) for key, (_, ours) in rest.items()}
        if others := [key for key, weight in weights.items() if weight is None]:
            told = "; ".join(f"{key} is {rest[key][0]} there, {rest[key][1]} here" for key in others[:3])
            more = f"; and {len(others) - 3} more" if len(others) > 3 else ""
            own, theirs = config.to_dict(), published.to_dict()
            changed = [key for key, value in theirs.items() if own.get(key) != value and not key.endswith(_UNSIZED)]
            raise UserError(
                f"The weights of {name} have other sizes than the model: {told}{more}. Set what differs in the "
                f"backbone's config_args to the checkpoint's: {', '.join(changed)}."
            )
        model.load_state_dict(weights, strict=False)
        told = "; ".join(f"{key} taken from {found} to {ours}" for key, (found, ours) in rest.items())
        warnings.warn(f"{name} is adapted to this model: {told}.", stacklevel=2)
    return model, {*report["missing_keys"], *drawn}


def image_config(name: str | None, config: Any, hub: dict[str, Any], size_typed: bool) -> dict[str, Any]:
    """How images are prepared, in timm's words: input_size, mean, std, interpolation, crop_pct, crop_mode.

    The checkpoint's image processor says it, its size too unless the user typed one: DINOv2 is trained at 518 pixels
    and used at 224. Without a processor the size is the configuration's and the rest the family's usual, or where the
    family has none, what most models take.
    """
    vision = getattr(config, "vision_config", config)
    channels, size = getattr(vision, "num_channels", 3), getattr(vision, "image_size", None)
    own = _processor(name, hub)
    processor = _usual_processor(name, config) if own is None else own
    resized, cropped = processor.size, processor.crop_size if processor.do_center_crop else None
    side = _edge(cropped, "height") or _edge(resized, "height")
    if own is not None and side and not size_typed:
        size = (side, _edge(cropped, "width") or _edge(resized, "width"))
    size = size or _edge(resized, "height") or _edge(resized, "shortest_edge")
    if size is None:
        warnings.warn(f"{name} names no image size; {_USUAL_SIZE} pixels are taken.", stacklevel=4)
        size = _USUAL_SIZE
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255  # what it multiplies 0 … 1 by
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    resample = getattr(processor.resample, "value", processor.resample)
    return {
        "input_size": (channels, *(size if isinstance(size, list | tuple) else (size, size))),
        "mean": _each(mean, channels, scale),
        "std": _each(std, channels, scale),
        "interpolation": Resampling(resample).name.lower() if isinstance(resample, int) else resample or "bilinear",
        "crop_pct": side / (_edge(resized, "shortest_edge") or _edge(resized, "height") or side)
        if cropped and side
        else 1.0,
        "crop_mode": "center" if cropped or not _edge(resized, "height") else "squash",
    }


def _processor(name: str | None, hub: dict[str, Any]) -> Any:
    """The checkpoint's own image processor; None where it has none."""
    is_folder = name is not None and os.path.isdir(name)
    if name is None or (is_folder and not any(os.path.isfile(os.path.join(name, file)) for file in PROCESSORS)):
        return None
    try:
        return transformers.AutoImageProcessor.from_pretrained(name, **hub)
    except OSError:  # a repository of weights alone
        if is_folder:
            raise
        return None


def _usual_processor(name: str | None, config: Any) -> Any:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING  # not at each start

    if type(config) in IMAGE_PROCESSOR_MAPPING:
        kinds = IMAGE_PROCESSOR_MAPPING[type(config)]
        with as_user_error(f"transformers has no usual image processor for {config.model_type}", _NAME):
            return (kinds.get("torchvision") or kinds["pil"])()
    warnings.warn(
        f"{name or config.model_type} comes without {PROCESSORS[0]}, and transformers has no image processor of that "
        "family: ImageNet's mean and std are taken. Set the data's mean and std where others are meant.",
        stacklevel=5,
    )
    return SimpleNamespace(
        **{"size": None, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3},
        **{"do_normalize": True, "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD},
    )


def _edge(size: Any, side: str) -> int | None:
    """A side of an image processor's size: a number, a dictionary, or an object with attributes; None where unsaid."""
    if size is None or isinstance(size, int):
        return size
    return size.get(side) if isinstance(size, dict) else getattr(size, side, None)


def _each(values: Any, channels: int, scale: float) -> tuple[float, ...]:
    """A number for each channel, on the scale 0 … 1; what is given for other channels is given as their mean."""
    listed = list(values) if isinstance(values, list | tuple) else [values] * channels
    listed = listed if len(listed) == channels else [sum(listed) / len(listed)] * channels
    return tuple(value / scale for value in listed)


def _reads(config: Any, key: str) -> bool:
    """Whether the family's model reads an option that its configuration does not declare, as DeBERTa-v2's does."""
    try:
        module = import_module(type(config).__module__.replace("configuration_", "modeling_"))
    except ImportError:  # code that came with the checkpoint may be cut into files as it likes
        return True
    return re.search(rf"""config(\.|, ["']){re.escape(key)}\b""", getsource(module)) is not None


def _family(model_type: object) -> Any:
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    if model_type is None:
        raise UserError(
            "Expected the backbone's name_or_path, or a family to build from, such as config_args: {model_type: bert}."
        )
    hint = meant(model_type, CONFIG_MAPPING)
    raise UserError(f"transformers knows no model_type {model_type!r}.{hint} Change the backbone's config_args.")


def _published(name: str, hub: dict[str, Any]) -> Any:
    is_folder = os.path.isdir(name)
    if is_folder and not os.path.isfile(os.path.join(name, "config.json")):
        raise UserError(
            f"The folder {name} holds no model: there is no config.json. Change the backbone's name_or_path."
        )
    if not is_folder and name.startswith(("/", ".", "~")):
        raise UserError(f"There is no folder {name}. Change the backbone's name_or_path.")
    what = f"transformers cannot open {name}" if is_folder else f"{name} could not be fetched from the hub"
    with as_user_error(what, "" if is_folder else _OFFLINE, why=shortened):
        return AutoConfig.from_pretrained(name, **{"trust_remote_code": False} | hub)  # else it asks on the terminal


def _auto(config: Any, task: Task) -> Any:
    """The class of models for the task: an image classifier where the family has one, else one of texts."""
    remote = getattr(config, "auto_map", None) or {}
    kinds = [AutoModelForCausalLM] if task == "language-modeling" else _CLASSIFIERS
    for kind in kinds:
        if type(config) in kind._model_mapping or kind.__name__ in remote:
            return kind
    raise UserError(
        f"transformers has no model of the family {config.model_type!r} for {task}. Change the backbone's task or "
        "name_or_path."
    )


def _set_classes(config: Any, num_classes: int | None, task: Task) -> None:
    if task == "language-modeling":
        vocabulary = getattr(config, "vocab_size", None)
        if num_classes not in (None, vocabulary):
            raise UserError(
                f"A language model's classes are its vocabulary, {vocabulary} here, but num_classes is "
                f"{num_classes}. Leave the backbone's num_classes out."
            )
        return
    wanted = config.num_labels if num_classes is None else num_classes
    if wanted < 2:
        raise UserError(f"Expected at least 2 classes, but {config.model_type} has {wanted}. Set num_classes.")
    config.num_labels = wanted


def _told(name: str) -> AbstractContextManager[None]:
    """The guard at transformers' door: damaged weights, say, raise whatever the damage suggests."""

    def why(error: BaseException) -> str:
        absent = f" Set pretrained: false for random weights. {_OFFLINE}" if isinstance(error, OSError) else ""
        return shortened(error) + absent

    return as_user_error(f"transformers cannot open {name}", why=why)


def shortened(error: BaseException) -> str:
    """The reason in one line, whatever of a model it prints; and which of our options would change it."""
    why = shorten(whole := reason(error), 400, placeholder=" …")
    if "trust_remote_code" in whole:
        why += " Set the backbone's trust_remote_code: true if you trust its authors."
    return why


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of new and unused weights: what matters of it is told in one line."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
