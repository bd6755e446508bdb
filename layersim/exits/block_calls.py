"""The blocks of a language model, called on any tokens of any texts.

What its own forward gives them besides hidden states (masks, positions, rotary angles) is recorded beforehand for all
tokens of all texts, while the blocks hand on what they are given; a call picks from it what belongs to its tokens.

Letters: N texts, n of them, S tokens of each, q of them, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from layersim.backbones.base import Backbone
from layersim.backbones.block_arguments import Place, given_shapes, grown_axes, mapped
from layersim.backbones.calls import first_tensor, hooked
from layersim.errors import UserError
from layersim.exits.token_cache import TokenCache

CANNOT = "layersim cannot let this model's tokens leave early"


@dataclass(frozen=True)
class Axes:
    """Of a tensor that blocks are given: the axis that has a row for each text, and those that have one for each
    token (two for a mask: the token that looks, and those it looks at)."""

    texts: int | None
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class _Call:
    """One block's, recorded."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    kind: int
    """Calls of one kind are given the same, except for hidden states."""


class BlockCalls:
    """Calls of a backbone's blocks on some of the tokens of N texts of S tokens, whose keys and values are in a cache.

    Args:
        axes: of what the blocks are given; see `learned_axes`.
        mask: (N, S), 0 where a text is padded.
    """

    def __init__(self, backbone: Backbone, axes: Mapping[Place, Axes], mask: Tensor, cache: TokenCache) -> None:
        self.cache = cache
        self.axes = axes
        self.texts = len(mask)
        self._picked: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._calls = self._recorded(backbone, mask)

    def _recorded(self, backbone: Any, mask: Tensor) -> list[_Call]:
        padded = torch.cat([mask, mask[:1]])  # a text more, with padding: models leave out a mask that masks nothing
        padded[-1, 0] = 0
        ids = backbone.small_batch()["input_ids"][:1, :1].expand_as(padded)
        calls: list[_Call] = []
        kinds: dict[object, int] = {}
        handed: Tensor | None = None

        def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal handed
            hidden = first_tensor([*args, *kwargs.values()])
            if handed is not None and hidden is not handed:
                raise UserError(f"{CANNOT}: its forward changes what it hands from block to block.")
            handed = hidden
            same = (tuple(kwargs), *(0 if each is hidden else id(each) for each in tree_leaves((args, kwargs))))
            kind = kinds.setdefault(same, len(calls))
            calls.append(_Call(block, args, kwargs, kind))

        with skipped(backbone), hooked(backbone.blocks, before=note):
            backbone.extend(text_batch(ids, padded), self.cache)
        return calls

    def at(self, rows: Tensor | None, places: Tensor) -> None:
        """From now on calls are for q tokens of n texts, all N where None, which stand at these places (n, q)."""
        self.cache.rows, self.cache.places = rows, places
        self._picked = {}

    def __call__(self, layer: int, states: Tensor) -> Tensor:
        """What the layer's block makes of hidden states (n, q, D); keys and values are kept on the way."""
        call = self._calls[layer]
        if call.kind not in self._picked:
            self._picked[call.kind] = self._pick(layer, call)
        args, kwargs = self._picked[call.kind]
        if args and isinstance(args[0], Tensor):
            output = call.block(states, *args[1:], **kwargs)
        else:
            name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
            output = call.block(*args, **kwargs | {name: states})
        return output if isinstance(output, Tensor) else output[0]

    def _pick(self, layer: int, call: _Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = first_tensor([*call.args, *call.kwargs.values()])
        rows, places, end = self.cache.rows, self.cache.places, self.cache.end
        assert places is not None
        texts = torch.arange(self.texts, device=places.device) if rows is None else rows

        def pick(place: Place, tensor: Tensor) -> Tensor:
            if tensor is hidden:
                return tensor
            axes = self.axes[(layer, *place)]
            if not axes.tokens:
                return tensor if axes.texts is None else tensor.index_select(axes.texts, texts)
            first = 0 if axes.texts is None else axes.texts
            whole = tensor.movedim((first, axes.tokens[0]), (0, 1))
            own = whole[texts.unsqueeze(1) if len(whole) > 1 else 0, places].movedim((0, 1), (first, axes.tokens[0]))
            return own if len(axes.tokens) == 1 else own.narrow(axes.tokens[1], 0, end)

        return mapped((call.args, call.kwargs), pick)


def learned_axes(backbone: Backbone) -> dict[Place, Axes]:
    """Which axes of what blocks are given grow with the texts, and which with the tokens.

    Raises:
        UserError: a tensor from which no text's tokens can be picked.
    """
    token = backbone.small_batch()["input_ids"][:1, :1]

    def shapes(texts: int, tokens: int) -> dict[Place, torch.Size]:
        mask = torch.ones(texts, tokens, dtype=token.dtype, device=token.device)
        mask[0, 0] = 0
        return given_shapes(backbone, text_batch(token.expand_as(mask), mask))

    few, with_texts, with_tokens = shapes(2, 5), shapes(3, 5), shapes(2, 7)
    axes = {}
    for place, shape in few.items():
        texts, tokens = grown_axes(shape, with_texts[place]), grown_axes(shape, with_tokens[place])
        shared = not texts and (not tokens or (tokens[0] > 0 and shape[0] == 1))
        if not shared and (len(texts) != 1 or shape[texts[0]] != 2):
            raise UserError(
                f"{CANNOT}: its blocks are given a tensor of {tuple(shape)} for two texts of five tokens and "
                f"{tuple(with_texts[place])} for three, from which one text's cannot be picked."
            )
        axes[place] = Axes(texts[0] if texts else None, tuple(tokens))
    return axes


def text_batch(input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The last tokens (N, T) of texts, given the mask (N, S) of all of their tokens so far."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions[:, -input_ids.shape[1] :]}


@contextmanager
def skipped(backbone: Backbone) -> Iterator[None]:
    """In here blocks hand on the hidden states they are given, in the form that they give theirs in."""
    ways: dict[nn.Module, Callable[..., Any]] = {}

    def note(block: nn.Module, args: object, kwargs: object, output: Any) -> None:
        ways[block] = _hand_on if isinstance(output, Tensor) else lambda *args, **kwargs: (_hand_on(*args, **kwargs),)

    with hooked(backbone.blocks, after=note):
        backbone.run(backbone.small_batch())
    own = {block: vars(block).get("forward") for block in ways}
    try:
        for block, way in ways.items():
            block.forward = way
        yield
    finally:
        for block, forward in own.items():
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _hand_on(*args: Any, **kwargs: Any) -> Tensor:
    hidden = first_tensor([*args, *kwargs.values()])
    assert hidden is not None
    return hidden
