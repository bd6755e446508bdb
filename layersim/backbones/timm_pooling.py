"""Where a timm model's classifier looks: which tokens count, and what stands between the last block and the logits."""

from inspect import signature
from typing import Any

import torch
from timm.layers import global_pool_nlc
from torch import Tensor, nn

from layersim.errors import UserError

CHOOSE = "Choose a plain vision transformer (ViT, DeiT, DINOv2, BEiT, EVA, SigLIP)."
_READ = {"norm", "fc_norm", "pool", "attn_pool", "head_drop", "head", "head_dist"}
"""Parts behind the blocks that `pooled`, `final_norm` and `classifier` know."""


def norms_first(model: Any) -> bool:
    """Whether features are taken behind the final norm: where timm norms before an attention pool or a mean, which do
    not commute with it. Picking a token does, so that it is picked *before* the norm."""
    picks_token = getattr(model, "attn_pool", None) is None and model.global_pool == "token"
    return not picks_token and not _is_idle(_norm(model))


def pooled(model: Any, tokens: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Block output, patch tokens (N, P, D) with prefix tokens (N, R, D) where there are some → features (N, D).

    For a distilled model the features are its class and distillation token side by side, (N, 2 D).
    """
    patches, prefix = tokens if isinstance(tokens, tuple) else (tokens, tokens[:, :0])
    if hasattr(model, "head_dist"):
        return prefix[:, :2].flatten(1)
    if getattr(model, "attn_pool", None) is not None or getattr(model, "pool_include_prefix", False):
        pool = model.pool if hasattr(model, "pool") else model._pool  # NaFlexViT's
        return pool(_norm(model)(torch.cat([prefix, patches], dim=1)))
    if model.global_pool == "token":
        return prefix[:, 0]
    patches = _norm(model)(patches) if norms_first(model) else patches
    return global_pool_nlc(patches, model.global_pool, num_prefix_tokens=0)


def final_norm(model: Any) -> nn.Module:
    """What norms the features, (N, D) → (N, D)."""
    if hasattr(model, "head_dist"):
        return TokenNorm(model.norm, tokens=2)
    norms = [] if norms_first(model) else [_norm(model)]
    behind = getattr(model, "fc_norm", nn.Identity()) if trunk(model) is model else model.norm
    return _chain(*norms, behind)


def classifier(model: Any) -> nn.Module:
    """What reads them, (N, D) → (N, C)."""
    if hasattr(model, "head_dist"):
        return DistilledClassifier(model.head, model.head_dist)
    return _chain(model.head_drop, model.head)


class TokenNorm(nn.Module):
    """A norm over the width of each of several tokens that lie side by side, (…, tokens · D)."""

    def __init__(self, norm: nn.Module, tokens: int) -> None:
        super().__init__()
        self.norm = norm
        self.tokens = tokens

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(features.reshape(*features.shape[:-1], self.tokens, -1)).flatten(-2)


class DistilledClassifier(nn.Module):
    """DeiT's two classifiers, of the class and of the distillation token, averaged: (…, 2 D) → (…, C)."""

    def __init__(self, head: nn.Module, head_dist: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.head_dist = head_dist

    def forward(self, features: Tensor) -> Tensor:
        token, distillation = features.chunk(2, dim=-1)
        return (self.head(token) + self.head_dist(distillation)) / 2


def trunk(model: Any) -> Any:
    """The part of a timm model that has its blocks: the model itself, or the encoder in a classifier around one."""
    return model if hasattr(model, "blocks") else getattr(model, "encoder", model)


def check_layout(model: Any, name: str) -> None:
    """Raises UserError, with the reason, for a timm model without blocks of one width or tokens that can be pooled."""
    widths = list(dict.fromkeys(info["num_chs"] for info in getattr(model, "feature_info", []) or []))
    if len(widths) > 1:
        raise UserError(
            f"The layers of {name} have the widths {', '.join(map(str, widths))}: one head cannot read them all, and "
            "layersim adds no projection between a layer and the head. Choose a model of one width, such as a ViT."
        )
    blocks = getattr(trunk(model), "blocks", None)
    if blocks is not None and not len(blocks):
        raise UserError(f"{name} has no blocks. Set a depth from 1 in the backbone's model_args.")
    parts = [part for part, _ in model.named_children()]
    behind = parts[parts.index("blocks") + 1 :] if "blocks" in parts else []
    if blocks is None or not hasattr(model, "forward_intermediates") or not hasattr(model, "head"):
        why = "it keeps no list of blocks that timm gives the outputs of, or no head; its parts are " + ", ".join(
            parts[:6]
        )
    elif not isinstance(getattr(model, "global_pool", None), str):
        why = "its blocks put out maps of the image, which its head pools by itself, and not tokens"
    elif more := [part for part in behind if part not in _READ and not _is_idle(getattr(model, part))]:
        why = f"between its last block and its classifier stands more than a norm and a pooling ({', '.join(more)})"
    elif (
        model.global_pool == "token" and "return_prefix_tokens" not in signature(model.forward_intermediates).parameters
    ):
        why = "its classifier reads a class token, which timm does not give of every block"
    elif model.num_classes < 2:
        raise UserError(f"Expected at least 2 classes, but {name} has {model.num_classes}. Set num_classes.")
    else:
        return
    raise UserError(f"layersim cannot read {name}: {why}. {CHOOSE}")


def _norm(model: Any) -> nn.Module:
    """What timm norms tokens with behind the last block; nothing in models with a norm behind the pooling alone."""
    return getattr(trunk(model), "norm", nn.Identity())


def _chain(*modules: nn.Module) -> nn.Module:
    """The modules that do something, one after the other; a single one as it is."""
    active = [module for module in modules if not _is_idle(module)]
    return active[0] if len(active) == 1 else nn.Sequential(*active)


def _is_idle(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)
