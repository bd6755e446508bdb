"""The contract that every backbone keeps. Letters: K layers read, L layers, N samples, T tokens, D width, C classes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersim.backbones.calls import watched
from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.outputs import LayerFeatures


class Backbone(nn.Module, ABC):
    """A transformer that yields its layers' features and hands over its own head.

    Reading `classifier(final_norm(features))` at the last layer gives exactly the logits of the library's own model.

    A backbone of one's own sets `model`, `num_layers` and `num_classes`, and says with `blocks`, `inputs` and `pool`
    how its blocks are called: `forward`, early exit and export follow from these. One that gives `forward` in their
    place can be trained and measured.
    """

    model: Any
    """The model as its own library has it, an `nn.Module`."""
    num_layers: int
    """L, the number of blocks; embeddings are no layer."""
    num_classes: int
    """C, the classes of the classifier (the vocabulary, for a language model)."""
    input_size: tuple[int, int, int] | None = None
    """Channels, height and width of the images it takes; None where it takes no images."""
    tiny_batch: Mapping[str, Tensor] | None = None
    """A small batch to compare models by, where that is no ramp of an image of `input_size`."""
    fresh_classifier: bool = False
    """Whether the weights that were loaded had no classifier, so that its own says nothing before it is trained."""
    reads_tokens: bool = False
    """Whether every token is a sample, as in a language model, and not every input."""
    norm_before_pooling: bool = False
    """Whether the final norm is part of the features, because the model pools after it and the two do not commute."""
    folded: str | None = None
    """Of a model prepared for the removal of blocks: what was folded into its weights, in words."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The model's norm between the last block and the classifier, (…, D) → (…, D)."""

    @property
    @abstractmethod
    def classifier(self) -> nn.Module:
        """The model's classifier, (…, D) → (…, C)."""

    @property
    def blocks(self) -> Any:
        """The model's list of blocks, an `nn.ModuleList` or `nn.Sequential` inside of `model`, in the order in which
        they are called; a block that is called several times (ALBERT) stands there once, and is several layers."""
        raise self._does_not_say("blocks")

    @property
    def refiner(self) -> nn.Module | None:
        """A module that changes what the block before it put out, and is part of that block."""
        return None

    @property
    def width(self) -> int:
        """D, the width of the features, found by reading a small batch."""
        with evaluating(self), torch.no_grad():
            return int(self.forward(self.small_batch()).values.shape[-1])

    def small_batch(self) -> dict[str, Tensor]:
        """A small batch on the model's device, to compare models by.

        Raises:
            UserError: the backbone has none.
        """
        batch, size = self.tiny_batch, self.input_size
        if batch is None and size is None:
            raise UserError(
                f"{type(self).__name__} has neither an input_size nor a tiny_batch, by which models are compared and "
                "measured: give it either (see layersim.Backbone)."
            )
        if batch is None:
            batch = {"image": torch.linspace(-1, 1, 2 * torch.Size(size or ()).numel()).view(2, *(size or ()))}
        parameter = next(self.parameters())
        return {
            key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
            for key, value in batch.items()
        }

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model's own forward takes of a batch, by keyword; first what it mainly is given, a row a sample."""
        raise self._does_not_say("inputs")

    def pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """A block's output for some of the samples, such as (n, T, D), and their rows of the batch's `attention_mask`,
        None where it has none → features at the token that counts, before the final norm, (n, D)."""
        raise self._does_not_say("pool")

    def run(self, batch: Mapping[str, Any]) -> object:
        """The model's own forward on the batch, through all of its blocks at least."""
        return self.model(**self.inputs(batch))

    def forward(self, batch: Mapping[str, Any], layers: Sequence[int] | None = None) -> LayerFeatures:
        """Block outputs before the final norm at the token that counts.

        Args:
            batch: what the DataModule yields.
            layers: ascending layer numbers 0 … L − 1 to return; all where None.

        Returns:
            (K, N, D) features of those K layers, with the batch's targets and positions.

        Raises:
            UserError: layers that there are not, or not in ascending order.
        """
        self.require_layers(layers)
        read, targets, position = self.counted(batch)
        found = self.read_blocks(batch, read, layers)
        if len(shapes := {tuple(features.shape) for features in found}) > 1 or found[0].ndim != 2:
            raise UserError(
                f"Expected features (N, D) of one width from all blocks, but got {sorted(shapes)}. Change `pool` of "
                f"{type(self).__name__}, or its `blocks`."
            )
        return LayerFeatures(torch.stack(found), targets, position)

    def require_layers(self, layers: Sequence[int] | None) -> None:
        """Refuses layers that are none, or not ascending numbers 0 … L − 1."""
        if layers is not None and ([*layers] != sorted({*layers} & {*range(self.num_layers)}) or not len(layers)):
            raise UserError(f"Expected ascending layers of 0 … {self.num_layers - 1}, but got {[*layers]}.")

    def counted(self, batch: Mapping[str, Any]) -> tuple[Callable[[Tensor], Tensor], Tensor | None, Tensor | None]:
        """What makes of a block's output for this batch the features that count, (N, D), their targets and positions,
        (N,) each, None where the batch tells none."""
        check_mapping(batch)
        mask = batch.get("attention_mask")
        return lambda tokens: self.pool(tokens, mask), batch.get("label"), batch.get("position")

    def read_blocks(
        self, batch: Mapping[str, Any], read: Callable[[Tensor], Tensor], layers: Collection[int] | None = None
    ) -> list[Tensor]:
        """What `read` makes of the block outputs at K `layers`, all where None, while the model's forward runs.

        Raises:
            UserError: another number of blocks ran than there are layers.
        """
        with self.listening(read, layers) as features:
            self.run(batch)
        return features

    @contextmanager
    def listening(
        self, read: Callable[[Tensor], Tensor], layers: Collection[int] | None = None
    ) -> Iterator[list[Tensor]]:
        """As `read_blocks`, of a forward pass that runs in here, whoever calls it; they are there once it has ended.

        Gradient checkpointing recomputes blocks when these hooks are gone, so nothing is read twice.
        """
        features: list[Tensor | None] = []
        found: list[Tensor] = []

        def keep(tokens: Tensor, refines: bool) -> None:
            if refines:
                features.pop()
            features.append(read(tokens) if layers is None or len(features) in layers else None)

        with watched(self.blocks, self.refiner, keep):
            yield found
        if len(features) != self.num_layers:
            raise UserError(
                f"{type(self.model).__name__} ran {len(features)} of its {self.num_layers} blocks (num_layers). Where "
                "it drops blocks in training, a dropped block has no features: turn that off (in config_args, for "
                "transformers)."
            )
        found += [tokens for tokens in features if tokens is not None]

    def recompute(self, blocks: bool | Sequence[int]) -> None:
        """Has blocks run again in a training step's backward, in place of keeping what they computed, to save memory.

        Args:
            blocks: their numbers in `blocks`, from 1; True: all; False: none.

        Raises:
            UserError: a number that no block has.
        """
        every = range(1, len(self.blocks) + 1) if blocks else range(0)
        chosen = every if isinstance(blocks, bool) else blocks
        if wrong := sorted({*chosen} - {*every}):
            raise UserError(
                f"Expected blocks of 1 … {len(every)} to recompute, but got {', '.join(map(str, wrong))}. Change "
                "--model.activation_checkpointing."
            )
        for block in getattr(self, "_recomputing", ()):  # as they were before
            del block.forward
        self._recomputing = [self.blocks[number - 1] for number in chosen]
        for block in self._recomputing:
            block.forward = partial(_recomputed, block, block.forward)

    def _images_of(self, batch: Mapping[str, Any]) -> Tensor:
        """`batch["image"]` (N, channels, height, width), a UserError where there are none of the size that is taken."""
        images: Tensor = taken(batch, "image")
        if tuple(images.shape[1:]) != self.input_size:
            raise UserError(
                f"The model takes images of {self.input_size} (channels, height, width), but the data gives "
                f"{tuple(images.shape[1:])}. Resize in the data's transforms, or set the backbone's img_size and "
                "in_chans, or for transformers the image_size in config_args."
            )
        narrower = images.dtype == torch.float64 and next(self.parameters()).dtype != torch.float64
        if narrower or not images.is_floating_point():
            raise UserError(
                f"The model takes images as floats of its precision, normalised as in training, but the data gives "
                f"{images.dtype}. Change the data's transforms."
            )
        return images

    def _does_not_say(self, what: str) -> UserError:
        return UserError(
            f"{type(self).__name__} does not say how its blocks are called, which early exit, export, sharding and "
            f"activation checkpointing ask for: give it {what} (see layersim.Backbone)."
        )


def taken(batch: Mapping[str, Any], key: str) -> Any:
    """What a batch has by this name, which the model reads; a UserError where it has nothing."""
    check_mapping(batch)
    if key not in batch:
        raise UserError(f"The batch has no {key}, which the model reads; it is {', '.join(batch)}. Change the data.")
    return batch[key]


def check_mapping(batch: Any) -> None:
    """Refuses a batch that has no names."""
    if not isinstance(batch, Mapping):
        raise UserError(f"Expected a batch as a mapping, as the model takes it, but got a {type(batch).__name__}.")


def _recomputed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the block's own forward gives."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
