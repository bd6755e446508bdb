"""What an export says of itself, in `layersim.json`."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

from layersim.backbones.base import Backbone
from layersim.export.libraries import library_of
from layersim.heads import Head

Format = Literal["stock", "onnx", "torch.export"]


def record_of(backbone: Backbone, head: Head, kept: Sequence[int], form: Format) -> dict[str, object]:
    """The format, what was kept (layers counted from 1, as people read them) and which versions wrote it."""
    library = library_of(backbone)
    return {
        "format": form,
        "library": library.name,
        "model": type(library.model).__name__,
        "head": type(head).__name__,
        "layers": [layer + 1 for layer in kept],
        "of": backbone.num_layers,
        "versions": {name: version(name) for name in ("layersim", "torch", library.name)},
    }
