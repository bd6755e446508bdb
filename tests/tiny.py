"""A ViT that trains in seconds on the digits, for tests of what lies above the backbone."""

from typing import Any

import torch

from layersim.backbones import TimmBackbone
from layersim.data import Digits
from layersim.module import LayerwiseModule

ARCHITECTURE: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}

FLAGS = [
    "--data=layersim.data.Digits",
    "--model.backbone=layersim.backbones.TimmBackbone",
    "--model.backbone.name=vit_tiny_patch16_224",
    "--model.backbone.num_classes=10",
    "--model.backbone.img_size=8",
    "--model.backbone.in_chans=1",
    "--model.backbone.model_args={patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2}",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
]


def backbone(num_classes: int = 10) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(
        "vit_tiny_patch16_224", num_classes=num_classes, img_size=8, in_chans=1, model_args=ARCHITECTURE
    )


def module(**options: Any) -> LayerwiseModule:
    return LayerwiseModule(backbone(), **options)


def digits(**options: Any) -> Digits:
    return Digits(**{"batch_size": 64, **options})
