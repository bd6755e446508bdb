"""A program that computes no layer after the one at which the last sample of its batch left: ONNX with an `If` behind
each layer. Letters: L layers, N samples, C classes."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.exits.given import as_names
from layersim.exits.policies import Seen
from layersim.exits.runner import EarlyExit
from layersim.export.destination import check_destination, destination
from layersim.export.exporting import readme, record_of
from layersim.export.programs import Named, check_onnx, example, onnx_file, traced, usage
from layersim.export.serving import NOTHING, Serving
from layersim.export.truncation import agree
from layersim.precision import widened

OUTPUTS = ("logits", "exit_layers")
_USAGE = """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
# NumPy arrays; layers count from 1, and the batch goes on to the layer at which its last sample leaves
logits, exit_layers = session.run(None, dict(%s))
classes = logits.argmax(axis=1)
"""


def export_leaving(
    early_exit: EarlyExit, to: str | Path, *, serving: Serving = NOTHING, overwrite: bool = False
) -> Path:
    """Writes a model with its exits as `model.onnx` into the folder `to`, for onnxruntime on the CPU.

    Inputs are those of `export_as`; outputs `logits` (N, C) at the layers where samples left, after their
    temperature, and `exit_layers` (N,) from 1. All of the batch goes through a layer as long as one sample stays. It is
    compared with the model on a small batch before it gets its name: logits where both left at the same layer.

    Raises:
        UserError: as `export_as`.
    """
    backbone = early_exit.backbone
    check_onnx(backbone)
    serving = replace(serving, class_names=as_names(serving.class_names, backbone.num_classes))
    to = check_destination(to, overwrite)
    leaving = Leaving(early_exit).cpu()
    program = traced(Named(leaving, lambda module, batch: module(batch)), backbone, backbone.model)
    record = record_of(backbone, early_exit.head, range(backbone.num_layers), "onnx")
    record |= serving.entries | {"exits": {"policy": early_exit.policy.name, "threshold": early_exit.threshold}}
    inputs = example(backbone, times=3)
    with destination(to, record, overwrite=overwrite) as folder, torch.no_grad():
        logits, layers = onnx_file(program, folder, inputs, lambda graph: nested(graph, backbone.num_layers))
        *_, expected, where, _ = leaving(inputs)
        same = layers == where
        if not (same.any() and agree(logits[same], expected[same], tolerance=1e-4)):
            raise UserError("The ONNX file does not leave as the model does. Nothing was exported.")
        (folder / "README.md").write_text(readme(record, usage(_USAGE, inputs, serving)), encoding="utf-8")
        serving.write(folder)
    return to


class Leaving(nn.Module):
    """All layers, read one after the other: what each sample was told until then, where it left, and whether all have.

    Gives 3 L tensors, three for each layer: (N, C) logits after the layer's temperature, those of the layer where a
    sample left once it has; (N,) that layer, counted from 1; and () whether every sample has left. The last layer's are
    what `EarlyExit` gives.
    """

    def __init__(self, early_exit: EarlyExit) -> None:
        super().__init__()
        if early_exit.autocast is not None:
            raise UserError(
                f"The threshold is of scores under autocast to {early_exit.autocast}, which a file in float32 has not. "
                "Choose it by `layersim exits --trainer.precision=32-true`."
            )
        self.backbone: Backbone
        self.backbone, self.head = copy.deepcopy((early_exit.backbone, early_exit.head))
        self.policy = early_exit.policy
        self.threshold = torch.inf if early_exit.threshold is None else early_exit.threshold
        given = early_exit.temperatures
        self.temperatures = [1.0] * self.backbone.num_layers if given is None else given.tolist()
        self.eval()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        mask = batch.get("attention_mask")
        features = self.backbone.read_blocks(batch, lambda tokens: self.backbone.pool(tokens, mask))
        said: list[Tensor] = []
        seen, left = Seen(), None
        for layer, (values, temperature) in enumerate(zip(features, self.temperatures, strict=True)):
            logits = widened(self.head.logits(values[None], [layer])[0]) / temperature
            score = self.policy.score(seen.view(logits, values, self.policy.reads))
            leaves = score >= self.threshold
            number = torch.full_like(leaves, layer + 1, dtype=torch.int64)
            if left is not None:  # the first layer to leave at counts
                logits = torch.where(left.unsqueeze(-1), said[-3], logits)
                number, leaves = torch.where(left, said[-2], number), left | leaves
            said += [logits, number, leaves.all()]
            left = leaves
        return tuple(said)


def nested(flat: Any, layers: int) -> None:
    """Makes of the graph of `Leaving` (an `onnx_ir.Graph`), which computes all layers, one that stops: what only later
    layers need goes into the `else` of an `If` behind each layer, and the outputs are those of `OUTPUTS`."""
    import onnx_ir as ir

    said = list(flat.outputs)
    order = list(flat)
    stages: list[list[Any]] = []
    placed: set[Any] = set()
    for layer in range(layers):
        needed = _needed(said[3 * layer : 3 * layer + 3], placed)
        stages.append([node for node in order if node in needed])
        placed |= needed
    flat.remove([node for node in order if node not in placed], safe=False)
    for stage in stages[1:]:
        flat.remove(stage)

    def told(layer: int) -> tuple[list[Any], list[Any]]:
        """Nodes that pass on what a layer has told, and their outputs."""
        values = said[3 * layer : 3 * layer + 2]
        nodes = [ir.node("Identity", [value]) for value in values]
        for node, value, name in zip(nodes, values, OUTPUTS, strict=True):
            node.outputs[0].name = f"{name}_{layer + 1}"
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        return nodes, [node.outputs[0] for node in nodes]

    def own(nodes: list[Any]) -> list[Any]:
        """Weights that these nodes alone read: onnxruntime prepares those beforehand that stand where they are read."""
        inside = {*nodes}
        found = [value for node in nodes for value in node.inputs if value is not None and value.is_initializer()]
        return [
            flat.initializers.pop(value.name)
            for value in dict.fromkeys(found)
            if value.graph is flat and inside.issuperset(value.consumers())
        ]

    nodes, outputs = told(layers - 1)
    nodes = stages[-1] + nodes if layers > 1 else nodes
    for layer in reversed(range(layers - 1)):
        branches = {"then_branch": told(layer), "else_branch": (nodes, outputs)}
        graphs = {
            name: ir.Graph([], made, nodes=inner, initializers=own(inner), name=f"{name}_{layer + 1}")
            for name, (inner, made) in branches.items()
        }
        choice = ir.node("If", [said[3 * layer + 2]], attributes=graphs, num_outputs=2)
        for value, like, name in zip(choice.outputs, outputs, OUTPUTS, strict=True):
            value.name, value.type, value.shape = f"{name}_from_{layer + 1}", like.type, like.shape
        nodes = [*(stages[layer] if layer else []), choice]
        outputs = list(choice.outputs)
    flat.extend(nodes)
    flat.outputs[:] = outputs
    for value, name in zip(outputs, OUTPUTS, strict=True):
        value.name = name


def _needed(values: Iterable[Any], placed: set[Any]) -> set[Any]:
    """The nodes that these values are computed by, without those that have a place already."""
    needed: set[Any] = set()
    waiting = [value.producer() for value in values]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in placed and node not in needed:
            needed.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    return needed
