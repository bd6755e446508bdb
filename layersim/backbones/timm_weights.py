"""A local weights file for a timm model, which may have other classes, another image size or other channels."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import timm
from torch import Tensor, nn

from layersim.errors import UserError, as_user_error, reason

_OURS = "backbone.model."
"""What a checkpoint of layersim's own puts before the names of timm's weights."""

_SIZES = re.compile(r"size mismatch for (\S+): copying a param with shape .*?\[(.*)\]\).*?\[(.*)\]\)")


def load_weights(
    model: Any, path: str, create: Callable[..., nn.Module], num_classes: int | None, in_chans: int
) -> None:
    """Loads a weights file, adapted as `timm.create_model(…, pretrained=True)` adapts published weights.

    timm makes of the file a model with the file's own classes, every weight of which must be there: positions are
    resampled, the first layer is folded. All of it goes into `model`, but for a classifier of other classes. One
    warning names what is left as it was drawn, and what changed its shape.

    Args:
        model: built by `create` without weights.
        path: .pth, .pt, .bin or .safetensors: weights alone, or under `state_dict` or `model`, or their average under
            `state_dict_ema` or `model_ema`; a checkpoint of layersim's own; JAX's .npz where timm reads it.
        create: `timm.create_model` with the name and all options of `model`; further keywords beat these.
        num_classes: C as the user asked for it; the file's own where None.
        in_chans: channels of the model.

    Raises:
        UserError: a file that is cut short or corrupt, or of another model.
    """
    with as_user_error(f"{path} is not a readable weights file (cut short or corrupt)", "Change checkpoint_path."):
        source, shapes = _opened(path)
    published = model.pretrained_cfg
    stems = _names(published["first_conv"])
    (classes, *_) = _shape_at(_names(published["classifier"]), shapes) or (0,)
    stem = _shape_at([*stems, "embedding"], shapes)
    source |= {
        "source": "",
        "num_classes": classes,
        "label_offset": 0,
        "input_size": (stem[1] if len(stem) == 4 else in_chans, *published["input_size"][1:]),
    }
    with (
        as_user_error(f"The weights in {path} do not fit the model", why=lambda error: _misfit(error, stems)),
        warnings.catch_warnings(action="ignore"),  # of timm's own code that resamples BEiT's positions
    ):
        trained = create(num_classes=classes, pretrained=True, pretrained_cfg_overlay=source).state_dict()
    if num_classes is None and classes:
        model.reset_classifier(classes)
    drawn = {key: value for key, value in model.state_dict().items() if _shape(trained.get(key)) != _shape(value)}
    model.load_state_dict({**trained, **drawn})
    told = []
    if drawn:
        told = [f"{', '.join(drawn)} drawn anew for {model.num_classes} classes (the file has {classes or 'none'})"]
    told += [
        f"{key} taken from {_by(shapes[key])} to {_by(_shape(value))}"
        for key, value in trained.items()
        if key not in drawn and key in shapes and shapes[key] != _shape(value)
    ]
    if told:
        warnings.warn(f"{path} is adapted to this model: {'; '.join(told)}.", stacklevel=2)


def _opened(path: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """What timm's configuration calls the source of weights, and the shape of each weight, by PyTorch's names."""
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as arrays:
            shapes = {
                key.replace("/", ".").replace("kernel", "weight"): arrays[key].shape[::-1] for key in arrays.files
            }
        return {"file": path, "custom_load": True}, shapes
    state = timm.models.load_state_dict(path)
    if ours := {key.removeprefix(_OURS): value for key, value in state.items() if key.startswith(_OURS)}:
        state = ours
    shapes = {key: _shape(value) for key, value in state.items() if isinstance(value, Tensor)}
    if not shapes:
        raise UserError(f"{path} holds no weights: its keys are {', '.join(map(str, state)) or 'none'}.")
    return {"state_dict": state}, shapes


def _names(modules: str | Sequence[str] | None) -> list[str]:
    return [modules] if isinstance(modules, str) else list(modules or ())


def _shape_at(modules: Sequence[str], shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the first weight of one of these modules, whatever is put before its name; empty without any."""
    names = tuple(f".{module}.weight" for module in modules)
    return next((shape for key, shape in shapes.items() if f".{key}".endswith(names)), ())


def _misfit(error: BaseException, stems: Sequence[str]) -> str:
    """The first of torch's misfits, and which option they come from."""
    lines = [_SIZES.sub(r"\1 is (\2) there, (\3) here", line).split('", "') for line in str(error).split("\n\t")[1:]]
    few = ['", "'.join(names[:3]) + (f'" and {len(names) - 3} more. ' if len(names) > 3 else "") for names in lines]
    said = " ".join(" ".join(few[:3]).split()) or reason(error)
    sizes = re.findall(r"(\S+) is \(", said)
    option = "name or model_args"
    if not re.search("Missing|Unexpected", said) and all(key.removesuffix(".weight") in stems for key in sizes):
        option = "in_chans"
    elif sizes and all(re.search("pos|rel", key) for key in sizes):
        option = "img_size"
    more = f" and {len(few) - 3} more." if len(few) > 3 else ""
    return f"{said.rstrip()}{more} Change the backbone's {option}"


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
