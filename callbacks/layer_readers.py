"""What is read of a model's layers while it runs, whoever runs it. Letters: L layers, N samples."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from callbacks.tapped_module import LABELS, Named, ReadModel, TappedModule, as_tensor, of_those_below, read_by_head
from layersim.backbones.base import Backbone, check_mapping
from layersim.backbones.tokens import POSITIONS
from layersim.errors import UserError
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures, LayerOutput
from layersim.tapping.feature_tap import run_eagerly
from layersim.tapping.submodules import named_submodules

_BESIDE = {*LABELS, "index", "position"}
"""Entries of a batch that a model is given only where its forward names them."""


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
        self._output = None  # of a pass that failed
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
        """Before the model runs on this batch, in its names or ours; without `attention_mask` every token counts.

        Raises:
            UserError: no mapping; padding where this model looks.
        """
        self.close()
        check_mapping(batch)
        label = as_tensor(next((batch[key] for key in LABELS if key in batch), None))
        is_classes = isinstance(label, Tensor) and not label.is_floating_point()
        told = {**batch, "label": label if is_classes else None}
        if isinstance(tokens := batch.get("input_ids"), Tensor) and batch.get("attention_mask") is None:
            told["attention_mask"] = torch.ones_like(tokens)
        mask = told.get("attention_mask")
        if self.module.reads_end and mask is not None and not mask[:, -1].all():
            raise UserError(f"{self.module.name} looks at the last place, padding or not: pad on the left.")
        read, *counted = self.module.counted(told)
        self._hooks.callback(run_eagerly())
        self._output = self._hooks.enter_context(self.module.listening(read)), counted

    def read(self, batch: Any, below: int | None = None) -> LayerOutput | None:
        self._hooks.close()  # tells where not all blocks ran
        (values, counted), self._output = self._output, None
        features = of_those_below(LayerFeatures(torch.stack([*values]).detach(), *counted), below, self.positions_each)
        return None if features is None else read_by_head(self.module, features)

    def close(self) -> None:
        with suppress(UserError):  # of what did not run to its end, as it failed
            self._hooks.close()


def reader_of(model: nn.Module, named: Named | None) -> OwnReader | TappedModule:
    """How the layers of a model are read: by the parts that are named; of ours, and of transformers' own, without."""
    if named is not None:
        return TappedModule(model, named)
    if isinstance(model, LayerwiseModule | Backbone):
        return OwnReader(model)
    base = getattr(model, "get_base_model", None)  # of a model with adapters
    bare: nn.Module = base() if callable(base) else model
    if any(kind.__module__.startswith("transformers.") for kind in type(bare).__mro__):
        if any(part.is_meta for part in bare.parameters()):
            raise UserError(f"The {type(bare).__name__} has no weights yet (device meta). Load them first.")
        try:
            return TransformersReader(bare)
        except UserError as error:
            raise UserError(
                f"The layers of a {type(bare).__name__} and what reads them are not found, as those of classifiers and "
                f"causal language models. Name the layers, to measure their features: {_ways(bare)}."
            ) from error
    raise UserError(f"Name the layers of a {type(model).__name__} that are measured, such as {_ways(model)}.")


def call(model: nn.Module, batch: Any, named: Named | None = None) -> Any:
    """What a model gives of a batch, run as its `forward` takes it: of a mapping the entries that it names, or the only
    one that is no label; of a tuple those before the label, where its place is known, or else as many as it needs;
    anything else as it is.

    Raises:
        UserError: the batch does not fit, or a tuple may hold more of what the model takes than it needs.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model  # which may wait for the others
    bare = named_submodules(model)[""]
    if isinstance(bare, LayerwiseModule | Backbone):
        return model(batch)
    own = inspect.signature(bare.forward).parameters.values()
    free = [each.name for each in own if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    needed = {each.name for each in own if each.name in free and each.default is each.empty}
    label = None if named is None else named.label
    if isinstance(batch, Mapping):
        config, generates = getattr(bare, "config", None), getattr(bare, "can_generate", lambda: True)
        wanted = {*needed, "labels"} if getattr(config, "is_encoder_decoder", False) and generates() else needed
        # else labels give but a loss
        asked = [name for name in free if name in wanted or name not in ("label", "labels")]
        given = {name: batch[name] for name in asked if name in batch}
        others = [key for key in batch if key not in {*_BESIDE, label}]
        if needed <= {*given} and (needed or {*given} - _BESIDE):
            return model(**given)
        if len(needed) <= 1 and len(others) == 1:
            return model(batch[others[0]])
        has = ", ".join(map(str, batch)) or "nothing"
    elif isinstance(batch, Sequence):
        most = None if any(each.kind is each.VAR_POSITIONAL for each in own) else len(free)
        least = max(len(needed), most is not None)  # a model takes something
        inputs, certain = batch[: max(least, 1)], len(batch) <= least + 1 or least == most
        if most is None and label is None and named is not None and named.head and len(batch) == 2:
            label = 1
        if isinstance(label, int) and len(before := (batch[:label] or batch[label + 1 :])[:most]) >= least:
            inputs, certain = before, True
        if certain and len(inputs) >= least:
            return model(*inputs)
        has = f"{len(batch)} entries without names: give a mapping, or its label's place, such as label=1"
    else:
        return model(batch)
    raise UserError(
        f"{type(bare).__name__}.forward takes {', '.join(each.name for each in own)}, but the batch has {has}. Run it "
        "yourself: with measures.watching(batch): model(…)."
    )


def _ways(model: nn.Module) -> str:
    """The model's lists of modules, as patterns."""
    lists = (nn.ModuleList, nn.Sequential)
    found = [name for name, part in model.named_modules() if name and isinstance(part, lists) and len(part) > 1]
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    names = outer or [name for name, _ in model.named_children()]
    ends = ".*" if found else ""
    return " or ".join(f'layers="{name}{ends}"' for name in names[:3]) or 'layers="…"'
