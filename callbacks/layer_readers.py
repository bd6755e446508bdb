"""What is read of a model's layers while it runs, whoever runs it. Letters: L layers, N samples."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from callbacks.tapped_module import LABELS, Named, ReadModel, TappedModule, as_tensor, of_those_below, read_by_head
from layersim.backbones.base import Backbone
from layersim.backbones.tokens import POSITIONS
from layersim.errors import UserError
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures, LayerOutput
from layersim.tapping.submodules import named_submodules

_BESIDE = {*LABELS, "index", "position"}
"""Entries of a batch that no model is given."""


class OwnReader:
    """What a LayerwiseModule puts out, or a Backbone, through the model's own head; as `TappedModule` reads others."""

    reads_head = True

    def __init__(self, module: Any) -> None:
        self.module = module
        self._hooks = ExitStack()
        self._output: Any = None

    def model(self, layers: int) -> Any:
        return ReadModel(self.module) if isinstance(self.module, Backbone) else self.module

    def open(self, batch: Any) -> None:
        self.close()
        self._hooks.callback(self.module.register_forward_hook(self._keep).remove)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._output = output

    def read(self, batch: Any, below: int | None = None) -> LayerOutput | None:
        self.close()
        found, self._output = self._output, None
        if found is None:
            raise UserError(f"Nothing ran: call the {type(self.module).__name__} itself, on one batch.")
        return found if isinstance(found, LayerOutput) else read_by_head(self.module, found)

    def close(self) -> None:
        self._hooks.close()

    @property
    def positions_each(self) -> int:
        """How many positions a sample of a batch takes: a language model's are tokens."""
        return POSITIONS if self.module.reads_tokens else 1

    def options(self) -> dict[str, Any]:
        return {}


class TransformersReader(OwnReader):
    """The layers of a transformers model, found as `TransformersBackbone` finds them, while its own forward runs.

    Raises:
        UserError: a model that cannot be read so.
    """

    def __init__(self, model: Any) -> None:
        from layersim.backbones.huggingface import TransformersBackbone

        super().__init__(TransformersBackbone.around(model))

    def open(self, batch: Any) -> None:
        """Before the model runs on this batch, in its names or ours; without `attention_mask` every token counts."""
        self.close()
        if not isinstance(batch, Mapping):
            raise UserError(f"Expected batches as mappings, as the model takes them, but got a {type(batch).__name__}.")
        label = as_tensor(next((batch[key] for key in LABELS if key in batch), None))
        is_classes = isinstance(label, Tensor) and not label.is_floating_point()
        told = {**batch, "label": label if is_classes else None}
        if isinstance(tokens := batch.get("input_ids"), Tensor) and batch.get("attention_mask") is None:
            told["attention_mask"] = torch.ones_like(tokens)
        read, *counted = self.module.counted(told)
        self._output = self._hooks.enter_context(self.module.listening(read)), counted

    def read(self, batch: Any, below: int | None = None) -> LayerOutput | None:
        self._hooks.close()  # tells where not all blocks ran
        (values, counted), self._output = self._output, None
        features = of_those_below(LayerFeatures(torch.stack([*values]).detach(), *counted), below, self.positions_each)
        return None if features is None else read_by_head(self.module, features)

    def close(self) -> None:
        self._hooks.pop_all()


def reader_of(model: nn.Module, named: Named | None) -> OwnReader | TappedModule:
    """How the layers of a model are read: by the parts that are named; of ours, and of transformers' own, without."""
    if named is not None:
        return TappedModule(model, named)
    if isinstance(model, LayerwiseModule | Backbone):
        return OwnReader(model)
    base = getattr(model, "get_base_model", None)  # of a model with adapters
    bare: nn.Module = base() if callable(base) else model
    if any(kind.__module__.startswith("transformers.") for kind in type(bare).__mro__):
        try:
            return TransformersReader(bare)
        except UserError as error:
            raise UserError(
                f"The layers of a {type(bare).__name__} and what reads them are not found, as those of classifiers and "
                f"causal language models. Name the layers, to measure their features: {_ways(bare)}."
            ) from error
    raise UserError(f"Name the layers of a {type(model).__name__} that are measured, such as {_ways(model)}.")


def call(model: nn.Module, batch: Any) -> None:
    """Runs a model on a batch as its `forward` takes it: of a mapping the entries that it names, or the only one that
    is no label; of a tuple as many as it wants; anything else as it is.

    Raises:
        UserError: the batch does not fit.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model  # which may wait for the others
    bare = named_submodules(model)[""]
    if isinstance(bare, LayerwiseModule | Backbone):
        model(batch)
        return
    own = inspect.signature(bare.forward).parameters.values()
    free = [each for each in own if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    needed = [each.name for each in free if each.default is each.empty]
    if isinstance(batch, Mapping):
        given = {each.name: batch[each.name] for each in free if each.name in batch and each.name not in _BESIDE}
        others = [key for key in batch if key not in _BESIDE]
        if given and {*needed} <= {*given}:
            model(**given)
        elif len(needed) <= 1 and len(others) == 1:
            model(batch[others[0]])
        else:
            raise UserError(
                f"{type(bare).__name__}.forward takes {', '.join(each.name for each in free)}, but the batch has "
                f"{', '.join(map(str, batch)) or 'nothing'}. Run it yourself: with measures.watching(batch): model(…)."
            )
    elif isinstance(batch, Sequence):
        model(*batch[: max(1, len(needed))])
    else:
        model(batch)


def _ways(model: nn.Module) -> str:
    """The model's lists of modules, as patterns."""
    lists = (nn.ModuleList, nn.Sequential)
    found = [name for name, part in model.named_modules() if name and isinstance(part, lists) and len(part) > 1]
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    names = outer or [name for name, _ in model.named_children()]
    ends = ".*" if found else ""
    return " or ".join(f'layers="{name}{ends}"' for name in names[:3]) or 'layers="…"'
