"""The model as a program that needs neither layersim nor its own library: torch.export's archive, and ONNX.

Letters: N samples, T tokens, C classes.
"""

import gc
from collections.abc import Callable, Iterable
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
from layersim.export.serving import Serving

STOCK = "Export a stock checkpoint instead (--format stock)."
USAGE: dict[str, str] = {
    "torch": 'import torch\n\nmodel = torch.export.load("model.pt2").module()\nlogits = model(%s)\n',
    "onnx": (
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        "(logits,) = session.run(None, dict(%s))  # NumPy arrays\n"
    ),
}


def check_onnx(backbone: Backbone) -> None:
    """Refuses, with a UserError, what cannot be written as ONNX here; nothing is built for that."""
    if absent := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise UserError(f"Writing ONNX needs {', '.join(absent)}, not installed here: pip install 'layersim[onnx]'.")
    if any(parameter.dtype == torch.bfloat16 for parameter in backbone.parameters()):
        raise UserError(
            "onnxruntime takes and gives no bfloat16, which this model has. Set the backbone's dtype to float32, or "
            "export another format."
        )


class Named(nn.Module):
    """A module whose inputs have the names that layersim's data give them, whatever the library calls them.

    Args:
        module: what is run.
        read: what is wanted of it and a batch, a tensor or a tuple of them.
    """

    def __init__(self, module: nn.Module, read: Callable[[Any, dict[str, Tensor]], Any]) -> None:
        super().__init__()
        self.module, self.read = module, read
        self.eval()

    def forward(
        self,
        image: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Any:
        of_texts = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        given = {"image": image, **of_texts}
        return self.read(self.module, {name: tensor for name, tensor in given.items() if tensor is not None})


def usage(run: str, inputs: Iterable[str], serving: Serving) -> str:
    """The lines that make the inputs, where they are known, `run` with them as keywords, and the classes' names."""
    run %= ", ".join(f"{name}={name}" for name in inputs)
    if "onnxruntime" not in run:
        return run
    named = (
        'import json\nnames = json.load(open("layersim.json"))["classes"]\n'
        "print([names[each] for each in logits.argmax(axis=1)])\n"
    )
    lines = (serving.usage(inputs) + run + (named if serving.class_names else "")).splitlines()
    imports = sorted((line for line in lines if line.startswith(("import ", "from "))), key=lambda line: line[0] == "f")
    return "\n".join([*imports, "", *(line for line in lines if line and line not in imports), ""])


def traced(module: Named, backbone: Backbone, model: nn.Module) -> ExportedProgram:
    """The module, which runs the model, as torch.export's program, the batch and the length of texts left open."""
    inputs = example(backbone, times=2)
    batch, tokens = Dim("batch"), Dim("tokens", max=getattr(backbone, "max_positions", None))
    open_axes = {0: batch} if backbone.input_size else {0: batch, 1: tokens}
    with as_user_error(f"torch.export cannot follow {type(model).__name__}", STOCK, why=_why), torch.no_grad():
        program = torch.export.export(module, (), inputs, dynamic_shapes=dict.fromkeys(inputs, open_axes))
    gc.collect()  # torch's tracer leaves subclasses of the same names, and recipes name classes
    return program


def example(backbone: Backbone, times: int) -> dict[str, Tensor]:
    """The library's small batch so many times over: more samples, and longer texts."""
    small = backbone.small_batch()
    config = getattr(getattr(backbone, "model", None), "config", None)
    if not backbone.input_size and (getattr(config, "type_vocab_size", 0) or 0) > 1:
        small["token_type_ids"] = torch.zeros_like(small["input_ids"])
        small["token_type_ids"][:, 2:] = 1
    grown = {name: torch.cat([tensor.cpu()] * times) for name, tensor in small.items()}
    return grown if backbone.input_size else {name: torch.cat([rows] * times, dim=1) for name, rows in grown.items()}


def _why(error: BaseException) -> str:
    return shorten(root_reason(error), 400, placeholder=" …")


def torch_archive(program: ExportedProgram, folder: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Writes `model.pt2`, and gives what torch makes of the inputs with it."""
    with as_user_error("torch cannot write the program and open it again", STOCK, why=_why):
        torch.export.save(program, folder / "model.pt2")
        return [torch.export.load(folder / "model.pt2").module()(**inputs)]


def onnx_file(
    program: ExportedProgram,
    folder: Path,
    inputs: dict[str, Tensor],
    change: Callable[[Any], None] = lambda graph: None,
) -> list[Tensor]:
    """Writes `model.onnx`, once `change` has had its graph (`onnx_ir.Graph`), and gives what onnxruntime makes of the
    inputs with it."""
    with as_user_error("The model cannot be written as ONNX", STOCK, why=_why):
        written = torch.onnx.export(program, dynamo=True, verbose=False)
        assert written is not None
        change(written.model.graph)
        written.save(folder / "model.onnx")
    with as_user_error("onnxruntime cannot run the model", STOCK, why=_why):
        session = import_module("onnxruntime").InferenceSession(folder / "model.onnx")
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return [torch.from_numpy(each) for each in found]
