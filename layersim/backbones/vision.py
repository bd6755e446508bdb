"""timm models as backbones."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.backbones.passage import Passage
from layersim.backbones.pooling import TimmPooling
from layersim.errors import UserError
from layersim.outputs import LayerFeatures

_CHOOSE = "Choose a plain vision transformer (ViT, DeiT, DINOv2, BEiT, EVA, SigLIP)."


class TimmBackbone(Backbone):
    """Any timm vision transformer whose blocks have one width: ViT, DeiT, DINOv2, BEiT, EVA, SigLIP and their kin.

    On construction one image is passed through, to make sure that the shared head at the last layer gives the logits of
    the model's own forward; a model for which it does not is refused.

    Args:
        name: timm's model name, or `hf-hub:` and a repository.
        pretrained: load the published weights (from the hub or its local cache).
        checkpoint_path: a local weights file to load instead.
        num_classes: C; timm's own number where None.
        img_size: side of the (square) images in pixels, or (height, width); timm's own where None.
        in_chans: image channels.
        grad_checkpointing: recompute blocks in the backward pass, to save memory.
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
        grad_checkpointing: bool = False,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_name(name)
        if pretrained and checkpoint_path:
            raise UserError("Expected pretrained or checkpoint_path, but got both. Leave one out.")
        if checkpoint_path and not Path(checkpoint_path).is_file():
            raise UserError(f"There is no weights file {checkpoint_path}. Change the backbone's checkpoint_path.")
        options = {"num_classes": num_classes, "img_size": img_size, **(model_args or {})}
        self.model = _create(
            name,
            pretrained=pretrained,
            in_chans=in_chans,
            **{key: value for key, value in options.items() if value is not None},
        )
        _check_layout(self.model, name)
        if checkpoint_path:
            _load_weights(self.model, checkpoint_path)
        if grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.num_layers = len(self.model.blocks)
        self.num_classes = self.model.num_classes
        self.pooling = TimmPooling(self.model)
        self.norm_before_pooling = self.pooling.norm_first
        self.data_config = _data_config(self.model, in_chans)
        self.input_size = self.data_config["input_size"]
        self._check_logits(name)

    @property
    def final_norm(self) -> nn.Module:
        return self.pooling.final_norm(self.model)

    @property
    def classifier(self) -> nn.Module:
        return self.pooling.classifier(self.model)

    def forward(self, batch: Mapping[str, Any], layers: Sequence[int] | None = None) -> LayerFeatures:
        """Features of `batch["image"]` (N, C, H, W); targets are `batch["label"]` (N,) where there is one.

        Raises:
            UserError: images of another size or channel number than the model takes.
        """
        tokens = self.model.forward_intermediates(
            self._images(batch),
            indices=list(range(self.num_layers) if layers is None else layers),
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
            stop_early=True,
        )
        values = torch.stack([self.pooling(self.model, layer) for layer in tokens])
        return LayerFeatures(values, batch.get("label"), batch.get("position"))

    def passage(self, batch: Mapping[str, Any]) -> Passage:
        images = self._images(batch)
        return Passage(
            run=lambda: self.model.forward_features(images),
            blocks=self.model.blocks,
            pool=lambda tokens, _: self._pool(tokens),
            samples=images,
        )

    def _pool(self, block: Tensor) -> Tensor:
        prefix = self.model.num_prefix_tokens
        return self.pooling(self.model, (block[:, prefix:], block[:, :prefix]) if prefix else block)

    def _images(self, batch: Mapping[str, Any]) -> Tensor:
        images: Tensor = batch["image"]
        if tuple(images.shape[1:]) != self.input_size:
            raise UserError(
                f"The model takes images of {_size(self.input_size)}, but the data gives {_size(images.shape[1:])}. "
                "Set the backbone's img_size and in_chans, or resize in the data's transforms."
            )
        return images

    @torch.no_grad()
    def _check_logits(self, name: str) -> None:
        """One image through the model's own forward and through ours: the contract, held before anything is trained.

        Logits are compared, and what reaches the classifier too, since timm starts some classifiers at zero.
        """
        training = self.training
        self.eval()
        head = self.classifier
        parameter = next(self.parameters())
        ramp = torch.linspace(-1, 1, steps=torch.Size(self.input_size).numel(), dtype=parameter.dtype)
        image = ramp.view(1, *self.input_size).to(parameter.device)
        try:
            expected = _traced(lambda: self.model(image), head)
        except RuntimeError as error:
            raise UserError(
                f"{name} cannot take an image of {_size(self.input_size)}: {error}. "
                "Change the backbone's img_size, in_chans, or patch_size in its model_args."
            ) from error
        found = _traced(lambda: head(self.final_norm(self({"image": image}).values[-1])), head)
        self.train(training)
        pairs = list(zip(found, expected, strict=False))
        if len(found) != len(expected) or not all(
            ours.shape == own.shape and torch.allclose(ours, own, rtol=1e-3, atol=1e-4) for ours, own in pairs
        ):
            raise UserError(
                f"layersim cannot read {name}: its final norm, pooling and classifier, applied to the last block's "
                f"output, do not give the model's own logits. {_CHOOSE}"
            )


def _traced(run: Callable[[], Tensor], classifier: nn.Module) -> list[Tensor]:
    """What reached the classifier's linear maps while `run` ran, and its result."""
    seen: list[Tensor] = []
    linears = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    hooks = [linear.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for linear in linears]
    try:
        return [run(), *seen]
    finally:
        for hook in hooks:
            hook.remove()


def _check_name(name: str) -> None:
    if name.startswith(("hf-hub:", "hf_hub:", "timm/", "local-dir:")) or timm.is_model(name):
        return
    near = get_close_matches(name.split(".")[0], timm.list_models(), n=5, cutoff=0.6)
    hint = f" Did you mean {', '.join(near)}?" if near else " `timm.list_models()` lists them."
    raise UserError(f"timm knows no model {name!r}.{hint} Change the backbone's name.")


def _create(name: str, **options: Any) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, **options)
    except TypeError as error:
        raise UserError(
            f"timm cannot build {name} with {options}: {error}. Change the backbone's model_args."
        ) from error
    except OSError as error:
        raise UserError(
            f"The weights of {name} could not be fetched: {error}. "
            "Without a network set the backbone's checkpoint_path to a local weights file."
        ) from error
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"timm cannot build {name}: {error}") from error
    return model


def _check_layout(model: Any, name: str) -> None:
    """One width at every block, and timm's own way to reach the blocks."""
    widths = list(dict.fromkeys(info["num_chs"] for info in getattr(model, "feature_info", []) or []))
    if len(widths) > 1:
        raise UserError(
            f"The layers of {name} have the widths {', '.join(map(str, widths))}: one head cannot read them all, and "
            "layersim adds no projection between a layer and the head. Choose a model of one width, such as a ViT."
        )
    reach = getattr(model, "forward_intermediates", None)
    if reach is None or "return_prefix_tokens" not in signature(reach).parameters or not hasattr(model, "global_pool"):
        raise UserError(
            f"layersim cannot read {name}: timm does not give its blocks' tokens with the class token. {_CHOOSE}"
        )
    if model.num_classes < 1:
        raise UserError(f"{name} has no classifier. Set the backbone's num_classes.")


def _load_weights(model: Any, path: str) -> None:
    try:
        timm.models.load_checkpoint(model, path)
    except Exception as error:  # unpickling raises whatever the damage suggests
        why = " ".join(str(error).split())
        if "loading state_dict" in why:
            raise UserError(f"The weights in {path} do not fit the model. {why} Change num_classes or name.") from error
        raise UserError(f"{path} is not a readable weights file (cut short or corrupt). {why}") from error


def _data_config(model: Any, in_chans: int) -> dict[str, Any]:
    """timm's data configuration, with the image size and channels that this model was really built for."""
    config = dict(resolve_model_data_config(model))
    size = getattr(model.patch_embed, "img_size", None) or config["input_size"][1:]
    config["input_size"] = (in_chans, *size)
    if len(config["mean"]) != in_chans:
        for key in ("mean", "std"):
            config[key] = (sum(config[key]) / len(config[key]),) * in_chans
    return config


def _size(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) + " (channels × height × width)"
