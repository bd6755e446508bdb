"""The model as a program that needs neither layersim nor its own library: torch.export's archive, and ONNX.

Letters: N samples, T tokens, C classes.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from layersim.backbones.base import Backbone
from layersim.errors import UserError, as_user_error, root_reason
from layersim.export.destination import check_destination, destination
from layersim.export.library import Library
from layersim.export.record import Format, readme, record_of
from layersim.export.truncation import agree, kept_layers, library_of, truncate
from layersim.heads import Head

_STOCK = "Export a stock checkpoint instead (--format stock)."
_USAGE: dict[str, str] = {
    "torch.export": 'import torch\n\nmodel = torch.export.load("model.pt2").module()\nlogits = model(%s)\n',
    "onnx": (
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        "(logits,) = session.run(None, dict(%s))  # NumPy arrays\n"
    ),
}


def export_program(
    backbone: Backbone, head: Head, layers: int | Sequence[int], to: str | Path, *, overwrite: bool = False
) -> Path:
    """Writes the truncated model as `model.pt2`, which `torch.export.load` opens, into the folder `to`, on the CPU.

    Inputs are `image` (N, channels, height, width), or `input_ids` and `attention_mask` (N, T) and, where the model
    tells texts of a pair apart, `token_type_ids`; the output is what the stock model calls logits. N and T may be any,
    T up to the model's positions. The archive is loaded and compared, on another N and T than it was traced on, before
    it gets its name. Arguments and result as of `export_stock`.

    Raises:
        UserError: as `truncate` and `check_destination`; a model that torch.export cannot follow.
    """
    return _export(backbone, head, layers, Path(to), "torch.export", overwrite)


def export_onnx(
    backbone: Backbone, head: Head, layers: int | Sequence[int], to: str | Path, *, overwrite: bool = False
) -> Path:
    """Writes the truncated model as `model.onnx`; else as `export_program`, and compared in onnxruntime.

    Raises:
        UserError: as `export_program`; the extra `onnx` is not installed; weights of bfloat16, which NumPy, and with it
            onnxruntime, does not know.
    """
    if absent := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise UserError(f"Writing ONNX needs {', '.join(absent)}, not installed here: pip install 'layersim[onnx]'.")
    if any(parameter.dtype == torch.bfloat16 for parameter in backbone.parameters()):
        raise UserError(
            "onnxruntime takes and gives no bfloat16, which this model has. Set the backbone's dtype to float32, or "
            "export another format."
        )
    return _export(backbone, head, layers, Path(to), "onnx", overwrite)


class _Logits(nn.Module):
    """Only the logits, from inputs of the names that layersim's data give them, whatever the library calls them."""

    def __init__(self, model: nn.Module, library: Library) -> None:
        super().__init__()
        self.model = model
        self.library = library


class _ImageLogits(_Logits):
    def forward(self, image: Tensor) -> Tensor:
        return self.library.output(self.model, {"image": image})


class _TextLogits(_Logits):
    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.library.output(self.model, {"input_ids": input_ids, "attention_mask": attention_mask, **types})


def _export(
    backbone: Backbone, head: Head, layers: int | Sequence[int], to: Path, form: Format, overwrite: bool
) -> Path:
    check_destination(to, overwrite)
    model = truncate(backbone, head, layers).cpu()
    program = _traced(model, backbone)
    record = record_of(backbone, head, kept_layers(layers, backbone.num_layers), form)
    inputs = _example(backbone, times=3)
    with destination(to, record, overwrite=overwrite) as folder, torch.no_grad():
        run = _torch_archive if form == "torch.export" else _onnx_file
        found, expected = run(program, folder, inputs), program.module()(**inputs)
        stock = _logits(model, backbone)(**inputs)
        if not (agree(expected, stock, tolerance=1e-5) and agree(found, stock, tolerance=1e-4)):
            raise UserError(
                f"The {form} program differs from the model by {(found - stock).abs().max().item():.1e} in its logits. "
                "Nothing was exported; a stock checkpoint can be."
            )
        named = ", ".join(f"{name}={name}" for name in inputs)
        (folder / "README.md").write_text(readme(record, _USAGE[form] % named))
    return to


def _traced(model: nn.Module, backbone: Backbone) -> ExportedProgram:
    """The model as torch.export's program, the batch and the length of texts left open."""
    inputs = _example(backbone, times=2)
    batch, tokens = Dim("batch"), Dim("tokens", max=getattr(backbone, "max_positions", None))
    open_axes = {0: batch} if backbone.input_size else {0: batch, 1: tokens}
    with as_user_error(f"torch.export cannot follow {type(model).__name__}", _STOCK, why=_why), torch.no_grad():
        return torch.export.export(
            _logits(model, backbone), (), inputs, dynamic_shapes=dict.fromkeys(inputs, open_axes)
        )


def _logits(model: nn.Module, backbone: Backbone) -> nn.Module:
    kind = _ImageLogits if backbone.input_size else _TextLogits
    return kind(model, library_of(backbone)).eval()


def _example(backbone: Backbone, times: int) -> dict[str, Tensor]:
    """The library's small batch so many times over: more samples, and longer texts."""
    small = library_of(backbone).small_batch()
    if not backbone.input_size and _tells_pairs_apart(backbone):
        small["token_type_ids"] = torch.zeros_like(small["input_ids"])
        small["token_type_ids"][:, 2:] = 1
    grown = {name: torch.cat([tensor.cpu()] * times) for name, tensor in small.items()}
    return grown if backbone.input_size else {name: torch.cat([rows] * times, dim=1) for name, rows in grown.items()}


def _tells_pairs_apart(backbone: Any) -> bool:
    config = getattr(backbone.model, "config", None)
    return (getattr(config, "type_vocab_size", 0) or 0) > 1


def _why(error: BaseException) -> str:
    return shorten(root_reason(error), 400, placeholder=" …")


def _torch_archive(program: ExportedProgram, folder: Path, inputs: dict[str, Tensor]) -> Tensor:
    with as_user_error("torch cannot write the program and open it again", _STOCK, why=_why):
        torch.export.save(program, folder / "model.pt2")
        logits: Tensor = torch.export.load(folder / "model.pt2").module()(**inputs)
    return logits


def _onnx_file(program: ExportedProgram, folder: Path, inputs: dict[str, Tensor]) -> Tensor:
    with as_user_error("The model cannot be written as ONNX", _STOCK, why=_why):
        written = torch.onnx.export(program, dynamo=True, verbose=False)
        assert written is not None
        written.save(folder / "model.onnx")
    with as_user_error("onnxruntime cannot run the model", _STOCK, why=_why):
        session = import_module("onnxruntime").InferenceSession(folder / "model.onnx")
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(logits)
