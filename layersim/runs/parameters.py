"""How many numbers a model has, and by what it is known again."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from layersim.module import LayerwiseModule


def parameters_of(module: LayerwiseModule) -> dict[str, float]:
    """How many numbers the model has, and how many it would have with a head for each layer.

    `model` and `head` (its classifiers alone) as they are; `separate_heads`: the model with L classifiers;
    `share_saved`: the share of those that one head for all layers saves, (L − 1) c / (P + (L − 1) c) with c numbers in
    a classifier and P in a model with one (arXiv 2406.14479, where c = K d).
    """
    one = _count(module.backbone.classifier)
    heads = _count(*(part for name, part in module.head.named_children() if name != "final_norm"))
    model = _count(module)
    separate = model - heads + module.num_layers * one
    return {
        "model": model,
        "head": heads,
        "separate_heads": separate,
        "share_saved": (module.num_layers - 1) * one / separate,
    }


def _count(*modules: nn.Module) -> int:
    """Numbers in the modules' parameters, each counted once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def fingerprint(module: LayerwiseModule) -> str:
    """Of the backbone's and the head's weights, 16 hexadecimal digits: equal where all are, to the bit. On several
    processes that share a model out, called by all."""
    return fingerprint_of(module.state_dict())


def fingerprint_of(state: Mapping[str, Any], dtype: torch.dtype | None = None) -> str:
    """The same of a checkpoint's `state_dict`, had its weights been made of this type."""
    digest = sha256()
    for name in sorted(name for name in state if name.startswith(("backbone.", "head."))):
        value: Any = state[name]
        whole: Any = value.full_tensor() if hasattr(value, "full_tensor") else value
        whole = whole.to(dtype) if dtype is not None and whole.is_floating_point() else whole
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        digest.update(whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
