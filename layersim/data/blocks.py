"""Language modelling on blocks of tokens, wherever the documents come from."""

from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from layersim.data.base import Reader, SplitDataModule, at_least
from layersim.data.sequences import PadCollate, Sequences, Tokens
from layersim.data.splits import Integers, Sample, Split
from layersim.data.tokenizers import Tokenizer, check_vocabulary
from layersim.errors import UserError, check_choice

Boundaries = Literal["join", "separate"]


class BlockData(SplitDataModule):
    """Documents, each closed by the tokenizer's end of text, packed into blocks; a sample is a block.

    A batch holds, all int64: "input_ids", "attention_mask" and "label", each (N, T) with T the batch's longest block
    and the padding on the right, and "index" (N,), the block's number in its split. As in transformers, "label" equals
    "input_ids" (the model shifts it) but for −100 at padding, which is told apart by length: where the end of text
    serves as padding, a real one is still learnt. Where blocks join documents, attention reaches across them.

    Args:
        block_size: tokens in a block.
        boundaries: "join": blocks span documents; "separate": a block never does.
        keep_partial: keep blocks that are not full: the last one of a split, or of every document where separate.
        **loader: the options of SplitDataModule.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(
        self,
        *,
        block_size: int = 256,
        boundaries: Boundaries = "join",
        keep_partial: bool = True,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.block_size = at_least(2, "block_size", block_size)
        check_choice("boundaries", boundaries, Boundaries)
        self.boundaries: Boundaries = boundaries
        self.keep_partial = keep_partial
        self.tokenizer: Tokenizer | None = None

    def pack(self, documents: dict[str, Sequences], tokenizer: Tokenizer) -> dict[str, Split]:
        """The splits of documents that are tokens already, with their ends of text."""
        self.tokenizer = tokenizer
        # padding is neither attended to nor learnt: the end that every document has, since the model has room for it
        self.collate = PadCollate({"input_ids": end_of_text(tokenizer), "label": -100})
        return {role: self._split(role, sequences) for role, sequences in documents.items()}

    def _split(self, role: str, documents: Sequences) -> "BlockSplit":
        bounds = block_bounds(
            documents.offsets, self.block_size, boundaries=self.boundaries, keep_partial=self.keep_partial
        )
        index = self.capped(role, np.arange(len(bounds)))
        return BlockSplit(role, index, documents.values, bounds, seed=self.seed)

    @property
    def num_classes(self) -> int:
        """V, the tokenizer's vocabulary."""
        if self.tokenizer is None:
            raise UserError("num_classes is known once the tokenizer is: call setup() or check(backbone) first")
        return self.tokenizer.vocabulary_size

    def check_sample(self, sample: Sample, split: str, backbone: Reader) -> None:
        positions = getattr(backbone, "max_positions", None)
        if positions is not None and self.block_size > positions:
            raise UserError(
                f"the backbone reads {positions} tokens at most, but blocks have {self.block_size}: "
                f"set --data.block_size {positions}"
            )
        blocks = self.splits.get(split)  # of a stream nobody knows the largest token beforehand
        largest = int(blocks.tokens.max()) if isinstance(blocks, BlockSplit) else self.num_classes - 1
        check_vocabulary(largest, split, backbone)


class BlockSplit(Split):
    """Blocks of a stream of tokens.

    Args:
        source: the split's name.
        index: (N,) numbers of the blocks that belong to it.
        tokens: the stream of all documents.
        bounds: (M, 2) first token and end of every block.
        seed: of the order.
    """

    def __init__(self, source: str, index: Integers, tokens: Tokens, bounds: Integers, *, seed: int) -> None:
        super().__init__(source, index, None, seed=seed)
        self.tokens = tokens
        self.bounds = bounds

    def inputs(self, place: int) -> Sample:
        first, end = self.bounds[self.index[place]]
        return as_block(self.tokens[first:end])


def first_tokens(split: Split, count: int, length: int) -> Tensor:
    """(N, length) the first tokens of N ≤ `count` blocks that have so many, in the order that the data's seed draws.

    Raises:
        UserError: no block has.
    """
    rows = (torch.as_tensor(split[place]["input_ids"][:length]).long() for place in split.order.tolist())
    found = list(islice((row for row in rows if len(row) == length), count))
    if not found:
        raise UserError(f"Expected blocks of {length} tokens or more, but there is none. Raise --data.block_size.")
    return torch.stack(found)


def as_block(tokens: Tokens) -> Sample:
    """A block as a sample: what is read is what is predicted."""
    return dict.fromkeys(("input_ids", "label"), tokens)


def block_bounds(offsets: Integers, block_size: int, *, boundaries: Boundaries, keep_partial: bool) -> Integers:
    """First token and end of every block, (M, 2), in the documents' order.

    "join": the stream of all documents is cut every block_size tokens, so that a block may span documents. "separate":
    every document is cut by itself, so that each leaves a partial block. A block of a single token predicts nothing and
    is left out.

    Args:
        offsets: (documents + 1,) where each document starts in the stream; the last is its end.
        block_size: tokens in a full block.
        boundaries: how documents meet.
        keep_partial: keep blocks that are not full.
    """
    edges = offsets[[0, -1]] if boundaries == "join" else offsets
    starts = np.concatenate(
        [np.empty(0, np.int64)] + [np.arange(first, end, block_size) for first, end in pairwise(edges)]
    )
    ends = np.minimum(starts + block_size, edges[np.searchsorted(edges, starts, side="right")])
    sizes = ends - starts
    kept = sizes >= (2 if keep_partial else block_size)
    return np.stack([starts, ends], axis=1)[kept]


def end_of_text(tokenizer: Tokenizer) -> int:
    """The token that closes a document.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.eos_id is None:
        raise UserError(
            f"language modelling closes every document with an end of text, but the tokenizer {tokenizer.name} has "
            f"none: change --data.tokenizer to a language model's, or to bytes"
        )
    return tokenizer.eos_id
