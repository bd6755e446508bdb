"""Language modelling on blocks of tokens, wherever the documents come from."""

from typing import Any

import numpy as np
import torch

from layersim.data.base import Batch, Reader, SplitDataModule, at_least
from layersim.data.packing import Boundaries, block_bounds
from layersim.data.sequences import Sequences, Tokens, attention_mask, pad
from layersim.data.splits import Integers, Sample, Split
from layersim.data.tokenizer import Tokenizer, check_vocabulary
from layersim.errors import UserError


class BlockData(SplitDataModule):
    """Documents, each closed by the tokenizer's end of text, packed into blocks (packing.py); a sample is a block.

    A batch holds, all int64: "input_ids", "attention_mask" and "label", each (N, T) with T the batch's longest block
    and the padding on the right, and "index" (N,), the block's number in its split. As in transformers, "label" equals
    "input_ids" (the model shifts it) but for −100 at padding, which is told apart by length: where the end of text
    serves as padding, a real one is still learnt. Where blocks join documents, attention reaches across them.

    Args:
        block_size: tokens in a block.
        boundaries: "join": blocks span documents; "separate": a block never does.
        keep_partial: keep blocks that are not full: the last one of a split, or of every document where separate.
        max_train_samples: train on this many blocks, drawn by the seed; None: on all.
        max_eval_samples: the same for each of the other splits.
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
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.block_size = at_least(2, "block_size", block_size)
        self.boundaries: Boundaries = boundaries
        self.keep_partial = keep_partial
        self.limits = {"max_train_samples": max_train_samples, "max_eval_samples": max_eval_samples}
        for option, limit in self.limits.items():
            if limit is not None:
                at_least(1, option, limit)
        self.tokenizer: Tokenizer | None = None

    def pack(self, documents: dict[str, Sequences], tokenizer: Tokenizer) -> dict[str, Split]:
        """The splits of documents that are tokens already, with their ends of text."""
        self.tokenizer = tokenizer
        self.collate = BlockCollate(end_of_text(tokenizer))  # every document's: the model has an embedding for it
        return {role: self._split(role, sequences) for role, sequences in documents.items()}

    def _split(self, role: str, documents: Sequences) -> "BlockSplit":
        bounds = block_bounds(
            documents.offsets, self.block_size, boundaries=self.boundaries, keep_partial=self.keep_partial
        )
        index = np.arange(len(bounds))
        most = self.limits["max_train_samples" if role == "train" else "max_eval_samples"]
        if most is not None and most < len(index):
            index = np.sort(np.random.default_rng(self.seed).choice(index, most, replace=False))
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
        blocks = self.splits[split]
        assert isinstance(blocks, BlockSplit)
        check_vocabulary(int(blocks.tokens.max()), split, backbone)


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
        return {"input_ids": self.tokens[first:end]}


class BlockCollate:
    """Pads the blocks of a batch to its longest.

    Args:
        pad_id: the token of padding; any of the data will do, since it is neither attended to nor learnt.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, samples: list[Sample]) -> Batch:
        rows = [sample["input_ids"] for sample in samples]
        width = max(map(len, rows))
        return {
            "input_ids": pad(rows, self.pad_id, width),
            "attention_mask": attention_mask(rows, width),
            "label": pad(rows, -100, width),
            **{key: torch.tensor([sample[key] for sample in samples]) for key in ("index", "position")},
        }


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
