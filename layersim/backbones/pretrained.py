"""Opening transformers models: configuration and weights, from the hub, a local folder, or nothing but a family."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from inspect import getsource
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from layersim.backbones.families import Task
from layersim.backbones.refitting import refitted
from layersim.errors import UserError

_OFFLINE = (
    "Without a network, name_or_path may be a local folder that `save_pretrained` or `hf download` wrote; "
    "with HF_HUB_OFFLINE=1 only the hub's local cache is asked."
)

_UNSIZED = ("id2label", "label2id", "dtype", "transformers_version")
"""Ends of those names in a configuration that have no say in a weight's size, but the classifier's."""


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
        known = _family(overrides.pop("model_type", None))()
        base: dict[str, Any] = {}
    else:
        known = _published(name, hub)
        base = known.to_dict()
    for key in overrides:
        if not hasattr(known, key) and not _reads(known, key):
            near = get_close_matches(key, [*known.to_dict(), *known.attribute_map], n=3)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise UserError(
                f"A configuration of the family {known.model_type!r} has no {key!r}.{hint} "
                "Change the backbone's config_args."
            )
    own = {known.attribute_map.get(key, key): value for key, value in overrides.items()}
    try:
        config = type(known).from_dict({**base, **own})
    except Exception as error:  # each family validates in its own way
        raise UserError(f"transformers refuses config_args {overrides}: {_line(error)}") from error
    _set_classes(config, num_classes, task)
    return config


def untrained(config: Any, task: Task, options: dict[str, Any]) -> Any:
    """A model with random weights. Raises UserError where the family has none for the task or refuses an option."""
    with _told(config.name_or_path or config.model_type, task):
        return _auto(config, task).from_config(config, **options)


def trained(name: str, config: Any, task: Task, options: dict[str, Any]) -> tuple[Any, set[str]]:
    """A model with published weights, and the names of those parameters that are drawn anew.

    As timm does it, a classifier for another number of classes is drawn anew, and weights that hang on the image size
    or the channels are refitted, which one warning tells.

    Raises:
        UserError: no weights there, weights of other sizes than the configuration's, no model of the family for the
            task.
    """

    def opened(config: Any) -> tuple[Any, Any]:
        with _told(name, task), _quiet():
            opened: tuple[Any, Any] = _auto(config, task).from_pretrained(
                name, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        return opened

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
        weights = {key: refitted(state[key], ours, published, config) for key, (_, ours) in rest.items()}
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
    and used at 224. Without a processor the size is the configuration's and the rest the family's usual.

    Raises:
        UserError: neither names an image size.
    """
    size, channels = getattr(config, "image_size", None), config.num_channels
    try:
        processor = AutoImageProcessor.from_pretrained(name, **hub) if name else None
    except (OSError, ValueError):  # a folder with weights alone
        processor = None
    if processor is None:
        processor = IMAGE_PROCESSOR_MAPPING[type(config)]["torchvision"]()
        crop = 1.0
    else:
        cropped = processor.crop_size if processor.do_center_crop else processor.size
        crop = (cropped["height"] or 1) / (processor.size["shortest_edge"] or cropped["height"] or 1)
        if cropped["height"] and not size_typed:
            size = (cropped["height"], cropped["width"])
    if size is None:
        raise UserError(f"{name} names no image size. Set the image_size in the backbone's config_args.")
    return {
        "input_size": (channels, *(size if isinstance(size, list | tuple) else (size, size))),
        "mean": tuple(processor.image_mean)[:channels],
        "std": tuple(processor.image_std)[:channels],
        "interpolation": {0: "nearest", 2: "bilinear", 3: "bicubic"}[int(processor.resample)],
        "crop_pct": crop,
        "crop_mode": "center",
    }


def _reads(config: Any, key: str) -> bool:
    """Whether the family's model reads an option that its configuration does not declare, as DeBERTa-v2's does."""
    try:
        module = import_module(type(config).__module__.replace("configuration_", "modeling_"))
    except ImportError:  # code that came with the checkpoint may be cut into files as it likes
        return True
    return re.search(rf"""config(\.|, ["']){re.escape(key)}\b""", getsource(module)) is not None


def _family(model_type: str | None) -> Any:
    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    if model_type is None:
        raise UserError(
            "Expected the backbone's name_or_path, or a family to build from, such as config_args: {model_type: bert}."
        )
    near = get_close_matches(model_type, list(CONFIG_MAPPING), n=3)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise UserError(f"transformers knows no model_type {model_type!r}.{hint} Change the backbone's config_args.")


def _published(name: str, hub: dict[str, Any]) -> Any:
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"The folder {name} holds no model: there is no config.json. Change the backbone's name_or_path."
        )
    if not folder.is_dir() and name.startswith(("/", ".")):
        raise UserError(f"There is no folder {name}. Change the backbone's name_or_path.")
    try:
        return AutoConfig.from_pretrained(name, **hub)
    except OSError as error:
        raise UserError(f"{name} could not be fetched from the hub: {_line(error)} {_OFFLINE}") from error
    except (ValueError, KeyError) as error:
        raise UserError(_unusable(name, error)) from error


def _auto(config: Any, task: Task) -> Any:
    if task == "language-modeling":
        return AutoModelForCausalLM
    remote = getattr(config, "auto_map", {})
    if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING or "AutoModelForImageClassification" in remote:
        return AutoModelForImageClassification
    return AutoModelForSequenceClassification


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
        raise UserError(f"Expected at least 2 classes, but got {wanted}. Set the backbone's num_classes.")
    if wanted != config.num_labels:
        config.num_labels = wanted


@contextmanager
def _told(name: str, task: Task) -> Iterator[None]:
    """Says in our words what transformers refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The weights of {name} could not be loaded: {_line(error)} "
            f"Set pretrained: false for random weights. {_OFFLINE}"
        ) from error
    except Exception as error:  # damaged weights raise whatever the damage suggests
        if "Unrecognized configuration class" in str(error):
            raise UserError(
                f"transformers has no model of the kind of {name} for {task}. "
                "Change the backbone's task or name_or_path."
            ) from error
        raise UserError(_unusable(name, error)) from error


def _unusable(name: str, error: Exception) -> str:
    why = _line(error)
    if "trust_remote_code" in why:
        why += " Set the backbone's trust_remote_code: true if you trust its authors."
    return f"transformers cannot open {name}: {why}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


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
