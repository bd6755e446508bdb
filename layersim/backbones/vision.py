"""timm models as backbones."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from torch import Tensor, nn

from layersim.backbones import timm_pooling
from layersim.backbones.base import Backbone
from layersim.backbones.calls import hooked
from layersim.backbones.timm_pooling import CHOOSE, check_layout, trunk
from layersim.backbones.timm_weights import load_weights
from layersim.backbones.tiny_input import check_logits
from layersim.errors import UserError, as_user_error, meant
from layersim.evaluation import evaluating
from layersim.outputs import LayerFeatures

_NAMED = {"pretrained", "checkpoint_path", "num_classes", "img_size", "in_chans"}
"""Keywords of `timm.create_model` that are the backbone's own options."""


class TimmBackbone(Backbone):
    """Any timm vision transformer whose blocks have one width: ViT, DeiT, DINOv2, BEiT, EVA, SigLIP and their kin.

    On construction one image is passed through, to make sure that the shared head at the last layer gives the logits of
    the model's own forward; a model for which it does not is refused.

    Args:
        name: timm's model name, or `hf-hub:` and a repository.
        pretrained: load the published weights (from the hub or its local cache).
        checkpoint_path: a local weights file to load instead, adapted in the same way where classes, image size or
            channels differ (see `load_weights`).
        num_classes: C, from 2; where None the weights file's, or timm's own number.
        img_size: side of the (square) images in pixels, or (height, width); timm's own where None.
        in_chans: image channels.
        model_args: any further keyword of `timm.create_model`, such as `depth`, `embed_dim` or `drop_path_rate`.

    Raises:
        UserError: an unknown name (with near matches), an unusable keyword, a weights file that is missing, corrupt or
            of another model, a model whose layers differ in width (Swin, ConvNeXt), or one that cannot be read.
    """

    model: Any
    input_size: tuple[int, int, int]

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        checkpoint_path: str | None = None,
        num_classes: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_name(name)
        if pretrained and checkpoint_path:
            raise UserError("Expected pretrained or checkpoint_path, but got both. Leave one out.")
        weights = os.path.expanduser(checkpoint_path or "")
        if checkpoint_path and not os.path.isfile(weights):
            raise UserError(f"There is no weights file {checkpoint_path}. Change the backbone's checkpoint_path.")
        given = {"num_classes": num_classes, "img_size": img_size, "in_chans": in_chans, **_checked(model_args or {})}
        options = {key: value for key, value in given.items() if value is not None}
        create = partial(timm.create_model, name, **options)
        remedy = "name, num_classes, img_size, in_chans or model_args"
        if pretrained:
            remedy = "name, or without a network set its checkpoint_path to a local weights file"
        with as_user_error(f"timm cannot build {name} with {options}", f"Change the backbone's {remedy}."):
            self.model = create(pretrained=pretrained)
        check_layout(self.model, name)
        if checkpoint_path:
            load_weights(self.model, weights, create, num_classes, in_chans)
            check_layout(self.model, name)  # of a head that may have other classes
        self.num_layers = len(self.blocks)
        self.num_classes = self.model.num_classes
        self.norm_before_pooling = timm_pooling.norms_first(self.model)
        self.data_config = _data_config(self.model, in_chans)
        self.input_size = self.data_config["input_size"]
        self._check_logits(name)

    @property
    def blocks(self) -> Any:
        """The model's blocks, in their order."""
        return trunk(self.model).blocks

    @property
    def final_norm(self) -> nn.Module:
        return timm_pooling.final_norm(self.model)

    @property
    def classifier(self) -> nn.Module:
        return timm_pooling.classifier(self.model)

    def forward(self, batch: Mapping[str, Any], layers: Sequence[int] | None = None) -> LayerFeatures:
        """Features of `batch["image"]` (N, C, H, W); targets are `batch["label"]` (N,) where there is one.

        Raises:
            UserError: images of another size or channel number than the model takes.
        """
        self.require_layers(layers)
        prefix = {"return_prefix_tokens": True} if getattr(self.model, "num_prefix_tokens", 0) else {}
        tokens = self.model.forward_intermediates(
            self._images_of(batch),
            indices=list(range(self.num_layers) if layers is None else layers),
            output_fmt="NLC",
            intermediates_only=True,
            stop_early=True,
            **prefix,
        )
        values = torch.stack([timm_pooling.pooled(self.model, layer) for layer in tokens])
        return LayerFeatures(values, batch.get("label"), batch.get("position"))

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {"x": self._images_of(batch)}

    def run(self, batch: Mapping[str, Any]) -> object:
        if not self._hands_on_tokens:
            raise UserError(
                f"The blocks of {type(self.model).__name__} hand on more than their tokens, so samples cannot leave "
                "between two of them. Choose another backbone for early exit."
            )
        return self.model.forward_features(self._images_of(batch))

    def pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        prefix = getattr(self.model, "num_prefix_tokens", 0)
        return timm_pooling.pooled(self.model, (tokens[:, prefix:], tokens[:, :prefix]) if prefix else tokens)

    @torch.no_grad()
    def _check_logits(self, name: str) -> None:
        """One image through the model's own forward and through ours: the contract, held before anything is trained.

        Logits are compared, and what reaches the classifier too, since timm starts some classifiers at zero.
        """
        head, image = self.classifier, self.small_batch()["image"][:1]
        kinds: list[bool] = []
        remedy = "Change the backbone's img_size, in_chans, or its model_args, such as patch_size."
        with evaluating(self):
            with (
                as_user_error(f"{name} cannot take an image of {self.input_size} (channels, height, width)", remedy),
                hooked([self.blocks[-1]], after=lambda *called: kinds.append(isinstance(called[-1], Tensor))),
            ):
                expected = _traced(lambda: self.model(image), head)
            self._hands_on_tokens = all(kinds)
            with as_user_error(f"layersim cannot read {name}", CHOOSE):
                found = _traced(lambda: head(self.final_norm(self({"image": image}).values[-1])), head)
                for ours, own in zip(found, expected, strict=True):
                    check_logits(name, ours, own, CHOOSE)


def _traced(run: Callable[[], Tensor], classifier: nn.Module) -> list[Tensor]:
    """What reached the classifier's linear maps while `run` ran, and its result."""
    seen: list[Tensor] = []
    linears = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    with hooked(linears, before=lambda _, args, __: seen.append(args[0])):
        return [run(), *seen]


def _check_name(name: str) -> None:
    if name.startswith(("hf-hub:", "hf_hub:", "timm/", "local-dir:")) or timm.is_model(name):
        return
    hint = meant(name.split(".")[0], timm.list_models()) or " `timm.list_models()` lists them."
    raise UserError(f"timm knows no model {name!r}.{hint} Change the backbone's name.")


def _checked(model_args: dict[str, Any]) -> dict[str, Any]:
    """Keywords for timm; a UserError for the backbone's own among them, and for rates that would fail in training."""
    if own := _NAMED & set(model_args):
        raise UserError(f"Expected {', '.join(sorted(own))} beside the backbone's model_args, not in it.")
    for key, value in model_args.items():
        if "drop" in key and key.endswith("_rate") and isinstance(value, int | float) and not 0 <= value <= 1:
            raise UserError(f"Expected {key} in 0 … 1, but got {value}. Change it in the backbone's model_args.")
    return model_args


def _data_config(model: Any, in_chans: int) -> dict[str, Any]:
    """timm's data configuration, with the image size and channels that this model was really built for."""
    config = {**resolve_model_data_config(model), "input_size": get_model_input_config(model)["input_size"]}
    if len(config["mean"]) != in_chans:
        for key in ("mean", "std"):
            config[key] = (sum(config[key]) / len(config[key]),) * in_chans
    return config
