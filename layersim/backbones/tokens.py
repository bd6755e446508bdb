"""Which tokens count: one for each text or image of a classifier, every predicting one for a language model.

Letters: N samples, T tokens, D width.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from layersim.backbones.base import taken
from layersim.errors import UserError

Rule = Literal["first", "last", "mean", "class and mean"]
POSITIONS = 2**20
"""A token's position is its sample's position times this number, plus its place among the sample's tokens."""


def pooled(tokens: Tensor, mask: Tensor | None, rule: Rule, prefix: int = 0) -> Tensor:
    """What a classifier looks at, (N, T, D) → (N, D), or (N, 2 D) for `class and mean`.

    Args:
        tokens: a block's output.
        mask: (N, T), 1 where a token is no padding; None for images.
        rule: `first` token; `last` token that is no padding, whichever side is padded; `mean` over the tokens that are
            no padding; `class and mean`: the first token and the mean of those behind it, side by side (DINOv2).
        prefix: how many tokens before an image's patches a mean leaves out: a class token, registers.

    Raises:
        UserError: the first axis holds something else than the mask's N samples, as where a model has the tokens first.
    """
    if mask is not None and tokens.shape[0] != mask.shape[0]:  # `len` would fix the number in an exported program
        raise UserError(
            f"A block puts out {tuple(tokens.shape)} for {len(mask)} samples: this model cannot be read here."
        )
    match rule:
        case "first":
            return tokens[:, 0]
        case "class and mean":
            return torch.cat([tokens[:, 0], tokens[:, prefix or 1 :].mean(dim=1)], dim=-1)
    real = tokens.new_ones(tokens.shape[:2]) if mask is None else mask
    if rule == "mean":
        tokens, real = tokens[:, prefix:], real[:, prefix:]
        wide = torch.promote_types(tokens.dtype, torch.float32)  # half precision holds neither sum nor count
        total = (tokens * real.to(tokens.dtype).unsqueeze(-1)).sum(dim=1, dtype=wide)
        return (total / real.sum(dim=1, keepdim=True, dtype=wide)).to(tokens.dtype)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), (places * (real > 0)).argmax(dim=1)]


@dataclass(frozen=True)
class PredictingTokens:
    """The N tokens of a batch from which a language model predicts: their rows, columns, targets and position."""

    rows: Tensor
    columns: Tensor
    targets: Tensor | None
    position: Tensor | None

    def __call__(self, tokens: Tensor) -> Tensor:
        """A block's output, (samples, T, D), at those tokens: (N, D)."""
        return tokens[self.rows, self.columns]


def predicting_tokens(batch: Mapping[str, Any]) -> PredictingTokens:
    """Tokens that predict a target: the token at t predicts `label` at t + 1.

    Both must be no padding by `attention_mask`, and the label not −100 (a prompt, or what else the data leaves out).
    Without labels every token that is no padding counts, and there are no targets. Finding them makes an accelerator
    wait once for each batch, since their number decides a shape.

    Args:
        batch: `attention_mask` (samples, T); where there are, `label` (samples, T), aligned with the `input_ids` as in
            transformers, and `position` (samples,) on the host.

    Raises:
        UserError: no mask, or no token predicts a target.
    """
    mask = taken(batch, "attention_mask") > 0
    label: Tensor | None = batch.get("label")
    counts = mask.clone()
    if label is not None:
        counts[:, :-1] &= mask[:, 1:] & (label[:, 1:] != -100)
        counts[:, -1] = False
    rows, columns = counts.nonzero(as_tuple=True)
    if not len(rows):
        raise UserError(
            "Of this batch no token predicts a target: all are padding, alone in their text, or labelled -100. "
            "Leave such texts out of the data."
        )
    targets = None if label is None else label[rows, columns + 1]
    position: Tensor | None = batch.get("position")
    if position is not None:
        # places are counted without padding, so that they do not depend on what else is in the batch
        places = (mask.cumsum(dim=1) - 1)[rows, columns].cpu()
        position = position.cpu().long()[rows.cpu()] * POSITIONS + places
    return PredictingTokens(rows, columns, targets, position)


def max_positions(model: Any) -> int | None:
    """Tokens that a transformers model has positions for, None where it sets no bound (XLNet says -1)."""
    longest: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    positions = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(positions, "padding_idx", None)
    if longest is None or longest <= 0:
        return None
    return longest if padding is None else longest - padding - 1  # RoBERTa and its kin count from there


def take_padding_from_eos(name: str, config: Any) -> None:
    """Names the end-of-text token, where there is one, as the padding of a configuration that has none, and says so."""
    eos = getattr(config, "eos_token_id", None)
    eos = eos[0] if isinstance(eos, list) else eos
    if eos is None:
        return
    config.pad_token_id = eos
    warnings.warn(
        f"{name} names no padding token; its end-of-text token {eos} is taken. layersim reads the last token that "
        "attention_mask keeps, so a text that ends in it keeps its end; transformers' own forward skips it.",
        stacklevel=4,
    )
