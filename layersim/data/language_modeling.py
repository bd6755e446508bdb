"""Causal language modelling on any texts that `datasets.load_dataset` opens."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from layersim.data.account import held_out, share, tell
from layersim.data.bad_samples import text_faults
from layersim.data.blocks import BlockData, BlockSplit, Boundaries, as_block, block_bounds, end_of_text
from layersim.data.columns import check_texts, read_texts
from layersim.data.duplicates import contents
from layersim.data.sequences import Sequences, Tokens
from layersim.data.source_data import SourceData
from layersim.data.sources import SampleBy
from layersim.data.splits import Split
from layersim.data.streams import Row
from layersim.data.tokenizers import Tokenizer, open_tokenizer, tokenizer_of
from layersim.errors import UserError, check_choice

_CHUNK = 1024  # documents tokenised at a time
_STREAMED = 32  # of a stream, each of whose readers holds as many


class LanguageModeling(SourceData, BlockData):
    """Documents of a data set, tokenised without special tokens, each closed by an end of text, packed into blocks.

    Empty and missing documents are left out, and told how many. Tokens are made once, at the start, and kept in memory
    (4 bytes each). Where `val_split` is None, the end of the training split is held out, since neighbouring lines of a
    text know of each other.

    Args:
        path: a file (txt, csv, tsv, json, jsonl, parquet, arrow), a folder or a name on the hub (see `Source`).
        tokenizer: a name on the hub or a local folder, for `transformers.AutoTokenizer`; "bytes" for the byte-level
            one; None: the backbone's own.
        text_column: the column of documents; a txt file's is text.
        sample_by: what a document is in a txt file.
        **options: those of SourceData and BlockData.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(
        self,
        path: str,
        *,
        tokenizer: str | None = None,
        text_column: str = "text",
        sample_by: SampleBy = "line",
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self.tokenizer_name = tokenizer
        self.text_column = text_column
        check_choice("sample_by", sample_by, SampleBy)
        self.sample_by: SampleBy = sample_by
        self.documents: dict[str, pa.ChunkedArray] = {}
        self.opened = ""

    def load(self) -> dict[str, Split]:
        source = self.source(self.sample_by)
        if self.streaming:
            self.stream, held = self.streamed(source, {"text_column": self.text_column})
            if held is not None:
                self.documents["val"] = read_texts(held, self.text_column, option="text_column")
        for role, split in {"train": None if self.streaming else self.train_split, **self.other_splits}.items():
            if split is not None:
                data = source.split(split, option=f"{role}_split")
                texts = read_texts(data, self.text_column, option="text_column")
                rows = self.readable(data, split, lambda texts=texts: text_faults(texts))  # type: ignore[misc]
                self.documents[role] = texts if len(rows) == len(texts) else texts.take(pa.array(rows))
                check_texts(self.documents[role], self.text_column, rows, option="text_column")
        if "val" not in self.documents:
            every = self.documents["train"]
            kept = len(every) - self.held_out(len(every))
            self.documents |= {"train": every.slice(0, kept), "val": every.slice(kept)}
        self.opened = source.told()
        return {} if self.tokenizer_name is None else self._tokenise(open_tokenizer(self.tokenizer_name))

    def adapt(self, backbone: Any) -> None:
        if self.tokenizer is None:
            self.splits = self._tokenise(tokenizer_of(self.tokenizer_name, backbone))

    def _tokenise(self, tokenizer: Tokenizer) -> dict[str, Split]:
        end = end_of_text(tokenizer)
        documents = {
            role: Sequences(tokenised(_chunks(texts), tokenizer, end)) for role, texts in self.documents.items()
        }
        splits = self.pack(documents, tokenizer)
        shares = [self._share(role, splits[role], documents[role]) for role in splits]
        if self.stream is not None:
            shape: dict[str, Any] = {"block_size": self.block_size, "boundaries": self.boundaries}
            self.stream.pieces = partial(
                streamed_blocks,
                column=self.text_column,
                tokenizer=tokenizer,
                end=end,
                keep_partial=self.keep_partial,
                **shape,
            )
            self.stream.sample = as_block
            shares.insert(0, self.stream.share)
        tell(self.opened, shares)
        if self.stream is None:
            self.compare({role: contents(texts) for role, texts in self.documents.items()}, "document")
        self.documents = {}
        return splits

    def _share(self, role: str, blocks: Split, documents: Sequences) -> str:
        assert isinstance(blocks, BlockSplit)
        empty = len(self.documents[role]) - len(documents)
        split = self.train_split if role == "train" else self.other_splits[role]
        own = split or held_out(self.train_split, self.val_fraction)
        return share(
            role,
            len(blocks),
            len(blocks.bounds),
            "block",
            f"{len(documents.values)} tokens of {len(documents)} documents",
            f"{empty} without text left out" if empty else "",
            own if own != role else "",
        )


def tokenised(texts: Iterable[Sequence[str | None]], tokenizer: Tokenizer, end: int) -> Iterator[list[int]]:
    """The tokens of every document and its end, of documents that come in chunks; those that have none are left out."""
    for chunk in texts:
        told = [text for text in chunk if text]
        for row in tokenizer.encode(told, special=False).tokens if told else []:
            if row:
                yield [*row, end]


def streamed_blocks(
    rows: Iterator[Row],
    *,
    column: str,
    tokenizer: Tokenizer,
    end: int,
    block_size: int,
    boundaries: Boundaries,
    keep_partial: bool,
) -> Iterator[Tokens]:
    """The blocks of a stream of documents, as they fill; see `BlockData` for the options."""
    carried = Sequences([])
    while chunk := [row[column] for row in islice(rows, _STREAMED)]:
        if odd := [text for text in chunk if not isinstance(text, str | None)]:
            raise UserError(f"texts must be strings, but a row of the stream has {odd[0]!r}: change --data.text_column")
        documents = Sequences([*([carried.values] if carried else []), *tokenised([chunk], tokenizer, end)])
        joins = boundaries == "join"
        bounds = block_bounds(
            documents.offsets, block_size, boundaries=boundaries, keep_partial=keep_partial and not joins
        )
        for first, last in bounds:
            yield documents.values[first:last]
        rest = len(documents.values) % block_size if joins else 0
        carried = Sequences([documents.values[len(documents.values) - rest :]] if rest else [])
    if keep_partial and len(carried.values) > 1:
        yield carried.values


def _chunks(texts: pa.ChunkedArray) -> Iterator[list[str | None]]:
    for start in range(0, len(texts), _CHUNK):
        yield texts.slice(start, _CHUNK).to_pylist()
