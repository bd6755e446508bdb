"""Classification of tokenised texts, wherever the texts come from."""

from abc import abstractmethod
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_info

from layersim.data.bad_samples import SKIP
from layersim.data.base import Reader, SplitDataModule, at_least
from layersim.data.sequences import PadCollate, Sequences, Tokens
from layersim.data.splits import Integers, Sample, Split
from layersim.data.tokenizers import Tokenizer, check_vocabulary, open_tokenizer, tokenizer_of
from layersim.errors import UserError

_CHUNK = 1024  # texts tokenised at a time

Texts: TypeAlias = pa.Array | pa.ChunkedArray


class SentenceData(SplitDataModule):
    """Texts, or pairs of texts, with a class each.

    A batch holds, all int64: "input_ids", "attention_mask" and, where the tokenizer makes them, "token_type_ids", each
    (N, T) with T the batch's longest text and the padding on the right; "label" and "index" (N,). Texts are tokenised
    once, at the start, and kept in memory (4 bytes a token). A text that gives no token at all is an error; an empty
    text is accepted where the tokenizer adds tokens of its own ([CLS], [SEP], an end).

    Args:
        tokenizer: a name on the hub or a local folder, for `transformers.AutoTokenizer`; "bytes" for the byte-level
            one; None: the backbone's own.
        max_length: tokens of a text, or of a pair, at most; the model's positions, where it has fewer.
        truncation: what becomes of longer ones: "cut", and told how many, or "refuse".
        length_bucketing: group texts of similar length into batches, inside shuffled windows of 50.
        pad_to_multiple: round T up to a multiple of this, as tensor cores like 8, where the length limit lets it.
        **loader: the options of SplitDataModule.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(
        self,
        *,
        tokenizer: str | None = None,
        max_length: int = 256,
        truncation: Literal["cut", "refuse"] = "cut",
        length_bucketing: bool = False,
        pad_to_multiple: int = 1,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.tokenizer_name = tokenizer
        self.tokenizer: Tokenizer | None = None
        self.limit = at_least(8, "max_length", max_length)
        self.truncation = truncation
        self.length_bucketing = length_bucketing
        self.pad_to_multiple = at_least(1, "pad_to_multiple", pad_to_multiple)

    @abstractmethod
    def open(self) -> dict[str, "SentenceSplit"]:
        """The splits, not tokenised yet; sets class_names where they are known."""

    def load(self) -> dict[str, Split]:
        splits = self.open()
        if self.tokenizer_name is not None:
            self._encode(splits, open_tokenizer(self.tokenizer_name))
        return dict(splits)

    def adapt(self, backbone: Any) -> None:
        limit = min(self.limit, getattr(backbone, "max_positions", None) or self.limit)
        if self.tokenizer is None or limit < self.limit:
            self.limit = limit
            splits = {role: split for role, split in self.splits.items() if isinstance(split, SentenceSplit)}
            self._encode(splits, self.tokenizer or tokenizer_of(self.tokenizer_name, backbone))

    def check_sample(self, sample: Sample, split: str, backbone: Reader) -> None:
        assert isinstance(self.collate, PadCollate)
        assert self.tokenizer is not None
        encoded = self.splits.get(split)  # of a stream nobody knows the largest token beforehand
        largest = encoded.tokens.largest if isinstance(encoded, SentenceSplit) else self.tokenizer.vocabulary_size - 1
        for token in (largest, self.collate.padding["input_ids"]):
            check_vocabulary(token, split, backbone)

    def _encode(self, splits: dict[str, "SentenceSplit"], tokenizer: Tokenizer) -> None:
        pad_id = _padding(tokenizer)
        cut = {role: split.encode(tokenizer, self.limit, self.truncation) for role, split in splits.items()}
        if any(cut.values()):
            told = ", ".join(f"{count} of {len(splits[role])} in {role}" for role, count in cut.items())
            rank_zero_info(f"Texts cut to {self.limit} tokens: {told} (--data.max_length).")
        if self.length_bucketing:
            for split in splits.values():
                split.lengths = split.tokens.lengths
        self.tokenizer = tokenizer
        padding = {"input_ids": pad_id, "token_type_ids": 0}
        self.collate = PadCollate(padding, multiple=self.pad_to_multiple, limit=self.limit)


class SentenceSplit(Split):
    """Texts, to be tokenised by `encode` before any is read.

    Args:
        source: where the texts come from.
        index: (N,) positions in what was opened, the source or a slice of it.
        labels: (N,) classes, or None.
        texts: (N,) an arrow array of strings.
        pairs: (N,) the second texts of pairs, or None.
        seed: of the order.
        offset: where in the source the slice begins.
    """

    def __init__(
        self,
        source: str,
        index: Integers,
        labels: Integers | None,
        texts: Texts,
        pairs: Texts | None = None,
        *,
        seed: int,
        offset: int = 0,
    ) -> None:
        super().__init__(source, index, labels, seed=seed, offset=offset)
        self.columns = [texts] if pairs is None else [texts, pairs]
        self.tokens = Sequences([])
        self.types: Sequences | None = None

    def encode(self, tokenizer: Tokenizer, limit: int, truncation: str) -> int:
        """Tokenises all texts; how many of them were cut.

        Raises:
            UserError: a missing text, a text without a token, or one that is too long and shall not be cut.
        """
        tokens: list[Tokens] = []
        types: list[Tokens] = []
        cut = 0
        for start in range(0, len(self), _CHUNK):
            columns = [self._texts(column, start) for column in self.columns]
            encoding = tokenizer.encode(*columns)
            long = [place for place, row in enumerate(encoding.tokens) if len(row) > limit]
            if long and truncation == "refuse":
                raise UserError(
                    f"{self._row(start + long[0])} has {len(encoding.tokens[long[0]])} tokens, but {limit} is the "
                    f"most: raise --data.max_length as far as the model reads, or set --data.truncation cut"
                )
            if long:
                columns = [[column[place] for place in long] for column in columns]
                shorter = tokenizer.encode(*columns, max_length=limit)
                for rows, by in ((encoding.tokens, shorter.tokens), (encoding.types or [], shorter.types or [])):
                    for place, row in zip(long, by, strict=False):
                        rows[place] = row
            cut += len(long)
            tokens += [np.asarray(row, np.int32) for row in encoding.tokens]
            types += [np.asarray(row, np.int32) for row in encoding.types or []]
        self.tokens = Sequences(tokens)
        self.types = Sequences(types) if types else None
        if len(empty := np.flatnonzero(self.tokens.lengths == 0)):
            raise UserError(
                f"{self._row(int(empty[0]))} is empty ({len(empty)} such rows): remove them from the data, or choose "
                f"a --data.tokenizer that adds tokens of its own"
            )
        return cut

    def inputs(self, place: int) -> Sample:
        if len(self.tokens) != len(self):
            raise UserError("no tokenizer is known yet: set --data.tokenizer, or call check(backbone) first")
        sample: Sample = {"input_ids": self.tokens[place]}
        if self.types is not None:
            sample["token_type_ids"] = self.types[place]
        return sample

    def _texts(self, column: Texts, start: int) -> list[str]:
        texts: list[str | None] = column.slice(start, _CHUNK).to_pylist()
        if None in texts:
            raise UserError(f"{self._row(start + texts.index(None))} has no text: remove it from the data, {SKIP}")
        return [text for text in texts if text is not None]

    def _row(self, position: int) -> str:
        return f"row {self.index[position] + self.offset} of split {self.source}"


def _padding(tokenizer: Tokenizer) -> int:
    if tokenizer.pad_id is not None:
        return tokenizer.pad_id
    if tokenizer.eos_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name} has neither a padding token nor one that ends a text: "
            f"change --data.tokenizer, or give it a padding token"
        )
    rank_zero_info(
        f"The tokenizer {tokenizer.name} has no padding token: its end of text pads, told apart by attention_mask."
    )
    return tokenizer.eos_id
