"""The stock checkpoint: a folder that the model's own library loads, without layersim."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.export.destination import RECORD_FILE, check_destination, destination
from layersim.export.record import readme, record_of
from layersim.export.serving import NOTHING, Serving
from layersim.export.truncation import agree, kept_layers, library_of, truncate
from layersim.heads import Head


def export_stock(
    backbone: Backbone,
    head: Head,
    layers: int | Sequence[int],
    to: str | Path,
    *,
    serving: Serving = NOTHING,
    overwrite: bool = False,
) -> Path:
    """Writes the model with its first `layers` blocks, or the blocks listed, as a stock checkpoint.

    For timm: `model.safetensors`, and `config.json` with the arguments that rebuild the model, its input size, mean,
    std and class names. For transformers: a folder for `from_pretrained`, with the tokenizer or image processor where
    the model came with one. For a model of one's own: its weights, for a model made with as many blocks. All with a
    README of the lines that load it, and `layersim.json`. It is loaded again and compared before it gets its name.

    Args:
        layers: as in `truncate`; L for the whole model.
        to: the folder to make.
        serving: what goes along with it.
        overwrite: replace an export that stands at `to`.

    Returns:
        The folder.

    Raises:
        UserError: as `truncate` and `check_destination`; names of another number than the classes; an export that does
            not load or does not give the same logits.
    """
    to = Path(to)
    check_destination(to, overwrite)
    serving.check(backbone.num_classes)
    library = library_of(backbone)
    model = truncate(backbone, head, layers)
    record = record_of(backbone, head, kept_layers(layers, backbone.num_layers), "stock")
    record |= serving.entries
    with destination(to, record, overwrite=overwrite) as folder:
        library.save(model, folder, serving)
        (folder / "README.md").write_text(readme(record, library.usage))
        batch = backbone.small_batch()
        with torch.no_grad():
            found, expected = library.logits(library.load(folder, model).eval(), batch), library.logits(model, batch)
        if not agree(found, expected):
            raise UserError(
                f"{library.name} reads another model from the export than was written: its logits differ by "
                f"{(found - expected).abs().max().item():.1e}. Nothing was exported."
            )
        (folder / RECORD_FILE).write_text(json.dumps(record))  # what follows reads the export as a whole
        serving.write(folder)
    return to
