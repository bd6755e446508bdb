"""A model's weights, moved into one with fewer blocks. Letters: L layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layersim.backbones.base import Backbone
from layersim.backbones.lora import merged_weights
from layersim.errors import UserError
from layersim.heads import Head, SeparateHeads


def weights_read_at(layer: int, backbone: Backbone, head: Head, model: nn.Module) -> dict[str, Tensor]:
    """The backbone's model's weights, adapters added to theirs, with the classifier that reads `layer` in the place of
    the model's own."""
    weights = {name: value.detach() for name, value in merged_weights(model).items()}
    if isinstance(head, SeparateHeads):
        # of tied weights the last name is the classifier's: a head is defined after what it stands on
        names = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}
        read = dict(head.classifiers[layer].named_parameters())
        for name, value in backbone.classifier.named_parameters():
            weights[names[id(value)]] = read[name].detach()
    return weights


def move_weights(
    weights: dict[str, Tensor], model: nn.Module, blocks: str, sources: Sequence[int], kept: Sequence[int], layers: int
) -> None:
    """Sets all of `model` from the `weights` of a whole model with L `layers`.

    Args:
        weights: by their names in the whole model.
        model: has blocks for the `kept` layers alone.
        blocks: where both models keep their blocks.
        sources: for each of the model's blocks, the number of the whole model's block that it is.
        kept: ascending layer numbers; of a weight with an entry for each layer these entries are taken.

    Raises:
        UserError: the models' weights differ in more than the number of blocks.
    """
    moved = {}
    for name, own in model.state_dict().items():
        number, _, rest = name.removeprefix(f"{blocks}.").partition(".")
        source = f"{blocks}.{sources[int(number)]}.{rest}" if name.startswith(f"{blocks}.") else name
        if source not in weights:
            raise UserError(f"The model with {len(kept)} layers has a weight {name} that the whole model lacks.")
        moved[name] = _of_layers(weights[source], own.shape, kept, layers, name)
    model.load_state_dict(moved)


def _of_layers(weight: Tensor, shape: torch.Size, kept: Sequence[int], layers: int, name: str) -> Tensor:
    if weight.shape == shape:
        return weight
    differ = [axis for axis, (there, here) in enumerate(zip(weight.shape, shape, strict=False)) if there != here]
    if (
        weight.ndim != len(shape)
        or len(differ) != 1
        or (weight.shape[differ[0]], shape[differ[0]]) != (layers, len(kept))
    ):
        raise UserError(
            f"{name} is {tuple(weight.shape)} in the whole model and {tuple(shape)} in one with {len(kept)} layers: "
            "layersim does not know which entries are which layer's."
        )
    return weight.index_select(differ[0], torch.tensor(list(kept), device=weight.device))
