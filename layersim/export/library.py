"""How a backbone's model is cut, run, saved and loaded: here one of one's own. Letters: N samples, C classes."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.errors import UserError, as_user_error
from layersim.export.serving import Serving


class Library:
    """What the library that a model comes from does with it. Of a model of one's own a cut one is a copy with fewer
    blocks in its list, and a checkpoint is its weights; timm and transformers build and save theirs by themselves."""

    name = "torch"
    """The package that loads an export."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone: Any = backbone

    @property
    def usage(self) -> str:
        """Lines of Python that load an export from the folder they run in, for its README."""
        return (
            "from safetensors.torch import load_model\n\n"
            f"model = {type(self.model).__name__}(...)  # yours, made with as many blocks as this export has\n"
            'load_model(model, "model.safetensors")\n'
        )

    @property
    def model(self) -> nn.Module:
        """The backbone's model, whole."""
        model = getattr(self.backbone, "model", None)
        if not isinstance(model, nn.Module):
            raise UserError(
                f"Expected a backbone with a model to export, but got {type(self.backbone).__name__}: set its model, "
                "and say how its blocks are called (see layersim.Backbone)."
            )
        return model

    @property
    def place(self) -> str:
        """Where in the model its blocks are."""
        blocks = self.backbone.blocks
        found: str | None = next((name for name, module in self.model.named_modules() if module is blocks), None)
        if found is None:
            raise UserError(f"The blocks of {type(self.backbone).__name__} are no list inside of its model.")
        return found

    def untrained(self, kept: Sequence[int], *, tied: bool) -> nn.Module:
        """A model of the same kind with the `kept` layers alone, its weights not yet set.

        Args:
            kept: ascending layer numbers 0 … L − 1.
            tied: whether its classifier may be its embedding, where it was.

        Raises:
            UserError: the library cannot express it.
        """
        model = copy.deepcopy(self.model)
        blocks: Any = model.get_submodule(self.place)
        if len(blocks) != self.backbone.num_layers:
            raise UserError(
                f"{type(model).__name__} calls some of its {len(blocks)} blocks several times, and cannot be cut."
            )
        for layer in reversed(range(len(blocks))):
            if layer not in kept:
                del blocks[layer]
        return model

    def sources(self, kept: Sequence[int]) -> list[int]:
        """For each block of `untrained(kept)`, the number of the block whose weights it takes."""
        return list(kept)

    def output(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """What the model's own forward gives as logits of a batch."""
        output = model(**self.backbone.inputs(batch))
        return output if isinstance(output, Tensor) else output.logits

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """(N, C) logits of the model's own forward, of the samples that layersim reads."""
        return self.output(model, batch)

    def save(self, model: nn.Module, folder: Path, serving: Serving) -> None:
        """Writes a model of `untrained` as the library does, with what of `serving` that has a place for."""
        save_model(model, str(folder / "model.safetensors"))

    def load(self, folder: Path, like: nn.Module) -> nn.Module:
        """Reads back what `save` wrote of a model, as `usage` does."""
        model = copy.deepcopy(like)
        with as_user_error("The export cannot be opened again", "Nothing was exported."):
            load_model(model, folder / "model.safetensors")
        return model
