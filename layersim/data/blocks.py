"""Language modelling on blocks of tokens, wherever the documents come from."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from layersim.data.base import SplitDataModule
from layersim.data.sequences import PadCollate, Sequences, Tokens
from layersim.data.splits import Integers, Sample, Split
from layersim.data.tokenizers import Tokenizer, check_vocabulary, open_tokenizer, tokenizer_of
from layersim.errors import UserError, at_least, check_choice

Boundaries = Literal["join", "separate"]
_CHUNK = 1024  # documents tokenised at a time


class BlockData(SplitDataModule):
    """Documents, tokenised without special tokens, each closed by an end of text, packed into blocks; a sample is a
    block. Tokens are made once, at the start, and kept in memory (4 bytes each).

    A batch holds, all int64: "input_ids", "attention_mask" and "label", each (N, T) with T the batch's longest block
    and the padding on the right, and "index" (N,), the block's number in its split. As in transformers, "label" equals
    "input_ids" (the model shifts it) but for −100 at padding, which is told apart by length: where the end of text
    serves as padding, a real one is still learnt. Where blocks join documents, attention reaches across them.

    Args:
        tokenizer: a name on the hub or a local folder, for `transformers.AutoTokenizer`; "bytes" for the byte-level
            one; None: the backbone's own.
        block_size: tokens in a block; the last one of a split, or of every document where separate, may have fewer.
        boundaries: "join": blocks span documents; "separate": a block never does.
        **loader: the options of SplitDataModule.
    """

    def __init__(
        self,
        *,
        tokenizer: str | None = None,
        block_size: int = 256,
        boundaries: Boundaries = "join",
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.tokenizer_name = tokenizer
        self.tokenizer: Tokenizer | None = None
        self.block_size = at_least(2, "block_size", block_size)
        check_choice("boundaries", boundaries, Boundaries)
        self.boundaries: Boundaries = boundaries
        self.documents: dict[str, pa.ChunkedArray] = {}

    @abstractmethod
    def open(self) -> dict[str, pa.ChunkedArray]:
        """The documents of each split, strings (N,); missing and empty ones will be left out."""

    def load(self) -> dict[str, Split]:
        self.documents = self.documents or self.open()
        return {} if self.tokenizer_name is None else self.pack(open_tokenizer(self.tokenizer_name))

    def adapt(self, backbone: Any) -> None:
        tokenizer = tokenizer_of(self.tokenizer_name, backbone, self.tokenizer)
        if tokenizer is not self.tokenizer:
            self.documents = self.documents or self.open()
            self.splits = self.pack(tokenizer)

    def pack(self, tokenizer: Tokenizer) -> dict[str, Split]:
        """The splits, of documents that are let go of then."""
        splits: dict[str, Split] = {}
        for role, texts in self.documents.items():
            chunks = (texts.slice(start, _CHUNK).to_pylist() for start in range(0, len(texts), _CHUNK))
            documents = Sequences(tokenised(chunks, tokenizer))
            bounds = block_bounds(documents.offsets, self.block_size, boundaries=self.boundaries)
            index = self.capped(role, np.arange(len(bounds)))
            splits[role] = BlockSplit(role, index, documents, bounds, seed=self.seed)
        # padding is neither attended to nor learnt: the end that every document has, since the model has room for it
        self.collate = PadCollate({"input_ids": end_of_text(tokenizer), "label": -100})
        self.tokenizer, self.documents = tokenizer, {}
        return splits

    @property
    def num_classes(self) -> int:
        """V, the tokenizer's vocabulary."""
        if self.tokenizer is None:
            raise UserError("num_classes is known once the tokenizer is: call setup() or check(backbone) first")
        return self.tokenizer.vocabulary_size

    def check_sample(self, sample: Sample, split: str, backbone: Any) -> None:
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
    """Those blocks of documents, of the (M, 2) whose first token and end are told, that the index (N,) has."""

    random = False

    def __init__(self, source: str, index: Integers, documents: Sequences, bounds: Integers, *, seed: int) -> None:
        super().__init__(source, index, None, seed=seed)
        self.documents = len(documents)
        self.tokens = documents.values
        self.bounds = bounds

    def inputs(self, place: int) -> Sample:
        first, end = self.bounds[self.index[place]]
        return as_block(self.tokens[first:end])


def first_tokens(split: Split, count: int, length: int) -> Tensor:
    """(N, length) the first tokens of 0 < N ≤ `count` blocks that have so many, in the order that the data's seed
    draws."""
    rows = (torch.as_tensor(split[place]["input_ids"][:length]).long() for place in split.order.tolist())
    found = list(islice((row for row in rows if len(row) == length), count))
    if not found:
        raise UserError(f"Expected blocks of {length} tokens or more, but there is none. Raise --data.block_size.")
    return torch.stack(found)


def as_block(tokens: Tokens) -> Sample:
    """A block as a sample: what is read is what is predicted."""
    return dict.fromkeys(("input_ids", "label"), tokens)


def block_bounds(offsets: Integers, block_size: int, *, boundaries: Boundaries) -> Integers:
    """First token and end of every block, (M, 2), in the documents' order.

    "join": the stream of all documents is cut every block_size tokens, so that a block may span documents. "separate":
    every document is cut by itself, so that each leaves a partial block. A block of a single token predicts nothing and
    is left out. The offsets (documents + 1,) tell where each document starts in the stream; the last is its end.
    """
    edges = offsets[[0, -1]] if boundaries == "join" else offsets
    starts = np.concatenate(
        [np.empty(0, np.int64)] + [np.arange(first, end, block_size) for first, end in pairwise(edges)]
    )
    ends = np.minimum(starts + block_size, edges[np.searchsorted(edges, starts, side="right")])
    return np.stack([starts, ends], axis=1)[ends - starts > 1]


def tokenised(texts: Iterable[Sequence[str | None]], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The tokens of every document and its end, of documents that come in chunks; those that have none are left out."""
    for chunk in texts:
        told = [text for text in chunk if text]
        for row in tokenizer.encode(told, special=False)["input_ids"] if told else []:
            if row:
                yield [*row, end_of_text(tokenizer)]


def end_of_text(tokenizer: Tokenizer) -> int:
    """The token that closes a document."""
    if tokenizer.eos_id is None:
        raise UserError(
            f"language modelling closes every document with an end of text, but the tokenizer {tokenizer.name} has "
            f"none: change --data.tokenizer to a language model's, or to bytes"
        )
    return tokenizer.eos_id
