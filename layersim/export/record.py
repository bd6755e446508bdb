"""What an export says of itself: `layersim.json` and its README."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

from layersim.backbones.base import Backbone
from layersim.export.truncation import library_of
from layersim.heads import Head

Format = Literal["stock", "onnx", "torch.export"]


def record_of(backbone: Backbone, head: Head, kept: Sequence[int], form: Format) -> dict[str, Any]:
    """The format, what was kept (layers counted from 1, as people read them) and which versions wrote it."""
    library = library_of(backbone)
    return {
        "format": form,
        "library": library.name,
        "model": type(library.model).__name__,
        "head": type(head).__name__,
        "layers": [layer + 1 for layer in kept],
        "of": backbone.num_layers,
        **({"folded": backbone.folded} if backbone.folded else {}),
        "versions": {name: version(name) for name in dict.fromkeys(("layersim", "torch", library.name))},
    }


def readme(record: dict[str, Any], usage: str) -> str:
    """What the export is, and the lines that load it."""
    kept, whole = record["layers"], record["of"]
    if len(kept) == whole:
        what = f"all {whole} layers"
    elif kept[-1] == len(kept):
        what = f"the first {len(kept)} of {whole} layers"
    else:
        what = f"{len(kept)} of {whole} layers ({', '.join(map(str, kept))})"
    if "folded" in record:
        what += f"; {record['folded']}"
    leaves = (
        "\nWith layersim, samples leave as soon as a layer is sure (`exits.json`):\n\n"
        '```python\nfrom layersim import EarlyExit\n\nearly = EarlyExit.load("PATH/OF/THIS/FOLDER")\n```\n'
    )
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return (
        f"# {record['model']}, {what}\n\n"
        f"Written by {versions}; needs no layersim. In this folder:\n\n"
        f"```python\n{usage}```\n" + (leaves if "exits" in record and record["format"] == "stock" else "")
    )
