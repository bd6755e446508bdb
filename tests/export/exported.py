"""What tests of exports share: heads whose weights differ from layer to layer, and a batch for any backbone."""

import torch
from torch import Tensor, nn

from layersim.backbones import TransformersBackbone
from layersim.backbones.base import Backbone
from layersim.heads import Head, SeparateHeads
from tests.backbones.tiny_transformers import batch_for


def separate(backbone: Backbone) -> SeparateHeads:
    """Separate heads, all of their weights and biases drawn anew."""
    head = SeparateHeads(backbone)
    for parameter in head.classifiers[:-1].parameters():
        nn.init.normal_(parameter, std=0.2)
    return head.eval()


def batch(backbone: Backbone) -> dict[str, Tensor]:
    if isinstance(backbone, TransformersBackbone):
        return batch_for(backbone)
    assert backbone.input_size is not None
    return {"image": torch.randn(3, *backbone.input_size, generator=torch.Generator().manual_seed(1))}


def readout(backbone: Backbone, head: Head, layer: int) -> Tensor:
    """(N, C) logits at a layer, 0 … L − 1."""
    with torch.no_grad():
        features = backbone(batch(backbone), [layer]).values
        return head.logits(features, [layer])[0]
