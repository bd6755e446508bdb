"""A tiny input for a transformers model, and what must hold of it before the model is trained or measured."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layersim.backbones.families import OPTIONS, Task
from layersim.errors import UserError


def tiny_batch(model: Any, task: Task, input_size: tuple[int, int, int] | None) -> dict[str, Tensor]:
    """A ramp of an image; or two texts with the same first token and other ones behind it, the second padded."""
    config = model.config
    if input_size:
        ramp = torch.linspace(-1, 1, steps=torch.Size(input_size).numel(), device=model.device)
        return {"image": ramp.view(1, *input_size).to(model.dtype)}
    padding: int | None = getattr(config, "pad_token_id", None)
    tokens = [token for token in range(min(config.vocab_size, 16)) if token != padding]
    a, b, c, d = tokens[-4:]
    texts = torch.tensor([[a, b, c, d], [a, c, d, 0 if padding is None else padding]], device=model.device)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], device=model.device)
    if padding is None and task == "classification":  # transformers' classifiers then refuse two texts
        texts, mask = texts[:1], mask[:1]
    return {"input_ids": texts, "attention_mask": mask}


def check_widths(name: str, blocks: Sequence[Tensor]) -> None:
    """Raises UserError where block outputs, (…, D), differ in width."""
    widths = sorted({block.shape[-1] for block in blocks})
    if len(widths) > 1:
        raise UserError(
            f"The layers of {name} have the widths {', '.join(map(str, widths))}: one head cannot read them all, and "
            "layersim adds no projection between a layer and the head. Choose a model of one width."
        )


def check_causal(name: str, logits: Tensor) -> None:
    """Raises UserError where the logits (2, T, C) of `tiny_batch` differ at the first token, which the texts share."""
    if not _close(logits[0, 0], logits[1, 0]):
        raise UserError(
            f"{name} sees the tokens after the one to predict: it is no causal language model. "
            "Set the backbone's task to classification, or its is_decoder in config_args where it has that."
        )


def check_logits(name: str, found: Tensor, expected: Tensor) -> None:
    """Raises UserError where the head at the last layer does not give the model's own logits."""
    if found.shape != expected.shape or not _close(found, expected):
        raise UserError(
            f"layersim cannot read {name}: its final norm, pooling and classifier, applied to the last block's output, "
            f"do not give the model's own logits. {OPTIONS}"
        )


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding, measured against the largest logit: some classifiers start with tiny weights."""
    tolerance = 5e-2 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
