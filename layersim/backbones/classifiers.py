"""What stands between a transformers model's final norm and its logits, as one module on single tokens' features.

Letters: D width, C classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layersim.backbones.families import at


class OneToken(nn.Module):
    """A part of the model that takes all tokens and looks at the first, given that one: (…, D) → (…, C)."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.part(features.reshape(-1, 1, features.shape[-1]))
        return result.reshape(*features.shape[:-1], -1)


class Softcapped(nn.Module):
    """Logits kept between −cap and cap: cap · tanh(logits / cap) (Gemma 2, arXiv 2408.00118), (…, D) → (…, C)."""

    def __init__(self, head: nn.Module, cap: float) -> None:
        super().__init__()
        self.head = head
        self.cap = cap

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.head(features) / self.cap) * self.cap


class Chain:
    """The parts of a model that a layout's classifier names, in their order.

    `watched` finds, while the model itself runs, which of them pick a token on their own; `module` puts them together.
    Of a single part that is the part itself, so that a loss can use a language model's one weight.
    """

    def __init__(self, model: Any, steps: tuple[str, ...], softcap: float | None) -> None:
        self.model = model
        self.steps = steps
        self.softcap = softcap
        self.picks: set[str] = set()
        for step in steps:
            self._part(step)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the model runs in here, notes which parts get all tokens and give one."""
        parts = {step: part for step in self.steps if (part := self._part(step)) is not None}
        hooks = [
            part.register_forward_hook(lambda _, args, output, step=step: self._note(step, args[0], output))
            for step, part in parts.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, step: str, tokens: Tensor, output: Tensor) -> None:
        if output.ndim < tokens.ndim:
            self.picks.add(step)

    def _part(self, step: str) -> nn.Module | None:
        if step[:1].isupper() and hasattr(nn, step) and not hasattr(self.model, step):
            activation: nn.Module = getattr(nn, step)()
            return activation
        part: nn.Module | None = at(self.model, step, "classifier")
        return part

    def module(self) -> nn.Module:
        parts = [
            OneToken(part) if step in self.picks else part
            for step in self.steps
            if (part := self._part(step)) is not None
        ]
        whole = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
        return Softcapped(whole, self.softcap) if self.softcap else whole
