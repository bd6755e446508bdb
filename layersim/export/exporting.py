"""A model of its own, which needs no layersim: a stock checkpoint, a torch.export archive, or ONNX."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from layersim.backbones.base import Backbone
from layersim.errors import UserError, check_choice
from layersim.exits.given import as_names
from layersim.export.destination import check_destination, destination
from layersim.export.programs import STOCK, USAGE, Named, check_onnx, example, onnx_file, torch_archive, traced, usage
from layersim.export.serving import NOTHING, Serving
from layersim.export.truncation import agree, kept_layers, library_of, truncate
from layersim.heads import Head

Format = Literal["stock", "onnx", "torch"]


def export_as(
    form: Format,
    backbone: Backbone,
    head: Head,
    layers: int | Sequence[int],
    to: str | Path,
    *,
    serving: Serving = NOTHING,
    overwrite: bool = False,
) -> Path:
    """Writes the model with its first `layers` blocks, or the blocks listed, into the folder `to`.

    `stock`: for timm `model.safetensors`, and `config.json` with the arguments that rebuild the model, its input size,
        mean, std and class names. For transformers what `from_pretrained` takes, with the tokenizer or image processor
        where the model came with one. For a model of one's own its weights, for a model made with as many blocks.
    `torch`: `model.pt2`, which `torch.export.load` opens on the CPU. Inputs are `image` (N, channels, height,
        width), or `input_ids` and `attention_mask` (N, T) and, where the model tells texts of a pair apart,
        `token_type_ids`; the output is what the stock model calls logits. N and T may be any, T up to the model's
        positions.
    `onnx`: `model.onnx`, likewise, for onnxruntime.

    All with a README of the lines that load it, and `layersim.json`. It is loaded again and compared, a program on
    another N and T than it was traced on, before it gets its name.

    Args:
        layers: as in `truncate`; L for the whole model.
        to: the folder to make.
        serving: what goes along with it.
        overwrite: replace an export that stands at `to`.

    Returns:
        The folder.

    Raises:
        UserError: as `truncate` and `check_destination`; names of another number than the classes; an export that does
            not load or does not give the same logits; a model that torch.export cannot follow; for ONNX, that the extra
            `onnx` is not installed, or weights of bfloat16, which NumPy, and with it onnxruntime, does not know.
    """
    check_choice("form", form, Format)
    if form == "onnx":
        check_onnx(backbone)
    serving = replace(serving, class_names=as_names(serving.class_names, backbone.num_classes))
    to = check_destination(to, overwrite)
    library = library_of(backbone)
    model = truncate(backbone, head, layers, stock=form == "stock")
    record = record_of(backbone, head, kept_layers(layers, backbone.num_layers), form) | serving.entries
    if form == "stock":
        batch, lines = backbone.small_batch(), library.usage
    else:
        named = Named(model.cpu(), library.output)
        program = traced(named, backbone, model)
        batch = example(backbone, times=3)
        lines = usage(USAGE[form], batch, serving)
    with destination(to, record, overwrite=overwrite) as folder, torch.no_grad():
        if form == "stock":
            library.save(model, folder, serving)
            found, expected = (library.logits(each, batch) for each in (library.load(folder, model).eval(), model))
        else:
            write = onnx_file if form == "onnx" else torch_archive
            (found,), expected = write(program, folder, batch), named(**batch)
        if not agree(found, expected, tolerance=1e-4 if form == "onnx" else 1e-5):
            raise UserError(
                f"{library.name if form == 'stock' else form} reads another model from the export than was written: "
                f"its logits differ by {(found - expected).abs().max().item():.1e}. Nothing was exported."
                + (f" {STOCK}" if form != "stock" else "")
            )
        (folder / "README.md").write_text(readme(record, lines), encoding="utf-8")
        serving.write(folder)
    return to


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
