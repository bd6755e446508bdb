"""Runs a model on a batch that shrinks: samples are taken out between two blocks, and later blocks never see them.

The model's own forward keeps running, so that there is one way for every family. Hooks read what a block put out, ask
who stays, and cut what the next block is given: its hidden states, and whatever masks, positions and rotary angles
have a row for each sample. Letters: L layers, N samples of the batch, n of them that remain, T tokens, D width.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from layersim.backbones.base import Backbone
from layersim.backbones.block_arguments import Axes, Place, given_shapes, grown_axes, mapped
from layersim.backbones.calls import first_tensor, hooked, watched
from layersim.backbones.tiny_input import rounding
from layersim.errors import UserError, as_user_error

Visit = Callable[[int, Tensor, Tensor], Tensor]
"""Called with a layer, the numbers (n,) of the samples that remain, and their features (n, D); gives (n,) who stays."""


class ShrinkingForward:
    """Takes batches through a backbone, fewer samples at every layer.

    Which of a block's arguments have a row for each sample is found by running two of the batch's samples and then
    three, and looking which axes grow: a table of relative positions may by chance have as many rows as the batch.
    Three samples are then really taken out one after the other, and what remains must come out as in the full batch.
    Both are done once for each kind of batch (which inputs it has, and whether any of it is padding), and again where
    a block is given something that it was not given before.

    Args:
        backbone: of a classifier, one sample for each input.

    Raises:
        UserError: a backbone whose samples are tokens.
    """

    def __init__(self, backbone: Backbone) -> None:
        if backbone.reads_tokens:
            raise UserError(
                "Only a classifier's samples can leave a batch early: those of a language model are tokens, which "
                "later tokens still attend to. Set the backbone's task to classification."
            )
        self.backbone = backbone
        self._axes: dict[object, Axes] = {}

    def __call__(self, batch: Mapping[str, Any], visit: Visit) -> None:
        """One batch, its samples along the first axis of every tensor, until nobody stays or all layers were visited,
        with features as `Backbone.forward` gives them; at the last layer it does not matter what `visit` answers.

        Raises:
            UserError: a model that mixes its samples, or keeps them where they cannot be taken out.
        """
        axes = self._axes.setdefault(_kind(batch), {})
        _Run(self.backbone, batch, visit, axes, lambda: self._learn(batch, axes)).go()

    def _learn(self, batch: Mapping[str, Any], axes: Axes) -> None:
        samples, mask = len(_main_input(self.backbone, batch)), batch.get("attention_mask")
        rows = torch.arange(3) % samples
        if mask is not None:  # the sample with most padding, so that the model masks as for the whole batch
            rows = (rows + int(mask.sum(dim=1).argmin())) % samples
        three = _rows(batch, rows)
        two, of_three = (given_shapes(self.backbone, few) for few in (_rows(three, torch.arange(2)), three))
        axes.update(_axes(two, of_three))
        self._check(three, axes)

    def _check(self, three: Mapping[str, Any], axes: Axes) -> None:
        """Three samples, the second leaving after the first layer and the first after the second."""
        expected = self.backbone.forward(three).values
        found = expected.clone()

        def visit(layer: int, rows: Tensor, features: Tensor) -> Tensor:
            found[layer, rows] = features
            return rows != (1, 0, -1)[min(layer, 2)]

        with as_user_error(_CANNOT):
            _Run(self.backbone, three, visit, axes, None).go()
        if not (found - expected).abs().max() <= rounding(expected):
            raise UserError(f"{_CANNOT}: then the others' features change.")


_CANNOT = "layersim cannot take samples out of this model's batch on the way"


class _Run:
    """One batch on its way: who remains, and what the last block put out for them."""

    def __init__(
        self, backbone: Backbone, batch: Mapping[str, Any], visit: Visit, axes: Axes, learn: Callable[[], None] | None
    ) -> None:
        self.backbone = backbone
        self.batch = batch
        self.last = backbone.num_layers - 1
        self.visit = visit
        self.axes = axes
        self.learn = learn
        self.learning = False
        self.layer = -1
        self.tokens: Tensor | None = None
        samples = _main_input(backbone, batch)
        self.rows = torch.arange(len(samples), device=samples.device)
        self.samples = len(samples)

    def go(self) -> None:
        blocks = self.backbone.blocks
        watching = watched(blocks, self.backbone.refiner, self._after)
        with suppress(_Finished), watching, hooked(blocks, before=self._before):
            self.backbone.run(self.batch)
        if len(self.rows):
            assert self.layer == self.last, "every layer was visited"
            self._ask()

    def _after(self, tokens: Tensor, refines: bool) -> None:
        """Keeps a block's output until the next block's turn: only then it is known that nothing refines it."""
        if self.learning:
            return
        self.layer += not refines
        self.tokens = tokens
        if self.layer == self.last and len(self.rows) < self.samples:
            raise _Finished  # what follows the blocks may count on the whole batch

    def _before(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Asks who stays behind the block before, and cuts what this one is given."""
        if self.learning or self.tokens is None:
            return None
        before = len(self.rows)
        staying = self._ask()
        if not len(self.rows):
            raise _Finished
        if len(self.rows) == self.samples:
            return None
        # what the block before put out has a row for each who remained there, what stood before the blocks for all
        index = {before: staying, self.samples: self.rows}

        def cut(place: Place, tensor: Tensor) -> Tensor:
            axis = self._axis((self.layer + 1, *place))
            if axis is None or (size := tensor.shape[axis]) in (1, len(self.rows)):
                return tensor
            if size not in index:
                raise UserError(f"{_CANNOT}: a block is given {size} rows for {before} samples.")
            return tensor.index_select(axis, index[size])

        return mapped((args, kwargs), cut)

    def _ask(self) -> Tensor:
        """The places, among those who remained, of those who stay; from now on they are who remains."""
        assert self.tokens is not None
        mask = self.batch.get("attention_mask")
        if mask is not None and len(self.rows) < self.samples:
            mask = mask[self.rows]
        stays = self.visit(self.layer, self.rows, self.backbone.pool(self.tokens, mask))
        staying = stays.nonzero().squeeze(1)
        self.rows = self.rows[staying]
        return staying

    def _axis(self, place: Place) -> int | None:
        if place not in self.axes and self.learn is not None:
            self.learning = True
            self.learn()
            self.learning = False
        if place not in self.axes:
            raise UserError(f"{_CANNOT}: its blocks are given other tensors in one batch than in another.")
        return self.axes[place]


class _Finished(BaseException):  # no error, which a guard at a library's door would take it for
    """Nobody is left, or the last block has run: the rest of the model's forward is not needed."""


def _main_input(backbone: Backbone, batch: Mapping[str, Any]) -> Tensor:
    """(N, …) what the model mainly is given."""
    main = first_tensor(backbone.inputs(batch))
    assert main is not None
    return main


def _kind(batch: Mapping[str, Any]) -> object:
    """What decides which arguments the blocks are given: many models leave out a mask that would mask nothing."""
    mask = batch.get("attention_mask")
    return frozenset(batch), mask is not None and bool((mask > 0).all())


def _rows(batch: Mapping[str, Any], rows: Tensor) -> dict[str, Tensor]:
    return {key: value[rows] for key, value in batch.items() if isinstance(value, Tensor)}


def _axes(two: dict[Place, torch.Size], three: dict[Place, torch.Size]) -> Axes:
    """The axis of each tensor that is 2 long with two samples and 3 long with three; None where nothing grows."""
    axes: Axes = {}
    for place, after in three.items():
        before = two.get(place, torch.Size())
        grown = grown_axes(before, after)
        if grown and (len(grown) > 1 or len(before) != len(after) or before[grown[0]] != 2 or after[grown[0]] != 3):
            raise UserError(
                f"{_CANNOT}: its blocks are given a tensor that is {tuple(before)} for two samples and {tuple(after)} "
                "for three."
            )
        axes[place] = grown[0] if grown else None
    return axes
