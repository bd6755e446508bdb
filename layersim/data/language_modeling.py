"""Causal language modelling on any texts that `datasets.load_dataset` opens."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from layersim.data.account import Contents, contents, held_out, share, tell, tell_duplicates
from layersim.data.bad_samples import text_faults
from layersim.data.blocks import BlockData, BlockSplit, Boundaries, as_block, block_bounds, tokenised
from layersim.data.columns import check_texts, read_texts
from layersim.data.sequences import Sequences, Tokens
from layersim.data.source_data import SourceData
from layersim.data.sources import SampleBy
from layersim.data.splits import Split
from layersim.data.streams import Row
from layersim.data.tokenizers import Tokenizer
from layersim.errors import UserError, check_choice

_STREAMED = 32  # documents of a stream, each of whose readers holds as many


class LanguageModeling(SourceData, BlockData):
    """Documents of a data set, in blocks of tokens.

    Empty and missing documents are left out, and told how many. Where `val_split` is None, the end of the training
    split is held out, since neighbouring lines of a text know of each other.

    Args:
        path: a file (txt, csv, tsv, json, jsonl, parquet, arrow), a folder or a name on the hub (see `Source`).
        text_column: the column of documents; a txt file's is text.
        sample_by: what a document is in a txt file.
        **options: those of SourceData and BlockData.
    """

    def __init__(self, path: str, *, text_column: str = "text", sample_by: SampleBy = "line", **options: Any) -> None:
        super().__init__(path, **options)
        self.text_column = text_column
        check_choice("sample_by", sample_by, SampleBy)
        self.sample_by: SampleBy = sample_by
        self.opened = ""

    def open(self) -> dict[str, pa.ChunkedArray]:
        documents: dict[str, pa.ChunkedArray] = {}
        source = self.source(self.sample_by)
        if self.streaming:
            self.stream, held = self.streamed(source, {"text_column": self.text_column})
            if held is not None:
                documents["val"] = read_texts(held, self.text_column, option="text_column")
        for role, split in {"train": None if self.streaming else self.train_split, **self.other_splits}.items():
            if split is not None:
                data = source.split(split, option=f"{role}_split")
                texts = read_texts(data, self.text_column, option="text_column")
                rows = self.readable(data, split, partial(text_faults, texts))
                documents[role] = texts if len(rows) == len(texts) else texts.take(pa.array(rows))
                check_texts(documents[role], self.text_column, rows, option="text_column")
        if "val" not in documents:
            every = documents["train"]
            kept = len(every) - self.held_out(len(every))
            documents |= {"train": every.slice(0, kept), "val": every.slice(kept)}
        self.opened = source.told()
        return documents

    def pack(self, tokenizer: Tokenizer) -> dict[str, Split]:
        samples = {role: contents(texts) for role, texts in self.documents.items()}
        splits = super().pack(tokenizer)
        shares = [self._share(role, split, samples[role]) for role, split in splits.items()]
        if self.stream is not None:
            shape: dict[str, Any] = {"block_size": self.block_size, "boundaries": self.boundaries}
            self.stream.pieces = partial(streamed_blocks, column=self.text_column, tokenizer=tokenizer, **shape)
            self.stream.sample = as_block
            shares.insert(0, self.stream.share)
        tell(self.opened, shares)
        if self.stream is None:
            tell_duplicates(samples, "document", wanted=self.find_duplicates)
        return splits

    def trained_on(self, split: str) -> int:
        own, train = self.other_splits.get(split), self.train_split
        base, whole = train.partition("[")[0], {own, train} - {None}
        overlap = own is not None and own.partition("[")[0] == base and (len(whole) == 1 or base in whole)
        return len(self.splits[split]) * overlap

    def _share(self, role: str, blocks: Split, documents: Contents) -> str:
        assert isinstance(blocks, BlockSplit)
        empty, blank = len(documents.rows) - blocks.documents, blocks.documents - documents.count
        split = self.train_split if role == "train" else self.other_splits[role]
        own = split or held_out(self.train_split, self.val_fraction)
        notes = [
            f"{len(blocks.tokens)} tokens of {documents.count} documents{f' and {blank} blank ones' * (blank > 0)}",
            f"{empty} without text left out" if empty else "",
            own if own != role else "",
        ]
        return share(role, len(blocks), len(blocks.bounds), "block", *notes)


def streamed_blocks(
    rows: Iterator[Row], *, column: str, tokenizer: Tokenizer, block_size: int, boundaries: Boundaries
) -> Iterator[Tokens]:
    """The blocks of a stream of documents, as they fill; see `BlockData` for the options."""
    carried: Tokens = np.empty(0, np.int32)
    while chunk := [row[column] for row in islice(rows, _STREAMED)]:
        if odd := [text for text in chunk if not isinstance(text, str | None) or "\0" in (text or "")]:
            raise UserError(
                f"texts must be strings without NUL, but a row of the stream has {odd[0]!r}: change --data.text_column"
            )
        documents = Sequences(tokenised([chunk], tokenizer))
        if boundaries == "separate":
            for first, last in block_bounds(documents.offsets, block_size, boundaries=boundaries):
                yield documents.values[first:last]
            continue
        carried = np.concatenate([carried, documents.values])
        full = len(carried) - len(carried) % block_size
        yield from carried[:full].reshape(-1, block_size)
        carried = carried[full:]
    if len(carried) > 1:
        yield carried
