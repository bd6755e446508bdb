"""A run's configuration, read without the classes that it names."""

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from layersim.report.reading import DamagedFile, read_yaml, short

CONFIG_FILE = "config.yaml"

_SECTIONS: dict[str, tuple[str, type | UnionType]] = {
    "experiment": ("a name", str),
    "model": ("a mapping", dict),
    "data": ("a mapping or a name", dict | str),
    "trainer": ("a mapping", dict),
}


def read_configuration(directory: Path) -> dict[str, Any]:
    """The `config.yaml` of a run's directory; empty where there is none. DamagedFile where it cannot be read, is no
    mapping, or a section is of another type than the command writes."""
    path = directory / CONFIG_FILE
    if not path.exists():
        return {}
    config = read_yaml(path)
    for key, (expected, kind) in _SECTIONS.items():
        if not isinstance(config.get(key), kind | None):
            raise DamagedFile(f"{path}: {key}: expected {expected}, got {short(config[key])}.")
    return config


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys, which are the command's flags: a sweep sets the same keys."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def below(config: Any, key: str) -> Mapping[str, Any]:
    """The section of that name; an empty one where there is none."""
    inner = config.get(key) if isinstance(config, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def class_of(section: Any) -> str:
    """The class that a section names, without its modules; empty where it names none."""
    path = section.get("class_path") if isinstance(section, Mapping) else section
    return "" if path is None else str(path).rpartition(".")[2]


def init_args(section: Any) -> dict[str, Any]:
    """The options of the class that a section names."""
    return dict(below(section, "init_args"))


def model_of(config: Mapping[str, Any]) -> str:
    """The model that a run names, a folder by its last two parts; the family, or the backbone's class, of one that has
    no name; empty where none is told."""
    backbone = below(config, "model").get("backbone")
    options = init_args(backbone)
    family = below(options, "config_args").get("model_type")
    name = options.get("name") or options.get("name_or_path") or family or class_of(backbone)
    path = Path(str(name).rpartition(":")[2])
    return "/".join(path.relative_to(path.anchor).parts[-2:])


def trained_how(config: Mapping[str, Any]) -> str:
    """The class of the objective that a run names, and that of a head which is not the shared one; empty where none."""
    model = below(config, "model")
    named = [class_of(model.get(part)) for part in ("objective", "head")]
    return " + ".join(name for name in named if name and name != "SharedHead")


def last_validation(config: Mapping[str, Any]) -> int | None:
    """The epoch, counted from 0, of the last validation that a training has; None where epochs do not end it."""
    trainer = below(config, "trainer")
    epochs, every = trainer.get("max_epochs"), trainer.get("check_val_every_n_epoch")
    every = every if isinstance(every, int) and every > 0 else 1
    return epochs // every * every - 1 if isinstance(epochs, int) and epochs > 0 else None


def seed_of(config: Mapping[str, Any]) -> str:
    """What draws a run's weights, and its data where that is another seed than 0; empty where it is not known."""
    seed, drawn = config.get("seed_everything"), init_args(config.get("data")).get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        return ""
    return f"{seed} (data {drawn})" if drawn else str(seed)


LOADING = ("num_workers", "pin_memory", "eval_batch_size", "seed")
"""Options of data that are about how samples are drawn and loaded, and not about which data they are."""


def without_loading(data: Any) -> dict[str, Any]:
    """A section of data: its class, and the options that tell which data they are."""
    return {"class": class_of(data)} | {key: value for key, value in init_args(data).items() if key not in LOADING}


RANDOM = "random: nothing is trained yet"
"""What is said of a model's weights that come from nowhere."""


def is_random(backbone: Any) -> bool:
    """Whether the weights of a recipe's backbone come from nowhere, as far as the libraries' options tell."""
    path = backbone.get("class_path") if isinstance(backbone, Mapping) else backbone
    if str(path).rpartition(".")[0] not in ("", "layersim", "layersim.backbones"):
        return False
    options, by_default = init_args(backbone), {"TimmBackbone": False, "TransformersBackbone": True}
    return not (options.get("pretrained", by_default.get(class_of(backbone), True)) or options.get("checkpoint_path"))
