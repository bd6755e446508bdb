"""A linear map in the place of removed blocks, folded into the weights of the block before them: ReplaceMe (arXiv
2505.02819). Letters: N tokens, D width, F inputs of a linear map."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.backbones.calls import hooked, recorded
from layersim.backbones.lora import is_linear
from layersim.errors import UserError
from layersim.evaluation import evaluate
from layersim.export.removal import Removal, Total
from layersim.heads import Head


def replace_linear(
    backbone: Backbone, head: Head, removal: Removal, batches: Iterable[Mapping[str, Any]]
) -> tuple[Backbone, Head]:
    """Copies of backbone and head in which the block before the removed ones does, as far as a linear map can, what
    those do, so that a model without them loses less; it has the same modules and as many parameters.

    A block's features are a sum h = r + c, where c is what its last linear map puts in. For the features h' behind the
    removed blocks, r + c + Δ c + β ≈ h' in least squares over the tokens, with an intercept β where that map has a
    bias, and the map's weights are multiplied by I + Δ. Of all Δ that fit alike the smallest is taken: blocks that do
    nothing leave it 0. Where a classifier ends with the removed blocks, the tokens that it reads count, else all that
    are no padding.

    Args:
        removal: which blocks will be removed.
        batches: training data, whose labels are not looked at; best some tens of times as many tokens as the width.

    Raises:
        UserError: a block that puts nothing linear into a sum, as where its norm stands behind it (BERT); blocks that
            share weights; adapters; fewer tokens than the map has unknowns a row.
    """
    backbone, head = copy.deepcopy((backbone, head))
    reader = _Reader(backbone, removal)
    (sums,) = evaluate(reader, batches, Total())
    if sums is None or reader.tokens < len(sums):
        raise UserError(
            f"Expected more tokens than the {reader.unknowns} unknowns of each row of a linear map, but got "
            f"{reader.tokens}. Raise --removal_batches."
        )
    products, targets = sums[:, : len(sums)], sums[:, len(sums) :]
    # the squares of singular values below rounding count as zero, and what is along them as not asked for
    change = torch.linalg.lstsq(products, targets, driver="gelsd").solution.mT
    reader.fold(change)
    backbone.folded = f"block {removal.first - 1} carries a linear map for blocks {removal.first} … {removal.last}"
    return backbone, head


class _Reader(nn.Module):
    """Reads of each token what the last map of the block before puts in, and what the removed blocks add."""

    def __init__(self, backbone: Backbone, removal: Removal) -> None:
        super().__init__()
        self.backbone, self.before, self.last = backbone, removal.first - 2, removal.last - 1
        if len(backbone.blocks) != backbone.num_layers:
            raise UserError("The model's blocks share weights, so that none can stand for others. Leave --replace out.")
        pooled = not backbone.reads_tokens and not backbone.norm_before_pooling
        self.read_alone = pooled and removal.last == backbone.num_layers
        self.map: nn.Module | None = None
        self.scale = torch.empty(0)
        self.tokens = 0
        self.block = f"{type(backbone.blocks[self.before]).__name__}, block {self.before + 1},"

    @property
    def unknowns(self) -> int:
        """D, and 1 where the map has a bias."""
        return len(self.scale) + (getattr(self.map, "bias", None) is not None)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Normal equations, Σ x xᵀ beside Σ x yᵀ, of x (N, D), or (N, D + 1) with ones, and y (N, D), in float64."""
        if self.map is None:
            self._find(batch)
        assert self.map is not None
        with recorded({"map": self.map}, keep=Tensor.detach) as calls:
            features = self.backbone.read_blocks(batch, lambda tokens: tokens, [self.before, self.last])
        put_in = calls[-1].gave.view_as(features[0]).double() * self.scale.to(features[0].device)
        added = features[1].double() - features[0].double()
        put_in, added = self._counted(put_in, batch), self._counted(added, batch)
        if self.unknowns > len(self.scale):
            put_in = torch.cat([put_in, torch.ones_like(put_in[:, :1])], dim=1)
        self.tokens += len(put_in)
        return torch.cat([put_in.mT @ put_in, put_in.mT @ added], dim=1)

    def _counted(self, tokens: Tensor, batch: Mapping[str, Any]) -> Tensor:
        mask = batch.get("attention_mask")
        if self.read_alone:
            tokens = self.backbone.pool(tokens, mask)
        elif mask is not None and mask.shape == tokens.shape[:-1]:
            tokens = tokens[mask > 0]
        return tokens.flatten(0, -2)

    def _find(self, batch: Mapping[str, Any]) -> None:
        """The block's last linear map, if doubling what it gives adds just that, or that times a number a channel."""
        maps = {path: each for path, each in self.backbone.blocks[self.before].named_modules() if is_linear(each)}
        with recorded(maps, keep=Tensor.detach) as calls:
            (plain,) = self.backbone.read_blocks(batch, lambda tokens: tokens, [self.before])
        fitting = [call for call in calls if call.gave.numel() == plain.numel()]
        if not fitting or any("lora" in path for path, _ in self.backbone.blocks[self.before].named_modules()):
            raise UserError(f"{self.block} has no linear map of its own that could be changed. Leave --replace out.")
        last = max(fitting, key=lambda call: call.end)
        with hooked([last.module], after=lambda module, args, keywords, output: 2 * output):
            (doubled,) = self.backbone.read_blocks(batch, lambda tokens: tokens, [self.before])
        gave, more = (each.double().flatten(0, -2) for each in (last.gave.view_as(plain), doubled - plain))
        scale = (more * gave).sum(0) / gave.square().sum(0)
        off = (more - scale * gave).abs().max() / more.abs().max()
        if not (off < 1e-3 and (scale != 0).all()):  # NaN too
            raise UserError(
                f"{self.block} does not add what its last linear map gives, as where a norm stands behind it, so that "
                "no map can be folded into it. Leave --replace out."
            )
        self.map, self.scale = last.module, scale.cpu()

    @torch.no_grad()
    def fold(self, change: Tensor) -> None:
        """Multiplies the map's weights by I + Δ, given (D, D) Δ or (D, D + 1) with β."""
        assert self.map is not None
        weight: Any = self.map.weight
        outputs_first = isinstance(self.map, nn.Linear)
        scale, size = self.scale[:, None], len(self.scale)
        rows = (weight if outputs_first else weight.mT).detach().double().cpu()
        turned = rows + change[:, :size] @ (scale * rows) / scale
        weight.copy_(turned if outputs_first else turned.mT)
        if self.unknowns > size:
            bias: Any = self.map.bias
            own = self.scale * bias.detach().double().cpu()
            bias.copy_((own + change[:, :size] @ own + change[:, size]) / self.scale)
