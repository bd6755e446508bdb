"""What stands between a transformers model's final norm and its logits, as modules on single tokens' features.

Letters: D width, C classes.
"""

import torch
from torch import Tensor, nn


class OneToken(nn.Module):
    """A part of the model that takes all tokens and looks at the first, given that one: (…, D) → (…, C)."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.part(features.reshape(-1, 1, features.shape[-1]))
        return result.reshape(*features.shape[:-1], -1)


class Softcapped(nn.Module):
    """Logits kept between −cap and cap: cap · tanh(logits / cap) (Gemma 2, arXiv 2408.00118), (…, C) → (…, C)."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: Tensor) -> Tensor:
        return torch.tanh(logits / self.cap) * self.cap


class Scaled(nn.Module):
    """Logits, or what becomes them, times a number (Granite, Cohere), (…, C) → (…, C)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.scale
