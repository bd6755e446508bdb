"""Where a timm model's classifier looks: which tokens count, and what stands between the last block and the logits."""

from typing import Any

import torch
from timm.layers import global_pool_nlc
from torch import Tensor, nn


class TimmPooling:
    """Splits what timm does after the last block into pooling, final norm and classifier.

    Picking tokens commutes with a norm over their width, so a class token is taken *before* the norm. A mean over
    tokens or an attention pool does not: where timm norms first (attention pools, or a mean without `fc_norm`), the
    features are taken after the norm, and `norm_first` says so.
    """

    def __init__(self, model: Any) -> None:
        self.distilled = hasattr(model, "head_dist")
        self.attends = getattr(model, "attn_pool", None) is not None
        picks_token = not self.attends and model.global_pool == "token"
        self.norm_first = not picks_token and not isinstance(getattr(model, "norm", nn.Identity()), nn.Identity)

    def __call__(self, model: Any, tokens: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Block output, patch tokens (N, P, D) with prefix tokens (N, R, D) where there are some → features (N, D).

        For a distilled model the features are its class and distillation token side by side, (N, 2 D).
        """
        patches, prefix = tokens if isinstance(tokens, tuple) else (tokens, tokens[:, :0])
        features: Tensor
        if self.distilled:
            features = prefix[:, :2].flatten(1)
        elif self.attends or getattr(model, "pool_include_prefix", False):
            features = model.pool(model.norm(torch.cat([prefix, patches], dim=1)))
        elif model.global_pool == "token":
            features = prefix[:, 0]
        else:
            patches = model.norm(patches) if self.norm_first else patches
            features = global_pool_nlc(patches, model.global_pool, num_prefix_tokens=0)
        return features

    def final_norm(self, model: Any) -> nn.Module:
        if self.distilled:
            return TokenNorm(model.norm, tokens=2)
        norms = [] if self.norm_first else [getattr(model, "norm", nn.Identity())]
        return _chain(*norms, getattr(model, "fc_norm", nn.Identity()))

    def classifier(self, model: Any) -> nn.Module:
        if self.distilled:
            return DistilledClassifier(model.head, model.head_dist)
        return _chain(model.head_drop, model.head)


class TokenNorm(nn.Module):
    """A norm over the width of each of several tokens that lie side by side, (…, tokens · D)."""

    def __init__(self, norm: nn.Module, tokens: int) -> None:
        super().__init__()
        self.norm = norm
        self.tokens = tokens

    def forward(self, features: Tensor) -> Tensor:
        normed: Tensor = self.norm(features.reshape(*features.shape[:-1], self.tokens, -1))
        return normed.flatten(-2)


class DistilledClassifier(nn.Module):
    """DeiT's two classifiers, of the class and of the distillation token, averaged: (…, 2 D) → (…, C)."""

    def __init__(self, head: nn.Module, head_dist: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.head_dist = head_dist

    def forward(self, features: Tensor) -> Tensor:
        token, distillation = features.chunk(2, dim=-1)
        logits: Tensor = (self.head(token) + self.head_dist(distillation)) / 2
        return logits


def _chain(*modules: nn.Module) -> nn.Module:
    """The modules that do something, one after the other; a single one as it is."""
    active = [module for module in modules if not _is_idle(module)]
    return active[0] if len(active) == 1 else nn.Sequential(*active)


def _is_idle(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)
