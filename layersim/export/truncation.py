"""A model of its own library alone, cut to some of its layers. Letters: L layers, N samples, C classes."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layersim.backbones import TimmBackbone, TransformersBackbone
from layersim.backbones.base import Backbone
from layersim.backbones.calls import first_tensor, hooked
from layersim.backbones.lora import merged_weights
from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.export.library import Library
from layersim.export.timm_library import TimmLibrary
from layersim.export.transformers_library import TransformersLibrary
from layersim.heads import Head


def truncate(backbone: Backbone, head: Head, layers: int | Sequence[int], *, stock: bool = True) -> nn.Module:
    """A model with the first `layers` blocks, or with the blocks listed: of the class of the backbone's own.

    Its logits are the readout at its last layer: a shared head is the model's own, of separate heads the one that reads
    that layer takes the place of the model's. Weights are copies; the model is in evaluation mode, on the backbone's
    device. Before it is handed over, it is compared on a small batch with the whole model while that skips the other
    blocks.

    Args:
        backbone: timm's, transformers', or one of one's own that says how its blocks are called.
        head: of that backbone, one that tells `parts_at` a layer.
        layers: how many, 1 … L; or ascending layer numbers from 0.
        stock: whether the library must be able to build it. Where not, what the head reads with in the place of the
            model's norm (raw features, a lens's map) takes that place.

    Raises:
        UserError: `layers` outside their range; a head that at the last layer that is kept reads what no stock model
            reads; a family that the library cannot build with these layers.
    """
    kept = kept_layers(layers, backbone.num_layers)
    library = library_of(backbone)
    whole = library.model
    norm, classifier = head.parts_at(kept[-1])
    if stock and norm is not head.final_norm:
        raise UserError(
            f"{type(head).__name__} reads layer {kept[-1] + 1} raw or through a map, which no stock model does. Export "
            f"a program (--format torch or onnx) or, where it reads the last layer as the model does, all "
            f"{backbone.num_layers} layers."
        )
    fits = [*dict(classifier.named_parameters())] == [*dict(backbone.classifier.named_parameters())]
    replaced = _replaced(whole, backbone.classifier, classifier) if fits or stock else {}
    model = library.untrained(kept, tied=not replaced)
    weights = {name: value.detach() for name, value in merged_weights(whole).items()} | replaced
    _move_weights(weights, model, library.place, library.sources(kept), kept, backbone.num_layers)
    other = [(head.final_norm, norm)] * (norm is not head.final_norm)
    for own, read in other + [(backbone.classifier, classifier)] * (not fits and not stock):
        _place(model, next((name for name, part in whole.named_modules() if part is own), None), read)
    model.eval()
    batch = backbone.small_batch()
    with torch.no_grad():
        found, expected = library.logits(model, batch), readout_without(backbone, head, kept, batch)
    if not agree(found, expected):
        raise UserError(
            f"A {type(model).__name__} with the layers {', '.join(str(layer + 1) for layer in kept)} does not give the "
            "readout at its last layer: something in the model depends on a block's place, or the backbone's pool "
            "reads other tokens, which the library cannot express. Keep the first layers only, or choose another model."
        )
    return model


def kept_layers(layers: int | Sequence[int], num_layers: int) -> list[int]:
    """The layer numbers 0 … L − 1 that are kept: the first so many, or those that are listed.

    Raises:
        UserError: a count outside 1 … L; what is no list of ascending numbers 0 … L − 1, or lacks layer 0. The first
            block is always kept: families tie to it what the others do not have (DeBERTa's convolution, ModernBERT's
            missing norm), and no layer features are known before it.
    """
    kept = np.asarray(
        [*layers] if isinstance(layers, Set) else layers
    ).tolist()  # also of NumPy's numbers, arrays and tensors
    if isinstance(kept, int):
        if not 1 <= kept <= num_layers:
            raise UserError(f"Expected 1 … {num_layers} layers to keep, but got {kept}. Change --layers.")
        return list(range(kept))
    own = [layer for layer in range(num_layers) if isinstance(kept, list) and layer in kept]
    if own != kept or own[:1] != [0]:
        raise UserError(
            f"Expected ascending layer numbers from 0 to at most {num_layers - 1}, the first being 0, but got {kept}."
        )
    return own


def library_of(backbone: Backbone) -> Library:
    """How this backbone's model is cut, run, saved and loaded."""
    if isinstance(backbone, TimmBackbone):
        return TimmLibrary(backbone)
    return TransformersLibrary(backbone) if isinstance(backbone, TransformersBackbone) else Library(backbone)


def readout_without(backbone: Backbone, head: Head, kept: Sequence[int], batch: Mapping[str, Any]) -> Tensor:
    """(N, C) logits at the last of the `kept` layers, while the whole model skips the layers that are not kept."""
    left_out = set(range(backbone.num_layers)) - set(kept)
    with evaluating(backbone, head), torch.no_grad(), skipping(backbone.blocks, left_out, backbone.num_layers):
        features = backbone.forward(batch)  # not called, since what `compile` has made of it may not see the hooks
        return head.logits(features.values[-1:], [kept[-1]])[0]


@contextmanager
def skipping(blocks: nn.ModuleList, layers: Collection[int], num_layers: int) -> Iterator[None]:
    """While in here, the blocks at `layers` hand on what they were given.

    Blocks are counted as they are called, since shared ones (ALBERT) are several layers each.
    """
    calls = 0

    def hand_on(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        nonlocal calls
        layer, calls = calls % num_layers, calls + 1
        if layer not in layers:
            return None
        given = first_tensor([*args, *keywords.values()])
        return given if isinstance(output, Tensor) else (given, *output[1:])

    with hooked(blocks, after=hand_on):
        yield


def agree(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether logits differ by at most `tolerance`, and where some exceed 1, by that share of the largest.

    Where one is of half precision the tolerance is 2e-2, whatever is given.
    """
    if found.shape != expected.shape:
        return False
    tolerance = 2e-2 if {found.dtype, expected.dtype} & {torch.bfloat16, torch.float16} else tolerance
    return bool((found - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item()))


def _replaced(model: nn.Module, own: nn.Module, read: nn.Module) -> dict[str, Tensor]:
    """By their names in the model, the weights of the classifier that reads in the place of the model's own, where it
    is another one."""
    # of tied weights the last name is the classifier's: a head is defined after what it stands on
    names = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}
    ours, theirs = dict(own.named_parameters()), dict(read.named_parameters())
    if all(theirs.get(name) is value for name, value in ours.items()):
        return {}
    if absent := ours.keys() ^ theirs.keys():
        raise UserError(
            f"The classifier of a {type(model).__name__} has {', '.join(ours)}, in whose place the head's, of "
            f"{', '.join(theirs)}, cannot stand ({', '.join(sorted(absent))}). Export all layers of a TunedLens, or a "
            "run with SeparateHeads."
        )
    return {names[id(value)]: theirs[name].detach() for name, value in ours.items()}


def _place(model: nn.Module, name: str | None, part: nn.Module) -> None:
    """Puts a copy of what a head reads with in the place of a part of the model's own, its norm or its classifier."""
    if name is None:
        raise UserError(
            f"The final norm or the classifier of {type(model).__name__} is no single part, so that nothing can take "
            "its place. Export all layers, or another head."
        )
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, copy.deepcopy(part))


def _move_weights(
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
    sizes = enumerate(zip(weight.shape, shape, strict=False))
    differ = {axis: (there, here) for axis, (there, here) in sizes if there != here}
    if weight.ndim != len(shape) or [*differ.values()] != [(layers, len(kept))]:
        raise UserError(
            f"{name} is {tuple(weight.shape)} in the whole model and {tuple(shape)} in one with {len(kept)} layers: "
            "layersim does not know which entries are which layer's."
        )
    (axis,) = differ
    return weight.index_select(axis, torch.tensor(list(kept), device=weight.device))
