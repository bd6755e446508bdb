"""A model of the library alone, cut to some of its layers. Letters: L layers, N samples, C classes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.backbones.recording import first_tensor
from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.export.layers import kept_layers
from layersim.export.libraries import library_of
from layersim.export.weights import move_weights, weights_read_at
from layersim.heads import Head, SeparateHeads, SharedHead

HALF_PRECISION = (torch.bfloat16, torch.float16)


def truncate(backbone: Backbone, head: Head, layers: int | Sequence[int]) -> nn.Module:
    """A stock model with the first `layers` blocks, or with the blocks listed: timm's or transformers' own class.

    Its logits are the readout at its last layer: a shared head is the model's own, of separate heads the one that reads
    that layer takes the place of the model's. Weights are copies; the model is in evaluation mode, on the backbone's
    device. Before it is handed over, it is compared on a small batch with the whole model while that skips the other
    blocks.

    Args:
        backbone: a `TimmBackbone` or `TransformersBackbone`.
        head: `SharedHead` or `SeparateHeads` of that backbone.
        layers: how many, 1 … L; or ascending layer numbers from 0.

    Raises:
        UserError: `layers` outside their range; a shared head that reads raw features (norm: none) at the last layer
            that is kept, which no stock model does; a family that the library cannot build with these layers.
    """
    kept = kept_layers(layers, backbone.num_layers)
    library = library_of(backbone)
    _check_head(head, kept[-1], backbone.num_layers)
    untied = isinstance(head, SeparateHeads) and kept[-1] < backbone.num_layers - 1
    model = library.untrained(kept, tied=not untied)
    blocks = next(name for name, module in library.model.named_modules() if module is library.blocks)
    weights = weights_read_at(kept[-1], backbone, head, library.model)
    move_weights(weights, model, blocks, library.sources(kept), kept, backbone.num_layers)
    model.eval()
    batch = library.probe()
    with torch.no_grad():
        found, expected = library.logits(model, batch), readout_without(backbone, head, kept, batch)
    if not agree(found, expected):
        raise UserError(
            f"A {type(model).__name__} with the layers {', '.join(str(layer + 1) for layer in kept)} does not give the "
            "readout at its last layer: something in the model depends on a block's place, and the library cannot "
            "express it. Keep the first layers only, or choose another model."
        )
    return model


def readout_without(backbone: Backbone, head: Head, kept: Sequence[int], batch: Mapping[str, Any]) -> Tensor:
    """(N, C) logits at the last of the `kept` layers, while the whole model skips the layers that are not kept."""
    left_out = set(range(backbone.num_layers)) - set(kept)
    blocks = library_of(backbone).blocks
    with evaluating(backbone, head), torch.no_grad(), skipping(blocks, left_out, backbone.num_layers):
        features = backbone.forward(batch)  # not called, since what `compile` has made of it may not see the hooks
        return head.logits(features.values[-1:], [kept[-1]])[0]


@contextmanager
def skipping(blocks: nn.ModuleList, layers: Collection[int], num_layers: int) -> Iterator[None]:
    """While in here, the blocks at `layers` hand on what they were given.

    Blocks are counted as they are called, since shared ones (ALBERT) are several layers each.
    """
    calls = 0

    def hand_on(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        nonlocal calls
        layer, calls = calls % num_layers, calls + 1
        if layer not in layers:
            return None
        given = first_tensor([*args, *keywords.values()])
        return given if isinstance(output, Tensor) else (given, *output[1:])

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_hook(hand_on, with_kwargs=True).remove)
        yield


def agree(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether logits differ by at most `tolerance`, and where some exceed 1, by that share of the largest.

    Where one is of half precision the tolerance is 2e-2, whatever is given.
    """
    if found.shape != expected.shape:
        return False
    tolerance = 2e-2 if {found.dtype, expected.dtype} & {*HALF_PRECISION} else tolerance
    return bool((found - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item()))


def _check_head(head: Head, last: int, num_layers: int) -> None:
    if not isinstance(head, SharedHead | SeparateHeads):
        raise UserError(f"Expected a SharedHead or SeparateHeads to export, but got {type(head).__name__}.")
    if isinstance(head, SharedHead) and head.norm == "none" and last < num_layers - 1:
        raise UserError(
            f"The head reads layer {last + 1} raw (norm: none), but a stock model norms its last block's output: its "
            f"logits would differ. Export all {num_layers} layers, or train with the head's norm set to final."
        )
