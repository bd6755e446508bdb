"""Causal language modelling on any texts that `datasets.load_dataset` opens."""

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from layersim.data.account import held_out, share, tell
from layersim.data.blocks import BlockData, BlockSplit, end_of_text
from layersim.data.columns import read_texts
from layersim.data.sequences import Sequences
from layersim.data.sources import SampleBy, Source
from layersim.data.splits import Split
from layersim.data.tokenizers import Tokenizer, open_tokenizer, tokenizer_of
from layersim.errors import UserError

_CHUNK = 1024  # documents tokenised at a time


class LanguageModeling(BlockData):
    """Documents of a data set, tokenised without special tokens, each closed by an end of text, packed into blocks.

    Empty documents are left out, and told how many. Tokens are made once, at the start, and kept in memory (4 bytes
    each).

    Args:
        path: a file (txt, csv, tsv, json, jsonl, parquet, arrow), a folder or a name on the hub (see `Source`).
        tokenizer: a name on the hub or a local folder, for `transformers.AutoTokenizer`; "bytes" for the byte-level
            one; None: the backbone's own.
        name: which configuration of the data set, where it has several.
        text_column: the column of documents; a txt file's is text.
        sample_by: what a document is in a txt file.
        train_split: the split to train on.
        val_split: the split to validate on; None holds out the end of the training split, since neighbouring lines of a
            text know of each other.
        test_split: the split to test on; None: there is no test data.
        val_fraction: the share of the documents held out where val_split is None, rounded up.
        **options: those of BlockData.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(
        self,
        path: str,
        *,
        tokenizer: str | None = None,
        name: str | None = None,
        text_column: str = "text",
        sample_by: SampleBy = "line",
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        val_fraction: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 < val_fraction < 1:
            raise UserError(f"expected 0 < val_fraction < 1, got {val_fraction}: change --data.val_fraction")
        self.path = path
        self.tokenizer_name = tokenizer
        self.configuration = name
        self.text_column = text_column
        self.sample_by: SampleBy = sample_by
        self.source_splits = {"train": train_split, "val": val_split, "test": test_split}
        self.val_fraction = val_fraction
        self.documents: dict[str, pa.ChunkedArray] = {}

    def load(self) -> dict[str, Split]:
        self.source = Source(self.path, name=self.configuration, sample_by=self.sample_by)
        self.documents = {
            role: read_texts(self.source.split(split, option=f"{role}_split"), self.text_column, option="text_column")
            for role, split in self.source_splits.items()
            if split is not None
        }
        if "val" not in self.documents:
            every = self.documents["train"]
            kept = len(every) - math.ceil(self.val_fraction * len(every))
            self.documents |= {"train": every.slice(0, kept), "val": every.slice(kept)}
        return {} if self.tokenizer_name is None else self._tokenise(open_tokenizer(self.tokenizer_name))

    def adapt(self, backbone: Any) -> None:
        if self.tokenizer is None:
            self.splits = self._tokenise(tokenizer_of(self.tokenizer_name, backbone))

    def _tokenise(self, tokenizer: Tokenizer) -> dict[str, Split]:
        end = end_of_text(tokenizer)
        documents = {role: Sequences(tokenised(texts, tokenizer, end)) for role, texts in self.documents.items()}
        splits = self.pack(documents, tokenizer)
        tell(self.source.told(), [self._share(role, splits[role], documents[role]) for role in splits])
        self.documents = {}
        return splits

    def _share(self, role: str, split: Split, documents: Sequences) -> str:
        assert isinstance(split, BlockSplit)
        empty = len(self.documents[role]) - len(documents)
        own = self.source_splits[role] or held_out(str(self.source_splits["train"]), self.val_fraction)
        return share(
            role,
            len(split),
            len(split.bounds),
            "block",
            f"{len(documents.values)} tokens of {len(documents)} documents",
            f"{empty} without text left out" if empty else "",
            own if own != role else "",
        )


def tokenised(texts: pa.ChunkedArray, tokenizer: Tokenizer, end: int) -> Iterator[list[int]]:
    """The tokens of every document and its end; documents that have none are left out."""
    for start in range(0, len(texts), _CHUNK):
        chunk = [text for text in texts.slice(start, _CHUNK).to_pylist() if text]
        for row in tokenizer.encode(chunk, special=False).tokens if chunk else []:
            if row:
                yield [*row, end]
